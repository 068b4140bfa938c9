"""The commands of `launch/` and of `rag-jax`: command lines in, exit statuses out."""

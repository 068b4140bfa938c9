"""The models in Flax, which nothing else imports."""

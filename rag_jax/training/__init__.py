"""Training: the loop, what is trained, rows of text, banks of adapters."""

"""Questions about a corpus that has none, written and checked by a language model."""

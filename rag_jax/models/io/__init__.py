"""Loading and saving of models: weights, configs and tokenizers."""

"""Weights, configs and tokenizers, in and out."""

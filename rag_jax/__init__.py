"""Retrieval augmentation in JAX: four published systems as pure functions over parameter trees."""

__version__ = "0.1.0"

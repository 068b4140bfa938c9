"""Retrieval augmentation in JAX: four published systems as pure functions over parameter trees."""

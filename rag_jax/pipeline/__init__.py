"""A run as a list of stages, continued where it stopped."""

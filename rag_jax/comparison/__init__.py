"""The comparison of systems: on one corpus, with the same questions and the same models."""

"""An index from files of passages."""

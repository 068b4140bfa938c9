"""The four systems; none imports another."""

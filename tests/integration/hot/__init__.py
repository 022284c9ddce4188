"""The hot store against a real Redis."""

"""The pure parts of the hot store."""

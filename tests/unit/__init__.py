"""Tests without I/O, each in milliseconds."""

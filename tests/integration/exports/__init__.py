"""Exports on a real book."""

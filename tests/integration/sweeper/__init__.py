"""Checkpoints and the sweeper on a real Redis."""

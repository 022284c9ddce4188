"""Tests that kill, stop, fill and replay."""

"""Tests of our own count of tokens."""

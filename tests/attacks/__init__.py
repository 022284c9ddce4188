"""Tests that try to get something for nothing, or something that is another's."""

"""Tests of what each persona does, from the outside."""

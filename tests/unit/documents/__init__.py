"""Tests of the documents that customers get."""

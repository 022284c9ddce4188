"""Tests of the text of the code and of the documents."""

"""Requests, files and answers of the endpoints beside conversations."""

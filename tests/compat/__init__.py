"""Clients that people use, unmodified, against a running Tollgate."""

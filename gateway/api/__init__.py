"""The HTTP surface: one file per group of routes, and the one table of errors."""

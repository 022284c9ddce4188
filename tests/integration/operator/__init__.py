"""The operator's API on real Postgres and Redis."""

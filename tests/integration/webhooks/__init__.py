"""Webhooks in both directions, on the real Postgres and Redis of the session."""

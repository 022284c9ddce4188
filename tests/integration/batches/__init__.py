"""Files and batches over a real gateway, worker, Postgres and Redis."""

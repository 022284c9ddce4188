"""More calls than the backends take, and backends that fail."""

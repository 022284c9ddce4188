"""Everything that is SQL: reads and writes of the tables in `models.tables`."""

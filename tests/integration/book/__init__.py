"""The book against a real Postgres, and a real Redis where charges come from one."""

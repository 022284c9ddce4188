"""The schema in the database: migrations, the program's role, and the rules that no table definition can hold."""

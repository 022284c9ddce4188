"""The nouns of Tollgate: frozen values and the tables. Imports the standard library only, but for `tables`."""

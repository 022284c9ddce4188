"""The counting house: pure arithmetic, the hot store (Redis) and the book (Postgres). Knows no HTTP."""

"""Real Postgres, Redis and llama.cpp from wheels, under a supervisor of our own: what `tollgate up` runs."""

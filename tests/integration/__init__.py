"""Tests against real Postgres, Redis and llama.cpp."""

"""All of Redis: holds, rate limits, balances projected from Postgres, and the stream of charges on their way there."""

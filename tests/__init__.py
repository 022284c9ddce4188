"""The tests: what is promised in the README, tried."""

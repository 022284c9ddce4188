"""The seeded simulation: many calls through the real machine, scripts and booking, in simulated time, with faults."""

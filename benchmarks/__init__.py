"""What a call costs: CPU and latency of the gateway beside nginx, in one run, on any machine. See README.md."""

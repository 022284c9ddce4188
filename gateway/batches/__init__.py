"""Batches at work: lines of files that become metered calls, one by one, where there is room for them."""

"""The journal on real disks, in real processes, and before a real Redis."""

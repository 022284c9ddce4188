"""The journal on the gateway's own disk: what a call must pay is here before its last byte leaves.

It owns files, not money: a record is bytes with a kind and a call id. It covers the seconds in which Redis cannot
answer, and the power loss that an append-only file written every second would lose. A segment is deleted when its owner
says that Postgres has booked all its calls, never before. Only `settles` knows what is inside the records.
"""

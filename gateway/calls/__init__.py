"""The call path: a state machine that does no I/O, and the drivers that own the sockets."""

"""The street and the hall: HTTP in, HTTP out, command line, wiring."""

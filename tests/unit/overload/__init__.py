"""Overload control: breakers, the waiting room, the retry budget, loop lag."""

"""Tests of each backend's habits against recorded answers."""

"""Tests of where calls go, on a whole Tollgate with scripted backends."""

"""Measurements: each file prints a table, checking results before it times anything."""

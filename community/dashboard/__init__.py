"""The dashboard, `community watch RUN`: reads a run's ledger and nothing else.

A screen is a file; what it asks of the ledger is in course.py, people.py, flows.py and
kin.py, which know nothing of terminals.
"""

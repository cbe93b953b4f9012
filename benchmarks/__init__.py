"""Measures Longshore, Celery and DBOS in one run, and compares the figures with targets: `make bench`."""

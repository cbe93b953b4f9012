"""Measures Longshore beside Celery and DBOS in one run, and holds its figures against targets: `make bench`."""

"""Schedules that start plans, and the Celery beat that reads them."""

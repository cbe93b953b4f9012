"""The contents of a Celery message: its canvas, its signature, its trace context."""

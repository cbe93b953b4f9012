"""Celery messages: their canvas, signature and trace context."""

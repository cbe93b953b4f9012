"""Metrics, counters, notifications, traces and logs."""

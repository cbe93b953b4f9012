"""Faults that are really injected, and what has to hold after each: `make faults`."""

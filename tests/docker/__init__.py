"""The operations on a real engine."""

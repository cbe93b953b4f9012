"""Tests with a real Docker engine."""

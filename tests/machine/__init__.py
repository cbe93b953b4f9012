"""Servers for the tests on a machine without them. This package imports only the standard library."""

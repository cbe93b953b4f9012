"""Tests without a server: plans, the reducer, the command line's errors, programs and files."""

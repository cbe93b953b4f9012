"""Tests of the record in Redis: scripts, reducer and coordinator on a real server."""

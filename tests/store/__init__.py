"""The record in Redis: scripts, reducer and driver on a real server."""

"""The Docker engine: its port and the client behind it."""

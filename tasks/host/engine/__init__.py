"""The Docker engine: the port that operations use, and the client that implements it."""

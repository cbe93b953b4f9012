"""The places where commands run: this host, or a container."""

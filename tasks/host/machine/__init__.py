"""The machine of a step: this host or a container, with the same calls for programs and files."""

"""The client of applications: start runs, read them, command them."""

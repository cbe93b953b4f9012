"""Checks of an installation, and the rights of its Redis users."""

"""Diagnosis of an installation, and the ACL of its Redis users."""

"""What is measured: each module has functions that take the bench and return figures."""

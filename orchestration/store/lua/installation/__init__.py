"""Scripts that are about no single run: each names its keys at its head."""

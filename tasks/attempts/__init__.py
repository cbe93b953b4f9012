"""One attempt at one step, from claim to outcome."""

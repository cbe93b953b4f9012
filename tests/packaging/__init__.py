"""The wheel, and what somebody gets who installs it."""

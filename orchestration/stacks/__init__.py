"""Stacks: inventory of deployed services, drift from their files and images, and the plan that restarts them."""

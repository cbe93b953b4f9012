"""What is deployed where, what of it is stale, and the plan that brings it right."""

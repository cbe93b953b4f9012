"""Reports, events and diagrams of runs."""

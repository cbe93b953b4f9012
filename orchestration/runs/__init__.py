"""Reading runs: reports, events, hooks, timelines, diagrams and search."""

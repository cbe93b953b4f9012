"""The machine that a worker runs on: its engine, programs, files and locks."""

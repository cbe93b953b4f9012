"""The values that a plan is written in: durations, templates, expressions, secrets, schedules."""

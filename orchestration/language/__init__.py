"""The vocabulary of plans: durations, templates, expressions, guards, params, secrets, targets, schedules."""

"""Scenarios that kill a script's mutants: one for each rule that a guard of a script is marked with."""

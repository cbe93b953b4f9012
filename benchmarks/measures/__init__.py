"""The measures: each module has functions that return figures of a bench."""

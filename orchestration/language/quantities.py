"""Numbers with their noun, in the singular or plural."""

from __future__ import annotations


def quantity(number: int, noun: str) -> str:
    """A number and a noun: `1 step`, `2 steps`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"

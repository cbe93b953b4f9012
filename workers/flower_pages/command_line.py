"""The check of Flower's command line: Flower itself ignores an argument that is none of its options."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

from flower.options import options


def problem(arguments: Iterable[str]) -> str:
    """The error about the first argument that is no option of Flower; '' if there is none. Values are not printed."""
    for argument in arguments:
        name = argument.partition("=")[0]
        if not name.startswith("-"):
            return "an argument is no option of Flower: write each option as --NAME=VALUE"
        if name.lstrip("-") not in options:
            near = get_close_matches(name.lstrip("-").replace("-", "_"), list(options), n=1)
            remedy = f"did you mean --{near[0]}?" if near else "see https://flower.readthedocs.io/en/latest/config.html"
            return f"Flower has no option {name}: {remedy}"
    return ""

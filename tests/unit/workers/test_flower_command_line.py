"""Flower's command line: unknown options are refused."""

from __future__ import annotations

import pytest

from longshore.workers.flower_pages.command_line import problem


@pytest.mark.parametrize(
    ("argument", "error"),
    [
        ("--readonly", "Flower has no option --readonly: did you mean --read_only?"),
        ("--no-such=secret", "Flower has no option --no-such: see https://flower.readthedocs.io"),
        ("user:secret", "an argument is no option of Flower: write each option as --NAME=VALUE"),
    ],
)
def test_argument_other_than_an_option_is_refused(argument: str, error: str) -> None:
    found = problem(["--debug", argument])
    assert found.startswith(error)
    assert "secret" not in found


def test_all_options_of_flower_are_accepted() -> None:
    assert not problem(["--read_only=true", "--url-prefix=flower", "--basic_auth=user:secret", "--debug", "-debug"])
    assert not problem([])

"""Parameters as reports show them."""

from __future__ import annotations

from typing import Any

import pytest

from longshore.orchestration.plans.shown_params import one_line, shown_params


@pytest.mark.parametrize(
    ("params", "shown"),
    [
        ({"version": "1.2", "n": 3, "dry": None, "hosts": ["a", "b"]}, None),
        ({"db_password": "plain", "api_token": 5}, {"db_password": "***", "api_token": "***"}),
        ({"env": {"PASSWORD": "plain", "MODE": "x"}}, {"env": {"PASSWORD": "***", "MODE": "x"}}),
        ({"tokens": ["one", "two"]}, {"tokens": ["***", "***"]}),
        # a reference and the name of a file are not secret
        ({"password": "{{ secret('env:LONGSHORE_SECRET_DB') }}", "password_file": "/run/secrets/db"}, None),
        ({"token": None}, None),
        ({"text": "x" * 300}, {"text": f"{'x' * 200}… (300 characters)"}),
        (
            {"many": ["x" * 100] * 9},
            {"many": f"{str(['x' * 100] * 9).replace(chr(39), chr(34))[:200]}… (936 characters)"},
        ),
    ],
    ids=str,
)
def test_secrets_are_hidden_and_long_values_shortened(params: dict[str, Any], shown: dict[str, Any] | None) -> None:
    assert shown_params(params) == (params if shown is None else shown)


def test_parameters_fit_in_one_line() -> None:
    assert one_line({"version": "1.2", "n": 3, "hosts": ["a", "ß"], "dry": None}) == (
        'version=1.2 n=3 hosts=["a", "ß"] dry=null'
    )
    assert one_line({}) == ""

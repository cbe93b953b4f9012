"""Inputs of several commands: the client, plans, parameters, durations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from longshore.orchestration.client.client import Client
from longshore.orchestration.errors import UsageError
from longshore.orchestration.language.durations import parse_duration
from longshore.orchestration.plans.loading import load, read_mapping
from longshore.orchestration.plans.model import Plan


def client() -> Client:
    """A client for this command, with the settings of the environment."""
    return Client()


def load_plan(name: str) -> Plan:
    """The plan of a file, or the stored plan of that name."""
    return load(name)


def read_params(plan: Plan, pairs: tuple[str, ...], file: str | None) -> dict[str, Any]:
    """Parameters from a file and from `-p name=value`; a `-p` overrides the file."""
    values = read_mapping(Path(file)) if file else {}
    for pair in pairs:
        name, sign, text = pair.partition("=")
        if not sign or not name:
            raise UsageError(f"-p {pair!r} is not name=value")
        values[name] = plan.params[name].parse(text) if name in plan.params else text
    return values


def read_duration(text: str, option: str) -> float:
    """The seconds of a duration such as 90s or 2h. UsageError names the option."""
    try:
        return parse_duration(text)
    except ValueError as error:
        raise UsageError(f"{option}: {error}") from None

"""Argument lists of Compose, without the program and the files of the project; `Compose.execute` runs them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

CONFIG = ["config", "--format", "json"]
HASHES = ["config", "--hash", "*"]
SERVICES = ["config", "--services"]
CHECK = ["config", "--quiet"]


def up(services: Sequence[str], options: Sequence[str] = ()) -> list[str]:
    return ["up", "--detach", "--no-build", "--pull", "never", *options, *services]


def create(services: Sequence[str], counts: Mapping[str, int]) -> list[str]:
    """Create containers and replace those that differ from the files, without a start."""
    return ["create", "--no-build", "--pull", "never", *scale(counts), *services]


def build(services: Sequence[str], *, no_cache: bool, pull: bool) -> list[str]:
    return ["build", *(["--no-cache"] if no_cache else []), *(["--pull"] if pull else []), *services]


def run(
    service: str, command: Sequence[str], *, name: str, labels: Mapping[str, str], user: str | None, workdir: str | None
) -> list[str]:
    """Create and start a one-off container of a service."""
    words = ["run", "--detach", "--no-deps", "--no-TTY", "--name", name]
    words += [word for key, value in labels.items() for word in ("--label", f"{key}={value}")]
    words += [*(["--user", user] if user else []), *(["--workdir", workdir] if workdir else [])]
    return [*words, service, *command]


def stop(services: Sequence[str], grace: float | None) -> list[str]:
    return ["stop", *timeout(grace), *services]


def down(grace: float | None, *, orphans: bool) -> list[str]:
    return ["down", *timeout(grace), *(["--remove-orphans"] if orphans else [])]


def timeout(grace: float | None) -> list[str]:
    return [] if grace is None else ["--timeout", str(round(grace))]


def scale(counts: Mapping[str, int]) -> list[str]:
    return [word for name, count in counts.items() for word in ("--scale", f"{name}={count}")]

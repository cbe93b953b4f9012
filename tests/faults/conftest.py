"""Fixtures of injected faults. LONGSHORE_FAULTS=long selects the long form, LONGSHORE_FAULTS_SEED repeats a seed."""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests import servers
from tests.integration.processes import Installation

LONG = os.environ.get("LONGSHORE_FAULTS") == "long"
SEED = int(os.environ.get("LONGSHORE_FAULTS_SEED") or random.SystemRandom().randrange(10**6))
#: The folder of the figures of the long form.
FIGURES = Path(__file__).resolve().parents[2] / "build" / "faults"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker("faults")


def pytest_report_header() -> str:
    return f"faults: seed {SEED}, {'long' if LONG else 'short'}"


@dataclass(frozen=True)
class Form:
    """The form of the tests, short or long, and the seed of their random numbers."""

    long: bool
    seed: int

    def of(self, short: Any, long: Any) -> Any:
        """Return the value for this form."""
        return long if self.long else short


@pytest.fixture
def form() -> Form:
    print(f"seed {SEED}")
    return Form(LONG, SEED)


@pytest.fixture
def figures(request: pytest.FixtureRequest, form: Form) -> Iterator[Callable[[str, Any], None]]:
    """A function that records a figure. The long form also stores the figures with the docstring of the test."""
    found: dict[str, Any] = {}
    began = time.monotonic()

    def note(name: str, value: Any) -> None:
        found[name] = value

    yield note
    found["took"] = f"{time.monotonic() - began:.0f} s"
    name = request.node.name.removeprefix("test_").replace("_", " ")
    print(f"\n{name} (seed {form.seed})")
    for key, value in found.items():
        print(f"  {key}: {value}")
    if form.long:
        FIGURES.mkdir(parents=True, exist_ok=True)
        (FIGURES / f"{request.node.name}.json").write_text(
            json.dumps({"test": name, "about": request.function.__doc__ or "", "seed": form.seed, "figures": found})
        )


@pytest.fixture
def own_redis(redis_server: servers.RedisServer) -> Iterator[servers.RedisServer]:
    """A Redis server of this test that writes each change to the disk before it answers."""
    with servers.RedisServer("--appendfsync", "always") as server:
        yield server


@pytest.fixture
def place(own_redis: servers.RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Installation]:
    """An installation with a lease of one second, whose workers import `tests.faults.effects`."""
    made = Installation(own_redis.url, tmp_path / "place")
    made.folder.mkdir()
    made.options = {
        "lease": "1s", "sweep_interval": "300ms", "connect_timeout": "5s", "imports": "tests.faults.effects",
    }  # fmt: skip
    monkeypatch.setenv("PYTHONPATH", made.pythonpath)
    monkeypatch.setenv("LONGSHORE_IMPORTS", "tests.faults.effects")
    import tests.faults.effects  # noqa: F401 - this process validates the plans

    yield made
    made.close()

"""How long each test makes things up: a few seconds in the suite, ten minutes in `make fuzz`."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from longshore.orchestration.settings import get_settings

#: Seconds of each test in the long form; 0 for the short one.
LONG = float(os.environ.get("LONGSHORE_FUZZ_SECONDS", "0"))
#: Seconds of CPU that one example may take; on an idle machine it takes less than one.
ONE = 10.0
#: KiB by which the process may grow.
MEMORY = 600 * 1024

settings.register_profile(
    "fuzz",
    deadline=None,
    max_examples=200 if LONG else 15,  # the long form repeats the test, each time with other examples
    derandomize=not LONG,
    database=None,
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(autouse=True)
def bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in list(os.environ):
        if name.startswith("LONGSHORE_") and name != "LONGSHORE_FUZZ_SECONDS":
            monkeypatch.delenv(name)
    monkeypatch.setenv("LONGSHORE_REDIS_URL", "redis://127.0.0.1:1/0")
    monkeypatch.setenv("LONGSHORE_STATE_DIR", str(tmp_path / "state"))
    get_settings.cache_clear()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    get_settings.cache_clear()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MEMORY


@pytest.fixture
def fuzz() -> Callable[[Callable[[], Any]], None]:
    """Run a test of Hypothesis for its time; it calls `run_limited` for each example."""

    def run(test: Callable[[], Any]) -> None:
        end = time.monotonic() + LONG
        while True:
            test()
            if time.monotonic() >= end:
                return

    return run


def run_limited(do: Callable[[], Any], *, clean: tuple[type[BaseException], ...]) -> Any:
    """Do one thing: it may fail as `clean` says, and in no other way, in the time of one example."""
    began = time.process_time()
    try:
        return do()
    except clean as error:
        str(error)
        return None
    finally:
        assert time.process_time() - began < ONE

"""Limits of the tests with random input. A test takes a few seconds in the suite, and ten minutes in `make fuzz`."""

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
#: The limit of processor time of one example, in seconds. On an idle machine an example takes less than one second.
EXAMPLE_LIMIT = 10.0
#: The limit of the growth of the process, in KiB.
MEMORY = 600 * 1024

settings.register_profile(
    "fuzz",
    deadline=None,
    max_examples=200 if LONG else 15,  # the long form repeats the test with other examples
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
    """A function that repeats a test of Hypothesis until the time is over."""

    def run(test: Callable[[], Any]) -> None:
        end = time.monotonic() + LONG
        while True:
            test()
            if time.monotonic() >= end:
                return

    return run


def run_limited(do: Callable[[], Any], *, clean: tuple[type[BaseException], ...]) -> Any:
    """Call a function, which may raise only the exceptions `clean`, within the limit of one example."""
    began = time.process_time()
    try:
        return do()
    except clean as error:
        str(error)
        return None
    finally:
        assert time.process_time() - began < EXAMPLE_LIMIT

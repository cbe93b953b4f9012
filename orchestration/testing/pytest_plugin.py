"""For pytest: the fixture `longshore_bench`, a fresh `longshore.orchestration.testing.Bench`."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest


@pytest.fixture
def longshore_sandbox() -> Any:
    """Runs plans in memory."""
    return import_module("longshore.orchestration.testing").Sandbox()

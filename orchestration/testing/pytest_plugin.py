"""pytest plugin with the fixture `longshore_sandbox`, a new `longshore.orchestration.testing.Sandbox`."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest


@pytest.fixture
def longshore_sandbox() -> Any:
    """A new sandbox, which runs plans in memory."""
    return import_module("longshore.orchestration.testing").Sandbox()

"""Fixtures that give each test default settings and an unusable Redis URL."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from longshore.orchestration.operations import base
from longshore.orchestration.settings import get_settings
from longshore.tasks import implementation as doing

settings.register_profile(
    "unit",
    deadline=None,
    max_examples=30,
    # CI uses fixed examples, so that an unchanged build does not fail; other machines try new examples.
    derandomize=os.environ.get("CI", "").lower() not in {"", "0", "false"},
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("unit")

#: No server listens on port 1: a test that connects by mistake fails immediately.
NOWHERE = "redis://127.0.0.1:1/0"


@pytest.fixture(autouse=True)
def own_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in list(os.environ):
        if name.startswith("LONGSHORE_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("LONGSHORE_REDIS_URL", NOWHERE)
    monkeypatch.setenv("LONGSHORE_STATE_DIR", str(tmp_path / "state"))
    get_settings.cache_clear()
    yield
    get_settings.cache_clear()


@pytest.fixture
def own_registry() -> Iterator[None]:
    """Reset the registry of operations after the test."""
    registries: list[dict[str, Any]] = [base._REGISTRY, doing._IMPLEMENTATIONS]
    before = [dict(registry) for registry in registries]
    yield
    for registry, known in zip(registries, before, strict=True):
        registry.clear()
        registry.update(known)

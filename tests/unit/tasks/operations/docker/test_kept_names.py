"""Tags that keep images for undos are limited by number and age, for each step of a plan."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from longshore.orchestration.settings import get_settings
from longshore.tasks.implementation import Context
from longshore.tasks.operations.docker.images import keep
from longshore.tasks.simulation.engine import MemoryEngine


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("LONGSHORE_STATE_DIR", str(tmp_path))
    get_settings.cache_clear()
    yield
    get_settings.cache_clear()


def kept_tags(docker: MemoryEngine) -> list[str]:
    return [tag for image in docker.images() for tag in image.tags if tag.startswith("longshore-keep/")]


def release(docker: MemoryEngine, number: int, step: str = "build") -> None:
    keep(Context(run_id=f"r{number}", step=step, plan="release"), docker, docker.add_image(f"shop:{number}"))


def test_step_keeps_the_images_of_its_latest_ten_runs() -> None:
    docker = MemoryEngine()

    for number in range(15):
        release(docker, number)
        release(docker, number, "other")

    names = kept_tags(docker)
    assert len(names) == 20
    assert not any(f":k-r{number}." in name for number in range(5) for name in names)


def test_tags_older_than_the_retention_are_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    docker = MemoryEngine()
    release(docker, 1)
    monkeypatch.setattr("time.time", lambda: 4e9)

    release(docker, 2)

    (name,) = kept_tags(docker)
    assert ":k-r2." in name

"""Fixtures for real servers. One that is missing skips the test on a laptop, and fails it where CI is set."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TypeVar

import pytest

from tests import servers

if TYPE_CHECKING:
    import docker

T = TypeVar("T")

#: The kinds of tests, those that take longest first: a long module that begins last would keep one process busy alone.
KINDS = ("docker", "packaging", "integration", "acceptance", "faults", "store", "unit")
FIRST = (
    "test_pages.py",
    "test_jobs.py",
    "test_jobs_interrupted.py",
    "test_orchestrate.py",
    "test_restarts.py",
    "test_deployment.py",
    "test_flower.py",
    "test_crashes.py",
    "test_compose_operations.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the modules that take longest; pytest-xdist hands out modules in this order."""
    root = Path(__file__).parent

    def order(item: pytest.Item) -> tuple[int, int, str]:
        kind = item.path.relative_to(root).parts[0]
        first = FIRST.index(item.path.name) if item.path.name in FIRST else len(FIRST)
        return first, KINDS.index(kind) if kind in KINDS else len(KINDS), str(item.path)

    items.sort(key=order)


def require(reason: str) -> NoReturn:
    """Something that a test needs is missing."""
    if os.environ.get("CI", "").lower() not in {"", "0", "false"}:
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def get(server: Callable[[], T]) -> T:
    try:
        return server()
    except servers.MissingError as missing:
        reason = str(missing)
    require(reason)


@dataclass(frozen=True)
class ComposeProject:
    """A name that no other project has, and an empty folder for its files."""

    name: str
    directory: Path


@pytest.fixture(scope="session")
def redis_server() -> Iterator[servers.RedisServer]:
    server = get(servers.RedisServer)
    try:
        get(server.start)
        yield server
    finally:
        server.close()


@pytest.fixture
def redis_url(redis_server: servers.RedisServer) -> str:
    """An empty Redis."""
    redis_server.flush()
    return redis_server.url


@pytest.fixture(scope="session")
def engine() -> Iterator[docker.APIClient]:
    """The Docker engine, with the image `servers.IMAGE` on it."""
    client = get(servers.connect_engine)
    try:
        get(lambda: servers.build_image(client))
        yield client
    finally:
        client.close()


@pytest.fixture
def compose_project(engine: docker.APIClient, tmp_path: Path) -> Iterator[ComposeProject]:
    get(servers.require_compose)
    name = f"{servers.PREFIX}{uuid.uuid4().hex[:8]}"
    directory = tmp_path / name
    directory.mkdir()
    try:
        yield ComposeProject(name, directory)
    finally:
        servers.remove_project(engine, name)

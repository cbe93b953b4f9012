"""Fixtures of real servers. If a server is missing, the test is skipped; if `CI` is set, the test fails."""

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

#: The kinds of tests in the order of their start, the slowest first. A slow module that starts last would run alone.
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
    """Order the modules by duration, the slowest first. pytest-xdist distributes modules in this order."""
    root = Path(__file__).parent

    def order(item: pytest.Item) -> tuple[int, int, str]:
        kind = item.path.relative_to(root).parts[0]
        first = FIRST.index(item.path.name) if item.path.name in FIRST else len(FIRST)
        return first, KINDS.index(kind) if kind in KINDS else len(KINDS), str(item.path)

    items.sort(key=order)


def require(reason: str) -> NoReturn:
    """Skip the test, or fail it if `CI` is set, because a requirement of the test is missing."""
    if os.environ.get("CI", "").lower() not in {"", "0", "false"}:
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def get(server: Callable[[], T]) -> T:
    """Return the result of a call. If the call raises `MissingError`, skip or fail the test."""
    try:
        return server()
    except servers.MissingError as missing:
        reason = str(missing)
    require(reason)


@dataclass(frozen=True)
class ComposeProject:
    """A unique project name, and an empty folder for the files of the project."""

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
    """A client of the Docker engine. The engine has the image `servers.IMAGE`."""
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

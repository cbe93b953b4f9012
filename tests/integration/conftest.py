"""Workers as processes, clients of these workers, and the logs of the workers for a failed test."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from longshore.orchestration import Client
from tests import servers
from tests.conftest import get
from tests.integration.processes import Installation, Worker

#: Short intervals, so that a test observes in seconds what takes a minute in production.
QUICK = {"lease": "1s", "sweep_interval": "300ms", "connect_timeout": "5s"}
MakeInstallation = Callable[..., Installation]

_installations: list[Installation] = []
_offsets: dict[Path, int] = {}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker("integration")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, None, None]:
    for log in _logs():
        _offsets[log] = log.stat().st_size
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        for log in _logs():
            text = log.read_bytes()[_offsets.get(log, 0) :].decode(errors="replace")
            if text:
                report.sections.append((f"log of {log.stem}", "\n".join(text.splitlines()[-120:])))
    return report


def _logs() -> list[Path]:
    return [worker.log for one in _installations for worker in one.workers if worker.log.exists()]


def _make(server: servers.RedisServer, folder: Path, options: dict[str, Any]) -> Installation:
    made = Installation(server.url, folder, **options)
    made.options = QUICK | made.options
    _installations.append(made)
    return made


def _close(installation: Installation) -> None:
    installation.close()
    _installations.remove(installation)


@pytest.fixture(scope="session")
def workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """An installation in the default name space, with a worker for all queues. For tests that kill no process.

    The installation has its own Redis, because other tests of this process flush the shared server.
    """
    folder = tmp_path_factory.mktemp("everyday")
    engine = f"unix://{folder / 'engine.sock'}"
    with get(servers.RedisServer) as server:
        made = _make(server, folder, {"namespace": "longshore", "docker_host": engine})
        try:
            made.worker("everyday", "--concurrency", "2", "--task-events").start()
            yield made
        finally:
            _close(made)


@pytest.fixture(scope="session")
def client(workers: Installation) -> Client:
    """A client of `workers`, with settings that do not depend on the environment."""
    return workers.client()


@pytest.fixture
def install(redis_server: servers.RedisServer, tmp_path: Path) -> Iterator[MakeInstallation]:
    """Create installations without workers, each in its own name space."""
    made: list[Installation] = []

    def make(**options: Any) -> Installation:
        folder = tmp_path / f"installation-{len(made)}"
        folder.mkdir()
        made.append(_make(redis_server, folder, options))
        return made[-1]

    yield make
    for installation in made:
        _close(installation)


@pytest.fixture(scope="module")
def module_installation(
    redis_server: servers.RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[MakeInstallation]:
    """Create installations that all tests of a module share."""
    made: list[Installation] = []

    def make(**options: Any) -> Installation:
        made.append(_make(redis_server, tmp_path_factory.mktemp("installation"), options))
        return made[-1]

    yield make
    for installation in made:
        _close(installation)


@pytest.fixture(scope="module")
def shop(module_installation: MakeInstallation) -> Installation:
    """An installation whose worker knows the operations of `own_operations`."""
    made = module_installation(options={"imports": "tests.integration.own_operations", "lease": "10s"})
    made.worker("shop", "-c", "4", PYTHONPATH=made.pythonpath).start()
    return made


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder with a path short enough for a socket."""
    with tempfile.TemporaryDirectory(prefix="ls-") as folder:
        yield Path(folder)


__all__ = ["MakeInstallation", "Worker"]

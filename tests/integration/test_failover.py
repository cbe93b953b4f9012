"""Failover with three Redis servers and three sentinels: no acknowledged write is lost."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from longshore.orchestration import AsyncClient, Event, Plan, StoreUnavailable, WaitTimeout
from longshore.orchestration.states import RunState
from tests import servers
from tests.integration.conftest import QUICK
from tests.integration.processes import PATIENCE, Installation, wait_for

pytestmark = pytest.mark.integration

_GROUP = "shop"


class Group:
    """A master with two replicas and three sentinels."""

    def __init__(self, folder: Path) -> None:
        safe = ("--min-replicas-to-write", "1", "--repl-diskless-sync-delay", "0")
        self.servers = [servers.RedisServer(*safe)]
        master = str(self.servers[0].port)
        self.servers += [servers.RedisServer(*safe, "--replicaof", "127.0.0.1", master) for _ in range(2)]
        self.ports = [servers.free_port() for _ in range(3)]
        self._folder = folder
        self._sentinels: list[subprocess.Popen[bytes]] = []

    @property
    def url(self) -> str:
        return f"sentinel://{','.join(f'127.0.0.1:{port}' for port in self.ports)}/{_GROUP}/0"

    def __enter__(self) -> Group:
        for server in self.servers:
            server.start()
        for port in self.ports:
            conf = self._folder / f"{port}.conf"
            conf.write_text(
                f"port {port}\nbind 127.0.0.1\ndir {self._folder}\n"
                f"sentinel monitor {_GROUP} 127.0.0.1 {self.servers[0].port} 2\n"
                f"sentinel down-after-milliseconds {_GROUP} 1000\nsentinel failover-timeout {_GROUP} 4000\n"
            )
            command = [servers.redis_program(), str(conf), "--sentinel"]
            self._sentinels.append(subprocess.Popen(command, stdout=subprocess.DEVNULL))
        wait_for("the replicas", lambda: self._ask(self.servers[0].port, "replication")["connected_slaves"] == 2)
        wait_for("the sentinels to agree", lambda: all(self._agrees(port) for port in self.ports))
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._sentinels:
            process.kill()
            process.wait()
        for server in self.servers:
            server.close()

    def kill_the_master(self) -> None:
        found = self.master()
        next(server for server in self.servers if server.port == found).stop(signal.SIGKILL)

    def master(self) -> int:
        """The port of the master, by the sentinels."""
        for port in self.ports:
            with contextlib.suppress(redis.RedisError), redis.Redis(port=port, decode_responses=True) as client:
                answer: list[str] = client.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", _GROUP)
                return int(answer[1])
        raise AssertionError("no sentinel answers")

    @staticmethod
    def _ask(port: int, section: str) -> dict[str, object]:
        with redis.Redis(port=port) as client:
            return dict(client.info(section))

    @staticmethod
    def _agrees(port: int) -> bool:
        with contextlib.suppress(redis.RedisError), redis.Redis(port=port, decode_responses=True) as client:
            state = client.sentinel_master(_GROUP)
            return state["num-slaves"] == 2 and state["num-other-sentinels"] == 2
        return False


@pytest.fixture
def group(tmp_path: Path) -> Iterator[Group]:
    folder = tmp_path / "sentinels"
    folder.mkdir()
    with Group(folder) as made:
        yield made


async def watched(place: Installation, run_id: str) -> list[Event]:
    """The events of a run by the asyncio client, which finds the master through the sentinels."""
    async with AsyncClient(place.settings) as client:
        return [event async for event in (await client.get(run_id)).watch()]


def test_failover_under_load_loses_no_acknowledged_write(group: Group, tmp_path: Path) -> None:
    place = Installation(group.url, tmp_path, options=QUICK | {"lease": "2s"})
    plan = Plan("deploy")
    first = plan.step("first", "noop.execute", sleep=0.1)
    writes = [
        plan.step(name, "file.deploy.execute", path=f"{tmp_path}/out/{{{{ run.id }}}}.{name}", content="x").after(first)
        for name in ("a", "b")
    ]
    plan.step("last", "noop.execute", sleep=0.1).after(*writes)
    (tmp_path / "out").mkdir()
    client, acknowledged = place.client(), []
    try:
        for n in range(2):
            place.worker(f"w{n}", "--concurrency", "2").start()
        killed = math.inf
        for n in itertools.count():
            if len(acknowledged) == 12 and killed == math.inf:
                group.kill_the_master()
                killed = time.monotonic()
            if len(acknowledged) == 30:
                break
            assert time.monotonic() < killed + PATIENCE, f"only {len(acknowledged)} starts succeeded"
            with contextlib.suppress(StoreUnavailable):
                acknowledged.append(client.start(plan, run_id=f"run-{n}"))
            time.sleep(0.1)

        try:
            reports = {run.id: run.wait(timeout=90) for run in acknowledged}
        except WaitTimeout as error:
            logs = "\n".join(worker.log.read_text(errors="replace")[-4000:] for worker in place.workers)
            running = {worker.node: worker.running for worker in place.workers}
            raise AssertionError(f"{error}\n{running}\n{logs}") from None
        assert {report.state for report in reports.values()} == {RunState.SUCCEEDED}
        there = {path.name for path in (tmp_path / "out").iterdir()}
        assert {f"{run_id}.{name}" for run_id in reports for name in ("a", "b")} <= there
        assert asyncio.run(watched(place, acknowledged[-1].id)) == acknowledged[-1].events()
    finally:
        place.close()

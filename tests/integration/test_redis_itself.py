"""Redis that is full, unreachable, without persistence, evicting, or found by Sentinel: errors and continuation."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from longshore.orchestration import Plan, StoreUnavailable, WaitTimeout
from longshore.orchestration.errors import RunLost
from tests import servers
from tests.integration.processes import PATIENCE, Installation, wait_for

QUICK = {"lease": "1s", "sweep_interval": "300ms", "connect_timeout": "2s"}


def noop(**params: object) -> Plan:
    plan = Plan("p")
    plan.step("a", "noop.execute", **params)
    return plan


@pytest.fixture
def without_persistence(
    redis_server: servers.RedisServer, tmp_path: Path
) -> Iterator[tuple[servers.RedisServer, Installation]]:
    """An installation with a Redis without persistence, and a worker."""
    with servers.RedisServer("--appendonly", "no", "--save", "") as server:
        place = Installation(server.url, tmp_path, options=QUICK | {"lease": "5s"})
        try:
            place.worker("one", "--concurrency", "2").start()
            yield server, place
        finally:
            place.close()


def test_wait_raises_after_redis_has_lost_all_data(
    without_persistence: tuple[servers.RedisServer, Installation],
) -> None:
    # given
    server, place = without_persistence
    run = place.run(noop(sleep=30))
    wait_for("the run to begin", lambda: run.state() == "running")
    doctor = place.longshore("doctor")

    # when
    server.restart(signal.SIGKILL)

    # then the wait raises an error
    with pytest.raises(RunLost, match=r"does not exist: it was pruned.*longshore doctor"):
        run.wait(PATIENCE)
    shown = place.longshore("runs", "show", run.id)
    assert (shown.code, "does not exist" in shown.err) == (2, True)
    assert "does not persist its data: appendonly is off" in doctor.out

    # and the worker, or its replacement, continues
    def done() -> bool:
        place.workers[0].keep_alive()  # a worker with kombu 5.7 may end when Redis ends
        with contextlib.suppress(WaitTimeout):
            return place.run(noop(), run_id="after").wait(2.0).exit_code == 0
        return False

    wait_for("another run to end", done)


def test_full_redis_is_one_error_and_loses_no_outcome(
    without_persistence: tuple[servers.RedisServer, Installation],
) -> None:
    # given a run with a running step
    _, place = without_persistence
    run = place.run(noop(sleep=2))
    wait_for("the run to begin", lambda: run.state() == "running")

    # when
    place.redis.config_set("maxmemory", "1")
    with pytest.raises(StoreUnavailable, match=r"maxmemory.*Redis has no memory left: raise its maxmemory"):
        place.run(noop())
    time.sleep(2.5)
    assert not run.report().ended
    place.redis.config_set("maxmemory", "0")

    # then the outcome has waited for free memory
    def ended() -> bool:
        place.workers[0].keep_alive()
        return run.report().ended

    wait_for("the end of the run", ended)
    assert (run.report().exit_code, run.report().step("a").attempts) == (0, 1)


def test_worker_refuses_to_start_with_a_redis_that_evicts(
    without_persistence: tuple[servers.RedisServer, Installation],
) -> None:
    _, place = without_persistence
    place.redis.config_set("maxmemory-policy", "allkeys-lru")

    worker = place.worker("two", "--concurrency", "1")
    worker.start(wait=False)
    wait_for("the worker to end", lambda: not worker.running)
    assert worker._process is not None
    assert worker._process.returncode == 2

    assert b"does not start: Redis may evict" in worker.log.read_bytes()
    assert place.longshore("doctor").code == 1


def test_start_without_redis_fails_within_the_timeout_in_one_line(tmp_path: Path) -> None:
    # given a closed port, and a port that never answers
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(1)
        plan = tmp_path / "plan.yaml"
        plan.write_text(noop().to_yaml())
        for port in (1, silent.getsockname()[1]):
            place = Installation(f"redis://:s3cret-word@127.0.0.1:{port}/0", tmp_path, options=dict(QUICK))
            began = time.monotonic()
            result = place.longshore("run", str(plan))
            assert time.monotonic() - began < 30.0
            assert result.code == 1
            assert len(result.err.splitlines()) == 1
            assert f"Redis at redis://127.0.0.1:{port}/0" in result.err
            assert "LONGSHORE_REDIS_URL" in result.err
            assert "s3cret-word" not in result.err


def test_sentinel_names_the_redis(redis_server: servers.RedisServer, tmp_path: Path) -> None:
    # given a sentinel for the server
    with servers.RedisServer() as server:
        port = servers.free_port()
        conf = tmp_path / "sentinel.conf"
        master = server.url.rpartition(":")[2].partition("/")[0]
        conf.write_text(
            f"port {port}\ndir {tmp_path}\nsentinel monitor shop 127.0.0.1 {master} 1\n"
            f"sentinel down-after-milliseconds shop 1000\n"
        )
        process = subprocess.Popen([servers.redis_program(), str(conf), "--sentinel"], stdout=subprocess.DEVNULL)
        place = Installation(f"sentinel://127.0.0.1:{port}/shop/0", tmp_path, options={**QUICK, "replicas": "0"})
        try:
            wait_for("the sentinel", lambda: _listens(port))
            worker = place.worker("one", "--concurrency", "1")
            worker.start()

            # then clients and workers find the server
            assert place.run(noop()).wait(PATIENCE).exit_code == 0
            assert place.longshore("runs", "ls").code == 0
        finally:
            place.close()
            process.terminate()
            process.wait()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0

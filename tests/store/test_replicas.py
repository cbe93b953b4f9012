"""Acknowledged writes wait for a replica if the settings require that; renewals of leases do not."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator

import pytest

from longshore.orchestration.errors import StoreUnavailable
from longshore.orchestration.store import connection
from tests.conftest import get
from tests.servers import RedisServer
from tests.store.stored_run import StoredRun


@pytest.fixture
def pair() -> Iterator[tuple[RedisServer, RedisServer]]:
    """A master and its replica."""
    at_once = ("--repl-diskless-sync-delay", "0")
    with contextlib.ExitStack() as stack:
        master = stack.enter_context(get(lambda: RedisServer(*at_once)))
        replica = stack.enter_context(RedisServer("--replicaof", "127.0.0.1", str(master.port), *at_once))
        client = replica.client()
        until = time.monotonic() + 30
        while client.info("replication")["master_link_status"] != "up":
            assert time.monotonic() < until
            time.sleep(0.05)
        yield master, replica
        os.kill(replica.pid, signal.SIGCONT)


def test_outcome_waits_for_a_replica(pair: tuple[RedisServer, RedisServer], monkeypatch: pytest.MonkeyPatch) -> None:
    master, replica = pair
    stored = StoredRun(master.url, replicas=1)
    try:
        stored.begin(0)
        stored.store.client.script_flush()
        grant = stored.claim(0)
        copy = replica.client()
        assert copy.hget(stored.keys.steps, "status:0") == "running"
        stored.redis.set(stored.keys.request, "{}")
        assert stored.store.command(stored.run_id, "cancel")
        assert copy.xlen(stored.keys.commands) == 1

        os.kill(replica.pid, signal.SIGSTOP)

        with monkeypatch.context() as brief:
            brief.setattr(connection, "_REPLICATION", 0.1)
            with pytest.raises(StoreUnavailable, match="fewer than the 1 required replicas"):
                stored.complete(0, grant.fence)
            with pytest.raises(StoreUnavailable, match="fewer than the 1 required replicas"):
                stored.store.command(stored.run_id, "cancel")
        assert stored.store.renew(stored.run_id, [("0", "task@one/1")]) == 0, "the lease of an ended step was renewed"
        os.kill(replica.pid, signal.SIGCONT)
        assert stored.complete(0, grant.fence).accepted, "the repeated outcome was refused"
        assert copy.hget(stored.keys.steps, "status:0") == "changed"
    finally:
        stored.close()


def test_lease_renewal_does_not_wait_for_a_replica(pair: tuple[RedisServer, RedisServer]) -> None:
    master, replica = pair
    stored = StoredRun(master.url, replicas=1)
    try:
        stored.begin(0)
        stored.claim(0, owner="task@one/1")
        os.kill(replica.pid, signal.SIGSTOP)
        assert stored.store.renew(stored.run_id, [("0", "task@one/")]) == 1
    finally:
        stored.close()

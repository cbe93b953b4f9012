"""Servers that do not answer, and servers other than Redis."""

from __future__ import annotations

import os
import signal
import socketserver
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from longshore.orchestration import Client, Plan, Settings, StoreUnavailable
from tests.servers import RedisServer

pytestmark = pytest.mark.store

TIMEOUT = 1.0


def client_of(url: str, folder: Path) -> Client:
    return Client(Settings(redis_url=url, state_dir=folder, connect_timeout=TIMEOUT, actor="ann"))


def plan() -> Plan:
    made = Plan("p")
    made.step("a", "noop.execute")
    return made


@contextmanager
def frozen(server: RedisServer) -> Iterator[None]:
    os.kill(server.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(server.pid, signal.SIGCONT)


@pytest.mark.parametrize("connected", [False, True])
def test_start_on_a_frozen_redis_fails_in_time(tmp_path: Path, connected: bool) -> None:
    with RedisServer() as server:
        client = client_of(server.url, tmp_path)
        if connected:
            client.start(plan())
        with frozen(server):
            began = time.monotonic()
            with pytest.raises(StoreUnavailable) as raised:
                client.start(plan())
            took = time.monotonic() - began
        client.close()

    assert took < TIMEOUT + 0.5
    assert "\n" not in str(raised.value)
    assert "Timeout reading" in str(raised.value)


class Web(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        self.request.recv(100)
        self.request.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")


def test_server_other_than_redis_is_reported(tmp_path: Path) -> None:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Web) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        client = client_of(f"redis://127.0.0.1:{server.server_address[1]}/0", tmp_path)
        with pytest.raises(StoreUnavailable, match=r"does not answer as Redis does: correct host and port"):
            client.start(plan())
        client.close()
        server.shutdown()

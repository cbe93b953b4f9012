"""The FastAPI example with its server and worker: runs, server-sent events, and cancellation."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from tests import servers
from tests.integration.conftest import MakeInstallation
from tests.integration.processes import PATIENCE
from tests.integration.web import call, process, wait_until_served

EXAMPLE = Path(__file__).parents[2] / "examples" / "fastapi"


@pytest.fixture(scope="module")
def url(module_installation: MakeInstallation) -> Iterator[str]:
    installation = module_installation(options={"imports": "operations"})
    folder = installation.folder
    installation.worker("shop", "-c", "1", PYTHONPATH=str(EXAMPLE)).start()
    port = servers.free_port()
    command = [sys.executable, "-m", "uvicorn", "application:app", "--port", str(port), "--app-dir", str(EXAMPLE)]
    with process(command, folder, installation.environment, folder / "server.log"):
        wait_until_served(f"http://127.0.0.1:{port}/orders/none", folder / "server.log")
        yield f"http://127.0.0.1:{port}"


def followed(url: str, after: str = "") -> Iterator[tuple[str, dict[str, str]]]:
    """Return the id and the data of each server-sent event."""
    headers = {"last-event-id": after} if after else {}
    with requests.get(url, headers=headers, timeout=PATIENCE, stream=True) as stream:
        event_id = ""
        for line in stream.iter_lines(chunk_size=1, decode_unicode=True):
            name, _, value = line.partition(": ")
            if name == "id":
                event_id = value
            if name == "data":
                yield event_id, json.loads(value)


def test_fastapi_example_runs(url: str) -> None:
    assert call(f"{url}/orders/o-1") == (404, {"detail": "no order o-1"})
    assert call(f"{url}/orders/o-1?amount=3", "PUT") == (202, {"run": "order-o-1", "attached": False})
    assert call(f"{url}/orders/o-1?amount=3", "PUT") == (202, {"run": "order-o-1", "attached": True})

    # the server sends events of a live run, and a reconnected viewer misses none
    events = followed(f"{url}/orders/o-1/events")
    seen = []
    for event_id, data in events:
        seen.append((event_id, data["event"]))
        if data["event"] == "step_waiting":
            assert call(f"{url}/orders/o-1/approve", "POST") == (202, {"answer": "done"})
    assert seen[-1][1] == "run_ended"
    assert [(one, data["event"]) for one, data in followed(f"{url}/orders/o-1/events", seen[2][0])] == seen[3:]
    assert call(f"{url}/orders/o-1")[1]["state"] == "succeeded"


def test_cancelled_order_is_refunded_with_sixty_watchers(url: str) -> None:
    call(f"{url}/orders/o-2?amount=3", "PUT")
    ends: list[str] = []

    def watch() -> None:
        ends.append([data["event"] for _, data in followed(f"{url}/orders/o-2/events")][-1])

    watchers = [threading.Thread(target=watch) for _ in range(60)]
    for watcher in watchers:
        watcher.start()
    for _, data in followed(f"{url}/orders/o-2/events"):
        if data["event"] == "step_waiting":
            assert call(f"{url}/orders/o-2/cancel", "POST") == (202, {"answer": "done"})
    for watcher in watchers:
        watcher.join(PATIENCE)

    assert ends == ["run_ended"] * 60
    status, order = call(f"{url}/orders/o-2")
    assert (status, order["state"]) == (200, "undone")
    assert "1 undone" in order["summary"]

"""Canvases of an application as runs on its own worker: results as in Celery, and compensations."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import chain, chord, group

from longshore.orchestration import Client, Plan, RunFailed
from longshore.orchestration.celery import durable
from tests.integration.processes import PATIENCE, Installation, fork_server, lines


@pytest.fixture(scope="module")
def sums(workers: Installation, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The application, with its own worker on the broker of Longshore."""
    folder = tmp_path_factory.mktemp("sums")
    mine = {"SUMS_BROKER": workers.redis_url, "SUMS_LEDGER": str(folder / "ledger")}
    os.environ |= mine
    sys.modules.pop("tests.integration.sums", None)
    from tests.integration import sums

    command = ["celery", "-A", "tests.integration.sums", "worker", "-c", "2", "-Q", "celery,sums"]
    environment = os.environ | {"PYTHONPATH": workers.pythonpath}
    worker = fork_server().start(command, env=environment, cwd=folder, log=folder / "sums.log", new_session=True)
    try:
        yield sums
    finally:
        os.killpg(worker.pid, signal.SIGKILL)
        worker.wait()
        sums.app.close()
        for name in mine:
            del os.environ[name]


@pytest.fixture
def ledger(sums: Any) -> Path:
    sums.LEDGER.write_text("")
    return Path(sums.LEDGER)


def shapes(sums: Any) -> dict[str, Any]:
    add, total = sums.add, sums.total
    return {
        "chain": chain(add.s(1, 2), add.s(3), add.si(4, 5), add.s(6)),
        "chord": chord([add.s(n, n) for n in range(3)], total.s()),
        "nested": chain(add.s(1, 1), group(add.s(1), chain(add.s(2), add.s(3))), total.s()),
        "group": group(chain(add.s(1, 1), group(add.s(1), add.s(2))), add.s(9, 9)),
        "starmap": add.starmap([(1, 2), (3, 4)]),
        "large": chain(sums.text.s(1_000_000), sums.length.s()),
    }


@pytest.mark.parametrize("shape", ["chain", "chord", "nested", "group", "starmap", "large"])
def test_canvas_run_returns_the_result_of_celery(sums: Any, client: Client, shape: str) -> None:
    signature = shapes(sums)[shape]

    durably = durable(signature, client=client).delay()
    of_celery = signature.apply_async().get(timeout=PATIENCE)

    assert durably.get(PATIENCE) == of_celery


@pytest.mark.parametrize("shape", ["chain", "chord", "nested"])
def test_failed_canvas_compensates_each_task_once_in_reverse(
    sums: Any, client: Client, ledger: Path, shape: str
) -> None:
    signature = chain(shapes(sums)[shape], sums.add.si(1, 666))
    undo = {sums.add: sums.subtract} | ({} if shape == "chain" else {sums.total: "none"})
    plan = Plan.from_canvas(signature, undo=undo)

    report = client.start(plan).wait(PATIENCE)

    assert (report.state, report.left_over) == ("undone", [])
    noted = lines(ledger)
    done = [line for line in noted if line.startswith("add")]
    undone = [line.replace("subtract", "add") for line in noted if line.startswith("subtract")]
    assert undone[0] == "add 1 666"
    assert sorted(undone[1:]) == sorted(done)
    if shape == "chain":
        assert undone[1:] == done[::-1]


def test_get_raises_the_failure_of_a_canvas(sums: Any, client: Client) -> None:
    failing = durable(chain(sums.add.s(1), sums.add.s(1)), undo={sums.add: sums.subtract}, client=client).delay(666)
    assert failing.get(PATIENCE) == 668
    with pytest.raises(RunFailed, match="an unlucky number"):
        durable(sums.add.s(666), undo={sums.add: sums.subtract}, client=client).delay(1).get(PATIENCE)


def test_canvas_options_reach_the_task(sums: Any, client: Client) -> None:
    asked = sums.headers.s().set(
        queue="sums", priority=6, soft_time_limit=40, time_limit=50, headers={"tenant": "a"}, expires=300
    )
    found = durable(asked, client=client).delay().get(PATIENCE)
    assert found == {"tenant": "a", "timelimit": [50, 40], "priority": 6, "queue": "sums"}


def test_countdown_of_a_canvas_is_a_timer_in_the_record(sums: Any, client: Client) -> None:
    began = time.monotonic()
    assert durable(sums.add.s(1, 2).set(countdown=1.5), client=client).delay().get(PATIENCE) == 3
    assert time.monotonic() - began >= 1.5

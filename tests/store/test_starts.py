"""Starts of runs with an id from the client."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from longshore.orchestration import Client, Plan, RunConflict, Settings
from longshore.orchestration.client import client as client_module
from longshore.orchestration.store.admission import Admission
from tests.servers import RedisServer

pytestmark = pytest.mark.store


@pytest.fixture
def client(redis_server: RedisServer, tmp_path: Path) -> Iterator[Client]:
    redis_server.flush()
    made = Client(Settings(redis_url=redis_server.url, state_dir=tmp_path))
    yield made
    made.close()


def plan() -> Plan:
    made = Plan("p")
    made.step("a", "noop.execute")
    return made


def test_two_starts_with_the_same_generated_id_are_two_runs(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = iter(["p-1", "p-1", "p-1", "p-2"])
    monkeypatch.setattr(client_module, "new_run_id", lambda _: next(chosen))

    runs = [client.start(plan()), client.start(plan())]

    assert [(run.id, run.attached) for run in runs] == [("p-1", False), ("p-2", False)]


def test_repeated_request_of_a_start_is_one_run(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    submit = Admission.submit

    def submit_twice(admission: Admission, *args: Any, **more: Any) -> dict[str, Any] | None:
        submit(admission, *args, **more)  # the answer is lost
        return submit(admission, *args, **more)

    monkeypatch.setattr(Admission, "submit", submit_twice)

    run = client.start(plan())

    assert not run.attached
    assert [found.id for found in client.runs()] == [run.id]
    assert client.store.client.llen(f"{client.settings.broker_prefix()}control") == 1


def test_events_of_a_large_run_are_read_in_pages(client: Client) -> None:
    # given a record with more events than one read returns
    run = client.start(plan())
    stream = client.store.keys.of(run.id).events
    with client.store.client.pipeline() as pipe:
        for number in range(2100):
            pipe.xadd(stream, {"event": "step_started", "at": number, "step": "0"})
        pipe.xadd(stream, {"event": "run_ended", "at": 2100, "state": "succeeded"})
        pipe.execute()

    # then
    found = run.events()
    assert [event.name for event in found].count("step_started") == 2100
    assert found[-1].name == "run_ended"


def test_start_with_a_used_id_returns_its_run_or_refuses_another_plan(client: Client) -> None:
    client.start(plan(), run_id="used")
    other = plan()
    other.step("b", "noop.execute")

    assert client.start(plan(), run_id="used").attached
    with pytest.raises(RunConflict) as refused:
        client.start(other, run_id="used")
    assert refused.value.exit_code == 2

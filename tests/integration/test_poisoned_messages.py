"""A message that no worker can process becomes a dead letter, and does not end a worker."""

from __future__ import annotations

import base64
import json
import os
from typing import Any

import pytest

from longshore.orchestration import Plan
from tests.integration.conftest import MakeInstallation
from tests.integration.processes import PATIENCE, Installation, fork_server, result_of, wait_for


def message(body: Any = None, headers: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    """A message as Celery sends it, with the given changes."""
    text = json.dumps([["run", 0], {}, {}] if body is None else body)
    known: dict[str, Any] = {"task": "longshore.step", "id": "x", "retries": 0, "timelimit": [None, None], "lang": "py"}
    given = {name: value for name, value in (known | (headers or {})).items() if value != "none"}
    return {
        "body": base64.b64encode(text.encode()).decode(),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": given,
        "properties": {
            "body_encoding": "base64",
            "delivery_tag": os.urandom(4).hex(),
            "delivery_info": {"exchange": "", "routing_key": "noop"},
            "correlation_id": "x",
        },
    } | more


def properties(**changes: Any) -> dict[str, Any]:
    made = message()["properties"] | changes
    return {name: value for name, value in made.items() if value != "none"}


POISON: dict[str, bytes] = {
    name: value if isinstance(value, bytes) else json.dumps(value).encode()
    for name, value in {
        "no JSON": b"{nonsense",
        "bytes": b"\xff\xfe\x00",
        "a list": [1, 2],
        "an empty object": {},
        "bad base64": message(body=None) | {"body": "not base64!"},
        "an object as body": message({"a": 1}),
        "a body of two elements": message([[], {}]),
        "invalid arguments": message(["x", {}, {}]),
        "bad time limits": message(headers={"timelimit": "soon"}),
        "bad time limits in a list": message(headers={"timelimit": ["a", "b"]}),
        "bad stamps": message(headers={"stamped_headers": 7}),
        "no id": message(headers={"id": "none"}),
        "an invalid id": message(headers={"id": 7}),
        "no task": message(headers={"task": "none"}),
        "an unknown task": message(headers={"task": "foreign.task"}),
        "an invalid task name": message(headers={"task": ["x"]}),
        "pickle": message(**{"content-type": "application/x-python-serialize", "content-encoding": "binary"}),
        "an invalid eta": message(headers={"eta": "tomorrow"}),
        "an invalid expiry": message(headers={"expires": 7}),
        "deep": b"[" * 100_000 + b"]" * 100_000,
        "a deep body": message() | {"body": base64.b64encode(b"[" * 100_000 + b"]" * 100_000).decode()},
        "false gzip": message(headers={"compression": "application/x-gzip"}),
        "no tag": message(properties=properties(delivery_tag="none")),
        "no routing": message(properties=properties(delivery_info="none")),
        "no headers": message() | {"headers": None},
        "invalid retries": message(headers={"retries": "many"}),
    }.items()
}


@pytest.fixture(scope="module")
def place(module_installation: MakeInstallation) -> Installation:
    made = module_installation()
    made.worker("one", "--concurrency", "2").start()
    return made


@pytest.mark.parametrize("queue", ["noop", "control"])
def test_invalid_message_becomes_a_dead_letter_and_the_worker_continues(place: Installation, queue: str) -> None:
    # given
    worker = place.workers[0]
    process = worker._process
    before = len(place.client().store.dead_letters())

    # when
    place.redis.lpush(place.queue_key(queue), *POISON.values())
    wait_for("the queue to be empty", lambda: not place.queue(queue))
    plan = Plan("after")
    plan.step("a", "noop.execute")
    report = place.run(plan).wait(PATIENCE)

    # then
    assert report.exit_code == 0
    assert worker.running
    assert worker._process is process
    letters = place.client().store.dead_letters()[: len(POISON)]
    assert len(place.client().store.dead_letters()) - before == len(POISON)
    assert all(entry["why"] and entry["queue"].endswith(queue) for entry in letters)
    # and the message is not redelivered
    unacked = f"{place.settings.broker_prefix()}unacked"
    wait_for("the last good message to be acknowledged", lambda: place.redis.hlen(unacked) == 0)


def test_worker_answers_remote_control(place: Installation) -> None:
    """The answers to `celery inspect` and Flower are messages in a queue, too."""
    command = ["celery", "-A", "longshore.workers", "inspect", "ping", "--timeout", "3"]
    result = result_of(fork_server().start(command, env=place.environment, cwd=place.folder))

    assert "pong" in result.out, result.out + result.err
    assert not any("pidbox" in entry["queue"] for entry in place.client().store.dead_letters())


def test_message_of_longshore_is_no_dead_letter(place: Installation) -> None:
    from longshore.workers.transport import fault

    good = json.dumps(message()).encode()
    assert fault(good) == ""
    assert all(fault(raw) for raw in POISON.values())

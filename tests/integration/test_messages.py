"""Messages on the broker: chords and chains, with ids only."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from typing import Any

import pytest

from longshore.orchestration import Plan
from tests.integration.conftest import MakeInstallation
from tests.integration.processes import Installation, wait_for

#: A text in parameters, descriptions and contents that no message may contain.
CANARY = "canary-7f3a9c"


@dataclass(frozen=True)
class Message:
    raw: bytes
    headers: dict[str, Any]
    args: list[Any]
    kwargs: dict[str, Any]
    #: Callbacks, errbacks, chain and chord of the message.
    embedded: dict[str, Any]

    @classmethod
    def of(cls, raw: bytes) -> Message:
        envelope = json.loads(raw)
        assert envelope["properties"]["body_encoding"] == "base64"
        args, kwargs, embedded = json.loads(base64.b64decode(envelope["body"]))
        return cls(raw, envelope["headers"], args, kwargs, embedded)

    @property
    def chain(self) -> list[dict[str, Any]]:
        """The following links in order; Celery stores the links in reverse."""
        return list(reversed(self.embedded["chain"] or []))

    @property
    def text(self) -> bytes:
        """The whole message as text, decoded."""
        return self.raw + json.dumps([self.args, self.kwargs, self.embedded]).encode()


@pytest.fixture(scope="module")
def quiet(module_installation: MakeInstallation) -> Installation:
    """Workers for control, noop and command; messages in other queues and in undo queues stay there.

    The lease is long, so that no message is resent during a test.
    """
    made = module_installation(options={"lease": "10m"})
    made.worker("some", "--concurrency", "2", "--queues", "control,noop,command").start()
    return made


def messages(installation: Installation, queue: str, count: int) -> list[Message]:
    """Wait for `count` messages in a queue, and remove them."""
    wait_for(f"{count} messages in {queue}", lambda: len(installation.queue(queue)) >= count)
    found = installation.queue(queue)
    assert len(found) == count
    installation.redis.delete(installation.queue_key(queue))
    return [Message.of(raw) for raw in found]


def deploy(name: str) -> dict[str, Any]:
    return {"path": f"/nowhere/{CANARY}/{name}", "content": CANARY * 10}


def test_start_sends_one_message_for_the_root_task(install: MakeInstallation) -> None:
    # given an installation without workers
    idle = install()
    plan = Plan("release", params={"secret": str})
    plan.step("a", "noop.execute", data={"x": "{{ params.secret }}"})

    # when
    run = idle.run(plan, secret=CANARY)

    # then
    (start,) = messages(idle, "control", 1)
    assert start.headers["task"] == "longshore.advance"
    assert start.headers["id"] == start.headers["root_id"] == run.id
    assert start.headers["shadow"] == "release"
    assert (start.args, start.kwargs) == ([run.id], {})
    assert CANARY.encode() not in start.text
    assert len(start.raw) < 2048


def test_level_of_several_steps_is_one_chord(quiet: Installation) -> None:
    # given
    plan = Plan("release", description=CANARY)
    before = plan.step("before", "noop.execute")
    for name in ("one", "two", "three"):
        plan.step(name, "file.deploy.execute", **deploy(name)).after(before)

    # when
    run = quiet.run(plan)
    found = messages(quiet, "file", 3)

    # then the level is one group, whose body advances the run
    assert len({message.headers["group"] for message in found}) == 1
    assert found[0].headers["group"]
    assert sorted(message.args for message in found) == [[run.id, 1], [run.id, 2], [run.id, 3]]
    for message in found:
        body = message.embedded["chord"]
        assert body["task"] == "longshore.advance"
        assert (body["args"], body["kwargs"]) == ([run.id], {})
        assert body["options"]["queue"] == "control"
        assert not message.chain
    # and Flower shows the names of the steps in one tree, without parameters
    by_index = sorted(found, key=lambda message: int(message.args[1]))
    for message, name in zip(by_index, ("one", "two", "three"), strict=True):
        headers = message.headers
        assert headers["task"] == "longshore.step"
        assert (headers["root_id"], headers["parent_id"]) == (run.id, run.id)
        assert headers["shadow"] == f"release.{name}"
        assert headers["argsrepr"] == f"({run.id!r}, {name!r})"
        assert headers["kwargsrepr"] == "{}"
        assert message.kwargs == {}
        assert CANARY.encode() not in message.text
        assert headers["ignore_result"] is True


def test_levels_of_one_step_are_chains_of_at_most_eight_links(quiet: Installation) -> None:
    # given
    plan = Plan("release", sequential=True)
    for number in range(20):
        plan.step(f"s{number}", "file.deploy.execute", **deploy(str(number)))

    # when
    run = quiet.run(plan)
    (first,) = messages(quiet, "file", 1)

    # then
    links = [first.args, *(link["args"] for link in first.chain)]
    assert links == [[run.id, number] for number in range(8)]
    assert {link["task"] for link in first.chain} == {"longshore.step"}
    assert [link["options"]["shadow"] for link in first.chain] == [f"release.s{number}" for number in range(1, 8)]
    assert {link["options"]["root_id"] for link in first.chain} == {run.id}
    assert {link["options"]["queue"] for link in first.chain} == {"file"}
    assert first.headers["root_id"] == run.id
    assert first.headers["shadow"] == "release.s0"
    assert first.embedded["chord"] is None
    assert CANARY.encode() not in first.text


def test_chain_message_ends_before_a_level_of_several_steps(quiet: Installation) -> None:
    # given
    plan = Plan("release")
    first = plan.step("first", "file.deploy.execute", **deploy("first"))
    second = plan.step("second", "file.deploy.execute", **deploy("second")).after(first)
    left = plan.step("left", "file.deploy.execute", **deploy("left")).after(second)
    right = plan.step("right", "file.deploy.execute", **deploy("right")).after(second)
    plan.step("last", "file.deploy.execute", **deploy("last")).after(left, right)

    # when
    run = quiet.run(plan)
    (message,) = messages(quiet, "file", 1)

    # then
    assert [message.args, *(link["args"] for link in message.chain)] == [[run.id, 0], [run.id, 1]]


def test_undo_of_several_steps_is_one_chord_on_the_undo_queue(quiet: Installation) -> None:
    # given
    plan = Plan("release")
    left = plan.step("left", "noop.execute", data={"x": CANARY})
    right = plan.step("right", "noop.execute", data={"x": CANARY})
    plan.step("bad", "command.exec.execute", argv=["ls", f"/{CANARY}"], changes=False).after(left, right)

    # when
    run = quiet.run(plan)
    found = messages(quiet, "noop.undo", 2)

    # then
    assert {message.headers["task"] for message in found} == {"longshore.undo"}
    assert sorted(message.headers["shadow"] for message in found) == ["release.left (undo)", "release.right (undo)"]
    assert len({message.headers["group"] for message in found}) == 1
    assert {message.embedded["chord"]["task"] for message in found} == {"longshore.advance"}
    assert {message.headers["root_id"] for message in found} == {run.id}
    assert all(message.headers["argsrepr"].startswith(f"({run.id!r}, ") for message in found)
    assert not any(CANARY.encode() in message.text for message in found)


def test_undo_of_the_plan_goes_to_the_queue_of_its_operation(quiet: Installation) -> None:
    # given
    plan = Plan("release")
    first = plan.step("first", "noop.execute").undo("command.exec.execute", argv=["echo", CANARY])
    plan.step("last", "command.exec.execute", argv=["false"], changes=False).after(first)

    # when
    run = quiet.run(plan)
    (message,) = messages(quiet, "command.undo", 1)

    # then
    assert (message.headers["task"], message.args) == ("longshore.undo", [run.id, 0])
    assert message.headers["shadow"] == "release.first (undo)"
    assert message.headers["root_id"] == run.id
    assert CANARY.encode() not in message.text


@pytest.mark.parametrize("shape", ["chord", "chain"])
def test_message_size_is_independent_of_the_plan(quiet: Installation, shape: str) -> None:
    def largest(steps: int, run_id: str) -> int:
        plan = Plan("p", description=CANARY * steps, sequential=shape == "chain")
        for number in range(steps):
            plan.step(f"s{number:04}", "file.deploy.execute", **deploy(str(number)))
        quiet.run(plan, run_id)
        found = messages(quiet, "file", 1 if shape == "chain" else steps)
        assert not any(CANARY.encode() in message.text for message in found)
        return max(len(message.raw) for message in found)

    # given, when
    small, large = largest(10, f"{shape}-small"), largest(400, f"{shape}-large")

    # then
    assert large - small < 32
    assert large < (8192 if shape == "chain" else 3072)

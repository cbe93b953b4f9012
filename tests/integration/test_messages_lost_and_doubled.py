"""A message is a hint: a lost message is resent, and a duplicate has no effect."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from longshore.orchestration import Plan
from longshore.orchestration.client.request import request_body
from longshore.orchestration.store.admission import Admission
from tests.integration.conftest import MakeInstallation
from tests.integration.processes import PATIENCE, Installation, lines, names, wait_for


@pytest.fixture(scope="module")
def held(module_installation: MakeInstallation) -> Installation:
    """An installation with a control worker only; a test starts the worker for the steps."""
    made = module_installation()
    made.worker("control", "--concurrency", "1", "--queues", "control,noop.undo").start()
    return made


def appended(folder: Path, name: str) -> str:
    return f"echo {name} >> {folder}/count"


def waiting(installation: Installation, queue: str, count: int = 1) -> list[bytes]:
    """Wait for `count` messages in a queue, and return the first ones. Messages may have been resent meanwhile."""
    wait_for(f"{count} messages in {queue}", lambda: len(installation.queue(queue)) >= count)
    return installation.queue(queue)[:count]


def test_lost_message_is_resent(held: Installation, tmp_path: Path) -> None:
    # given
    plan = Plan("lossy")
    left = plan.step("left", "file.deploy.execute", path=f"{tmp_path}/left", content="x")
    right = plan.step("right", "file.deploy.execute", path=f"{tmp_path}/right", content="x")
    plan.step("after", "file.deploy.execute", path=f"{tmp_path}/after", content="x").after(left, right)
    run = held.run(plan)
    waiting(held, "file", 2)

    # when a worker pops the messages and dies before it registers them as unacknowledged
    held.redis.delete(held.queue_key("file"))
    lost = time.monotonic()

    # then
    waiting(held, "file", 2)
    assert time.monotonic() - lost < 10.0
    assert set(names(run, "message_resent")) == {"left", "right"}
    with held.worker("files", "--concurrency", "1", "--queues", "file"):
        report = run.wait(PATIENCE)
    assert report.exit_code == 0
    assert [step.attempts for step in report.steps] == [1, 1, 1]


def test_message_that_waits_behind_others_is_not_resent(held: Installation, tmp_path: Path) -> None:
    # given steps whose messages wait in their queue for longer than a lease
    plan = Plan("behind")
    for n in range(4):
        plan.step(f"s{n}", "file.deploy.execute", path=f"{tmp_path}/{n}", content="x")
    run = held.run(plan)
    waiting(held, "file", 4)
    # On a busy machine, the sweeper may resend messages that are not in the queue within a lease.
    time.sleep(1.5)
    sent = held.queue("file")
    assert {step_of(message) for message in sent} == {f"behind.s{n}" for n in range(4)}
    resent = len(names(run, "message_resent"))

    # when the message of one step is lost, and three leases pass
    lost = [message for message in sent if step_of(message) == "behind.s1"]
    for message in lost:
        held.redis.lrem(held.queue_key("file"), 0, message)
    time.sleep(3.0)

    # then the others have no duplicate, and the lost one is resent after the earlier messages
    assert held.queue("file") == [message for message in sent if message not in lost]
    assert len(names(run, "message_resent")) == resent
    with held.worker("files", "--concurrency", "1", "--queues", "file"):
        report = run.wait(PATIENCE)
    assert report.exit_code == 0
    assert names(run, "message_resent")[resent:] == ["s1"]


def step_of(message: bytes) -> str:
    """The name of the step of a message, as Flower shows it."""
    return str(json.loads(message)["headers"]["shadow"])


def test_message_delivered_three_times_is_executed_once(held: Installation, tmp_path: Path) -> None:
    # given a chord of two, and a chain after it
    plan = Plan("echo")
    left = plan.step("left", "command.shell.execute", command=appended(tmp_path, "left"))
    right = plan.step("right", "command.shell.execute", command=appended(tmp_path, "right"))
    slow = plan.step("slow", "command.shell.execute", command=appended(tmp_path, "slow") + "; sleep 1")
    slow.after(left, right)
    plan.step("last", "command.shell.execute", command=appended(tmp_path, "last")).after(slow)
    run = held.run(plan)
    chord = waiting(held, "command", 2)

    # when all messages are redelivered, at once and after the end
    held.redis.lpush(held.queue_key("command"), *chord, *chord)
    with held.worker("commands", "--concurrency", "2", "--queues", "command"):
        wait_for("the chain to begin", lambda: "slow" in names(run, "step_started"))
        held.redis.lpush(held.queue_key("command"), *chord)
        report = run.wait(PATIENCE)
        held.redis.lpush(held.queue_key("command"), *chord)
        wait_for("the worker to receive the duplicates", lambda: not held.queue("command"))

    # then
    assert report.exit_code == 0
    assert [step.attempts for step in report.steps] == [1, 1, 1, 1]
    assert sorted(lines(tmp_path / "count")) == ["last", "left", "right", "slow"]
    assert lines(tmp_path / "count")[2:] == ["slow", "last"]
    assert run.report().state == "succeeded"


def test_chain_delivered_twice_runs_once(held: Installation, tmp_path: Path) -> None:
    # given
    plan = Plan("echo", sequential=True)
    for number in range(4):
        plan.step(f"s{number}", "command.shell.execute", command=appended(tmp_path, str(number)))
    run = held.run(plan)
    (first,) = waiting(held, "command")

    # when
    held.redis.lpush(held.queue_key("command"), first, first)
    with held.worker("links", "--concurrency", "2", "--queues", "command"):
        report = run.wait(PATIENCE)

    # then
    assert report.exit_code == 0
    assert lines(tmp_path / "count") == ["0", "1", "2", "3"]


def test_undo_message_that_is_lost_and_then_doubled_is_executed_once(held: Installation, tmp_path: Path) -> None:
    # given a run whose undo waits for a worker
    plan = Plan("backwards")
    step = plan.step("first", "noop.execute").undo("command.shell.execute", command=appended(tmp_path, "back"))
    plan.step("last", "noop.execute", fail=True).after(step)
    run = held.run(plan)
    with held.worker("noops", "--concurrency", "1", "--queues", "noop"):
        waiting(held, "command.undo")

    # when
    held.redis.delete(held.queue_key("command.undo"))
    (again,) = waiting(held, "command.undo")
    held.redis.lpush(held.queue_key("command.undo"), again, again)
    with held.worker("undos", "--concurrency", "2", "--queues", "command.undo"):
        report = run.wait(PATIENCE)

    # then
    assert report.state == "undone"
    assert lines(tmp_path / "count") == ["back"]
    undo = report.step("first").undo
    assert undo is not None
    assert undo.attempts == 1


def test_run_begins_by_a_sweep_after_a_lost_first_message(held: Installation) -> None:
    # given
    client = held.client()
    plan = Plan("unheard")
    plan.step("only", "noop.execute")

    # when a client writes a request, and dies before it sends the message
    Admission(client.store).submit("unheard", request_body(plan, {}, "tester"))

    # then the next sweep finds the run
    run = client.get("unheard")
    wait_for("the run to begin", lambda: run.state() == "running", 15.0)
    with held.worker("starters", "--concurrency", "1", "--queues", "noop"):
        assert run.wait(PATIENCE).exit_code == 0

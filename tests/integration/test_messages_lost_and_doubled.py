"""A message is only a hint: lost, it is sent again; twice there, it is done once."""

from __future__ import annotations

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
    """Control work is done; the steps wait until a test starts a worker for their queue."""
    made = module_installation()
    made.worker("control", "--concurrency", "1", "--queues", "control,noop.undo").start()
    return made


def appended(folder: Path, name: str) -> str:
    return f"echo {name} >> {folder}/count"


def waiting(installation: Installation, queue: str, count: int = 1) -> list[bytes]:
    """The first messages of a queue, once there are so many; a slow test may find them sent again already."""
    wait_for(f"{count} messages in {queue}", lambda: len(installation.queue(queue)) >= count)
    return installation.queue(queue)[:count]


def test_a_lost_message_is_sent_again(held: Installation, tmp_path: Path) -> None:
    # given
    plan = Plan("lossy")
    left = plan.step("left", "file.deploy.execute", path=f"{tmp_path}/left", content="x")
    right = plan.step("right", "file.deploy.execute", path=f"{tmp_path}/right", content="x")
    plan.step("after", "file.deploy.execute", path=f"{tmp_path}/after", content="x").after(left, right)
    run = held.run(plan)
    waiting(held, "file", 2)

    # when they are popped by a worker that dies before it has noted them
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


def test_a_message_that_waits_behind_others_is_not_sent_again(held: Installation, tmp_path: Path) -> None:
    # given steps whose messages wait in their queue for longer than a lease
    plan = Plan("behind")
    for n in range(4):
        plan.step(f"s{n}", "file.deploy.execute", path=f"{tmp_path}/{n}", content="x")
    run = held.run(plan)
    messages = waiting(held, "file", 4)

    # when one of them is lost, and three leases pass
    held.redis.lrem(held.queue_key("file"), 1, messages[1])
    time.sleep(3.0)

    # then the others are not doubled, and the lost one is sent again as soon as those before it are gone
    assert held.queue("file") == [messages[0], *messages[2:]]
    assert names(run, "message_resent") == []
    with held.worker("files", "--concurrency", "1", "--queues", "file"):
        report = run.wait(PATIENCE)
    assert report.exit_code == 0
    assert len(names(run, "message_resent")) == 1


def test_a_message_that_is_there_three_times_is_done_once(held: Installation, tmp_path: Path) -> None:
    # given a chord of two, and a chain after it
    plan = Plan("echo")
    left = plan.step("left", "command.shell.execute", command=appended(tmp_path, "left"))
    right = plan.step("right", "command.shell.execute", command=appended(tmp_path, "right"))
    slow = plan.step("slow", "command.shell.execute", command=appended(tmp_path, "slow") + "; sleep 1")
    slow.after(left, right)
    plan.step("last", "command.shell.execute", command=appended(tmp_path, "last")).after(slow)
    run = held.run(plan)
    chord = waiting(held, "command", 2)

    # when all of it is delivered again, at once and after the end
    held.redis.lpush(held.queue_key("command"), *chord, *chord)
    with held.worker("commands", "--concurrency", "2", "--queues", "command"):
        wait_for("the chain to begin", lambda: "slow" in names(run, "step_started"))
        held.redis.lpush(held.queue_key("command"), *chord)
        report = run.wait(PATIENCE)
        held.redis.lpush(held.queue_key("command"), *chord)
        wait_for("the late ones to be taken", lambda: not held.queue("command"))

    # then
    assert report.exit_code == 0
    assert [step.attempts for step in report.steps] == [1, 1, 1, 1]
    assert sorted(lines(tmp_path / "count")) == ["last", "left", "right", "slow"]
    assert lines(tmp_path / "count")[2:] == ["slow", "last"]
    assert run.report().state == "succeeded"


def test_the_first_link_of_a_chain_delivered_twice_runs_the_chain_once(held: Installation, tmp_path: Path) -> None:
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


def test_an_undo_that_is_lost_and_then_there_twice_is_done_once(held: Installation, tmp_path: Path) -> None:
    # given a run whose undo nobody takes
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


def test_a_run_whose_first_message_is_lost_begins_all_the_same(held: Installation) -> None:
    # given
    client = held.client()
    plan = Plan("unheard")
    plan.step("only", "noop.execute")

    # when a client writes its request, and dies before it sends its message
    Admission(client.store).submit("unheard", request_body(plan, {}, "tester"))

    # then the next sweep finds it
    run = client.get("unheard")
    wait_for("the run to begin", lambda: run.state() == "running", 15.0)
    with held.worker("starters", "--concurrency", "1", "--queues", "noop"):
        assert run.wait(PATIENCE).exit_code == 0

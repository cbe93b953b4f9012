"""Workers that were stopped for longer than their lease, and a Redis that forgot: refused at the target as well."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from longshore.orchestration import Plan, Run
from tests.integration.conftest import MakeInstallation
from tests.integration.processes import PATIENCE, Installation, Worker, lines, names, wait_for


@pytest.fixture
def pair(install: MakeInstallation) -> Iterator[Installation]:
    made = install()
    for name in ("one", "two"):
        made.worker(name, "--concurrency", "1").start(wait=False)
    for worker in made.workers:
        worker.wait_until_ready()
    yield made
    for worker in made.workers:
        worker.signal_group(signal.SIGCONT)


def at_work(pair: Installation, run: Run, step: str) -> Worker:
    def owner() -> str | None:
        started = [event for event in run.events() if event.name == "step_started" and event.step == step]
        return started[0].fields["owner"] if started else None

    node = wait_for(f"{step} to begin", owner).partition("@")[2].partition("/")[0]
    return pair.at(node)


def test_a_stopped_worker_does_nothing_after_its_step_was_taken_back(pair: Installation, tmp_path: Path) -> None:
    """Its command goes on while it is stopped: whoever takes the step back ends it first."""
    # given a step that would do its work in some seconds, and can be taken back
    plan = Plan("ghost")
    work = plan.step(
        "work", "command.shell.execute", command=f"echo begun >> {tmp_path}/log; sleep 4; echo late >> {tmp_path}/log"
    )
    work.undo("command.shell.execute", command=f"echo undone >> {tmp_path}/log")
    run = pair.run(plan)
    wait_for("the command", lambda: lines(tmp_path / "log"))
    ghost = at_work(pair, run, "work")

    # when
    ghost.signal_group(signal.SIGSTOP)
    report = run.wait(PATIENCE)
    ended = time.monotonic()
    ghost.signal_group(signal.SIGCONT)

    # then
    assert (report.state, report.step("work").status) == ("undone", "unknown")
    time.sleep(max(0.0, 4.5 - (time.monotonic() - ended)))
    assert lines(tmp_path / "log") == ["begun", "undone"]


def test_a_stopped_worker_does_nothing_after_its_step_was_done_again(pair: Installation, tmp_path: Path) -> None:
    # given a step that can be repeated, and is slow only the first time
    text = f"echo try >> {tmp_path}/log; test -e {tmp_path}/once || {{ touch {tmp_path}/once; sleep 3; }}; "
    text += f"echo done >> {tmp_path}/log; touch {tmp_path}/made"
    plan = Plan("ghost")
    plan.step("work", "command.shell.execute", command=text, creates=f"{tmp_path}/made")
    run = pair.run(plan)
    wait_for("the command", lambda: lines(tmp_path / "log"))
    ghost = at_work(pair, run, "work")

    # when
    ghost.signal_group(signal.SIGSTOP)
    report = run.wait(PATIENCE)
    ghost.signal_group(signal.SIGCONT)
    time.sleep(3.5)

    # then what it had begun was ended before the second attempt did it
    assert report.exit_code == 0
    assert lines(tmp_path / "log") == ["try", "try", "done"]
    assert names(run, "step_ended") == ["work"]


def test_an_effect_that_could_not_be_recorded_is_not_made_again(install: MakeInstallation, tmp_path: Path) -> None:
    """The worker dies between the act and its record; the next one finds the receipt."""
    # given
    place = install()
    command = f"echo x >> {tmp_path}/log"
    plan = Plan("once")
    plan.step("work", "command.shell.execute", command=command, creates=f"{tmp_path}/never")
    crash = f"step.acted:{tmp_path}/crashed"

    # when
    place.worker("one", "--concurrency", "1", LONGSHORE_CRASH_AT=crash).start()
    report = place.run(plan).wait(PATIENCE)

    # then
    assert (tmp_path / "crashed").exists()
    assert (report.exit_code, report.step("work").attempts, report.step("work").status) == (0, 2, "changed")
    assert lines(tmp_path / "log") == ["x"]


def test_writes_that_redis_has_lost_are_noticed(install: MakeInstallation, tmp_path: Path) -> None:
    """As after a power failure, or a failover: what was acknowledged is gone, and the run's record is an older one."""
    # given a run that has come some way
    place = install()
    control = place.worker("control", "--concurrency", "1", "--queues", "control")
    worker = place.worker("one", "--concurrency", "1", "--queues", "command")
    control.start()
    plan = Plan("forgetful")
    first = plan.step("first", "command.shell.execute", command=f"echo first >> {tmp_path}/log", creates="/nowhere")
    gate = plan.step("gate", "approval.wait.execute").after(first)
    plan.step("last", "command.shell.execute", command=f"echo last >> {tmp_path}/log").after(gate)
    run = place.run(plan)
    keys = place.client().store.keys.of(run.id)
    wait_for("the first step to be dispatched", lambda: place.queue("command"))
    before = {key: place.redis.dump(key) for key in keys.record() if place.redis.exists(key)}
    worker.start()
    wait_for("the gate", lambda: run.report().step("gate").status == "waiting")
    for each in place.workers:
        each.kill()

    # when Redis has the record of before the first step again
    for key in keys.record():
        place.redis.delete(key)
        if key in before:
            place.redis.restore(key, 0, before[key])
    for each in place.workers:
        each.start()

    # then it is held, and says why
    wait_for("it to be suspended", lambda: run.state() == "suspended")
    told = run.report().error
    assert told is not None
    assert "Redis has lost what it had acknowledged" in told.message
    assert lines(tmp_path / "log") == ["first"]

    # when somebody has looked and lets it go on, what is known by its receipt is not done again
    assert place.longshore("runs", "resume", run.id, "--detach").code == 0
    wait_for("the gate", lambda: run.report().step("gate").status == "waiting")
    run.approve("gate")
    assert run.wait(PATIENCE).exit_code == 0
    assert lines(tmp_path / "log") == ["first", "last"]

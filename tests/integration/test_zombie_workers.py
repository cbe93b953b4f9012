"""Workers that are stopped beyond their lease, and lost writes of Redis: the target refuses stale attempts."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from longshore.orchestration import Plan, Run
from tests.integration.conftest import MakeInstallation
from tests.integration.processes import PATIENCE, Installation, Worker, lines, names, wait_for


@pytest.fixture(scope="module")
def pair(module_installation: MakeInstallation) -> Iterator[Installation]:
    made = module_installation()
    for name in ("one", "two"):
        made.worker(name, "--concurrency", "1").start(wait=False)
    for worker in made.workers:
        worker.wait_until_ready()
    yield made
    for worker in made.workers:
        worker.signal_group(signal.SIGCONT)


def worker_of(pair: Installation, run: Run, step: str) -> Worker:
    def owner() -> str | None:
        started = [event for event in run.events() if event.name == "step_started" and event.step == step]
        return started[0].fields["owner"] if started else None

    node = wait_for(f"{step} to begin", owner).partition("@")[2].partition("/")[0]
    return pair.at(node)


def test_zombie_has_no_effect_after_the_compensation_of_its_step(pair: Installation, tmp_path: Path) -> None:
    """The command of the stopped worker continues. The compensation kills the command first."""
    # given a step with an undo that acts after four seconds
    plan = Plan("zombie")
    work = plan.step(
        "work", "command.shell.execute", command=f"echo begun >> {tmp_path}/log; sleep 4; echo late >> {tmp_path}/log"
    )
    work.undo("command.shell.execute", command=f"echo undone >> {tmp_path}/log")
    run = pair.run(plan)
    wait_for("the command to start", lambda: lines(tmp_path / "log"))
    zombie = worker_of(pair, run, "work")

    # when
    zombie.signal_group(signal.SIGSTOP)
    report = run.wait(PATIENCE)
    ended = time.monotonic()
    zombie.signal_group(signal.SIGCONT)

    # then
    assert (report.state, report.step("work").status) == ("undone", "unknown")
    assert (report.left_over, report.exit_code) == ([], 1)
    time.sleep(max(0.0, 4.5 - (time.monotonic() - ended)))
    assert lines(tmp_path / "log") == ["begun", "undone"]


def test_zombie_has_no_effect_after_a_later_attempt(pair: Installation, tmp_path: Path) -> None:
    # given a repeatable step that is slow at the first attempt only
    text = f"echo try >> {tmp_path}/log; test -e {tmp_path}/once || {{ touch {tmp_path}/once; sleep 3; }}; "
    text += f"echo done >> {tmp_path}/log; touch {tmp_path}/made"
    plan = Plan("zombie")
    plan.step("work", "command.shell.execute", command=text, creates=f"{tmp_path}/made")
    run = pair.run(plan)
    wait_for("the command to start", lambda: lines(tmp_path / "log"))
    zombie = worker_of(pair, run, "work")

    # when
    zombie.signal_group(signal.SIGSTOP)
    report = run.wait(PATIENCE)
    zombie.signal_group(signal.SIGCONT)
    time.sleep(3.5)

    # then the first command was killed before the second attempt acted
    assert report.exit_code == 0
    assert lines(tmp_path / "log") == ["try", "try", "done"]
    assert names(run, "step_ended") == ["work"]


def test_unrecorded_effect_is_not_repeated(install: MakeInstallation, tmp_path: Path) -> None:
    """The worker dies between the act and the recording of the outcome; the next attempt finds the receipt."""
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


def test_lost_writes_suspend_the_run(install: MakeInstallation, tmp_path: Path) -> None:
    """Redis has an older record of the run, as after a power failure or a failover."""
    # given a run with a completed step
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
    wait_for("the approval to wait", lambda: run.report().step("gate").status == "waiting")
    for each in place.workers:
        each.kill()

    # when Redis has the record from before the first step
    for key in keys.record():
        place.redis.delete(key)
        if key in before:
            place.redis.restore(key, 0, before[key])
    for each in place.workers:
        each.start()

    # then the run is suspended with the reason
    wait_for("the suspension", lambda: run.state() == "suspended")
    error = run.report().error
    assert error is not None
    assert "Redis has lost what it had acknowledged" in error.message
    assert lines(tmp_path / "log") == ["first"]

    # when a person resumes the run, a step with a receipt is not repeated
    assert place.longshore("runs", "resume", run.id, "--detach").code == 0
    wait_for("the approval to wait", lambda: run.report().step("gate").status == "waiting")
    run.approve("gate")
    assert run.wait(PATIENCE).exit_code == 0
    assert lines(tmp_path / "log") == ["first", "last"]

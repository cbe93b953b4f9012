"""A worker that is killed or stopped during a step is detected by its lease within seconds."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from longshore.orchestration import Event, Plan, Run, StepState
from tests import servers
from tests.integration.conftest import MakeInstallation
from tests.integration.processes import PATIENCE, Installation, Worker, alive, lines, names, wait_for


@pytest.fixture(scope="module")
def pair(module_installation: MakeInstallation) -> Installation:
    """An installation with two equal workers."""
    made = module_installation()
    for name in ("one", "two"):
        made.worker(name, "--concurrency", "2").start(wait=False)
    return made


@pytest.fixture
def fleet(pair: Installation) -> Installation:
    """The installation with both workers running."""
    for worker in pair.workers:
        worker.keep_alive()
    for worker in pair.workers:
        worker.wait_until_ready()
    return pair


def worker_of(fleet: Installation, run: Run, step: str, event: str = "step_started") -> Worker:
    """Return the worker that has claimed the step."""

    def started() -> Event | None:
        return next((found for found in run.events() if found.name == event and found.step == step), None)

    owner = wait_for(f"{event} of {step}", started).fields["owner"]
    return fleet.at(owner.partition("@")[2].partition("/")[0])


def once_slow(folder: Path, seconds: float = 60.0) -> str:
    """A command that is slow and writes its pid at the first call, and is quick later."""
    return (
        f"echo try >> {folder}/tries; if [ ! -e {folder}/pid ]; then echo $$ > {folder}/pid; sleep {seconds}; fi; "
        f"touch {folder}/done"
    )


def pid_in(folder: Path) -> int:
    return int(wait_for("the command's pid", lambda: "".join(lines(folder / "pid"))))


def test_repeatable_step_of_a_killed_worker_runs_on_another(fleet: Installation, tmp_path: Path) -> None:
    # given
    plan = Plan("survivor")
    work = plan.step("work", "command.shell.execute", command=once_slow(tmp_path), creates=str(tmp_path / "done"))
    plan.step("after", "noop.execute").after(work)
    run = fleet.run(plan)
    pid = pid_in(tmp_path)

    # when
    victim = worker_of(fleet, run, "work")
    victim.kill()
    killed = time.monotonic()
    report = run.wait(PATIENCE)

    # then
    assert report.exit_code == 0
    assert (report.step("work").attempts, report.step("after").attempts) == (2, 1)
    assert names(run, "lease_lost") == ["work"]
    assert names(run, "step_ended") == ["work", "after"]
    assert lines(tmp_path / "tries") == ["try", "try"]
    # and the command of the killed worker has ended
    assert not alive(pid)
    assert time.monotonic() - killed < 20.0


def test_non_repeatable_command_of_a_killed_worker_is_unknown(fleet: Installation, tmp_path: Path) -> None:
    # given
    conf = tmp_path / "app.conf"
    conf.write_text("as it was")
    plan = Plan("half-way")
    first = plan.step("first", "file.deploy.execute", path=str(conf), content="new")
    risky = plan.step("risky", "command.exec.execute", argv=["sh", "-c", once_slow(tmp_path)]).after(first)
    plan.step("last", "noop.execute").after(risky)
    plan.step("lights-on", "command.shell.execute", command=f"touch {tmp_path}/lights").after("last").always()
    run = fleet.run(plan)
    pid_in(tmp_path)

    # when
    worker_of(fleet, run, "risky").kill()
    report = run.wait(PATIENCE)

    # then
    assert report.step("risky").status is StepState.UNKNOWN
    assert report.step("risky").attempts == 1
    assert lines(tmp_path / "tries") == ["try"]
    undo = report.step("first").undo
    assert undo is not None
    assert undo.status == "undone"
    assert conf.read_text() == "as it was"
    assert report.step("last").status is StepState.NOT_RUN
    assert (report.state, report.left_over, report.exit_code) == ("undone", ["risky"], 3)
    # and the always step has run
    assert report.step("lights-on").status is StepState.CHANGED
    assert (tmp_path / "lights").exists()


def test_compensation_of_a_killed_worker_runs_on_another(fleet: Installation, tmp_path: Path) -> None:
    # given
    plan = Plan("back-and-forth")
    first = plan.step("first", "noop.execute").undo("command.shell.execute", command=once_slow(tmp_path))
    plan.step("last", "noop.execute", fail=True).after(first)
    run = fleet.run(plan)
    pid_in(tmp_path)

    # when
    worker_of(fleet, run, "first", "undo_started").kill()
    report = run.wait(PATIENCE)

    # then
    undo = report.step("first").undo
    assert undo is not None
    assert (undo.status, undo.attempts) == ("undone", 2)
    assert (report.state, report.exit_code) == ("undone", 1)
    assert lines(tmp_path / "tries") == ["try", "try"]


def test_outcome_of_a_stopped_worker_is_refused_after_its_lease(fleet: Installation, tmp_path: Path) -> None:
    # given
    plan = Plan("sleeper")
    plan.step("work", "noop.execute", sleep=3.0)
    run = fleet.run(plan)
    sleeper = worker_of(fleet, run, "work")

    # when the worker is stopped for longer than its lease
    sleeper.signal_group(signal.SIGSTOP)
    try:
        wait_for("the lease to expire", lambda: names(run, "lease_lost"))
        wait_for("another attempt", lambda: len(names(run, "step_started")) == 2)
    finally:
        sleeper.signal_group(signal.SIGCONT)
    report = run.wait(PATIENCE)
    wait_for("the refusal of the late outcome", lambda: b"refused" in sleeper.log.read_bytes())

    # then
    assert (report.exit_code, report.step("work").attempts) == (0, 2)
    assert names(run, "step_ended") == ["work"]


def test_step_that_kills_its_workers_becomes_unknown(fleet: Installation, tmp_path: Path) -> None:
    # given a repeatable step whose command kills its parent process
    poison = f"echo try >> {tmp_path}/tries; kill -9 $PPID; sleep 60"
    plan = Plan("poison")
    plan.step("work", "command.shell.execute", command=poison, creates=str(tmp_path / "done"))
    plan.step("good", "noop.execute")

    # when
    run = fleet.run(plan)
    report = run.wait(PATIENCE)

    # then
    assert report.step("work").status is StepState.UNKNOWN
    assert "lost" in (report.step("work").error or "")
    assert len(lines(tmp_path / "tries")) == 3
    assert (report.state, report.left_over, report.exit_code) == ("undone", ["work"], 3)


def test_stopped_worker_completes_its_step_first(fleet: Installation, tmp_path: Path) -> None:
    # given
    plan = Plan("manners")
    plan.step("work", "noop.execute", sleep=2.5)
    run = fleet.run(plan)
    worker = worker_of(fleet, run, "work")

    # when
    worker.stop()

    # then
    report = run.wait(PATIENCE)
    assert (report.exit_code, report.step("work").attempts) == (0, 1)
    assert names(run, "lease_lost") == []


def test_run_survives_a_crash_of_redis_during_a_step(tmp_path: Path) -> None:
    # given a separate Redis that persists each acknowledged write
    with servers.RedisServer("--appendfsync", "always") as server:
        place = Installation(server.url, tmp_path, options={"lease": "1s", "sweep_interval": "300ms"})
        try:
            worker = place.worker("patient", "--concurrency", "2")
            worker.start()
            plan = Plan("storm")
            count = tmp_path / "count"
            work = plan.step("work", "command.shell.execute", command=f"sleep 2; echo x >> {count}", creates=str(count))
            after = plan.step("after", "file.deploy.execute", path=f"{tmp_path}/after", content="x").after(work)
            plan.step("always", "noop.execute").after(after).always()
            run = place.run(plan)
            worker_of(place, run, "work")

            # when
            server.restart(signal.SIGKILL)

            # then the outcome waits for Redis, and the run continues
            def ended() -> bool:
                worker.keep_alive()  # a worker with kombu 5.7 may end when Redis ends
                return run.report().ended

            wait_for("the end of the run", ended)
            report = run.report()
            assert (report.state, report.exit_code) == ("succeeded", 0)
            assert lines(count) == ["x"]
            assert names(run, "step_ended") == ["work", "after", "always"]
        finally:
            place.close()

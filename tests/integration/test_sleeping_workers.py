"""A worker that is stopped beyond its lease and continues after the end of its run has no later effect.

No later attempt follows in these runs, so that only the end of the run fences the lost attempt.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from longshore.orchestration import Plan, Report, Run
from longshore.orchestration.messaging.canvas import producer
from tests.integration.conftest import MakeInstallation
from tests.integration.processes import PATIENCE, Installation, Worker, lines, wait_for


def plans(folder: Path) -> dict[str, Plan]:
    """The plans by the reason for which no attempt follows the lost one."""

    found: dict[str, Plan] = {}
    for name in ("no undo", "undo none", "keep", "continue", "always", "hung"):
        log = folder / name.replace(" ", "-")
        plan = Plan(
            name.replace(" ", "-"),
            on_failure="keep" if name == "keep" else "undo",
            on_error="continue" if name == "continue" else "stop",
        )
        if name == "hung":
            work = plan.step("work", "own.late", path=str(log), go=str(folder / "go"))
        else:
            command = f"touch {log}.began; while [ ! -e {folder}/go ]; do sleep 0.2; done; echo late >> {log}"
            work = plan.step("work", "command.shell.execute", command=command)
        if name == "undo none":
            work.undo("none")
        if name == "continue":
            plan.step("other", "noop.execute")
        if name == "always":
            plan.step("lights", "command.shell.execute", command=f"echo lights >> {log}").after(work).always()
        found[name] = plan
    return found


@pytest.fixture
def place(install: MakeInstallation, monkeypatch: pytest.MonkeyPatch) -> Iterator[Installation]:
    made = install(options={"imports": "tests.integration.own_operations"})
    monkeypatch.setenv("PYTHONPATH", made.pythonpath)
    import tests.integration.own_operations  # noqa: F401 - this process validates the plans

    yield made
    for worker in made.workers:
        worker.signal_group(signal.SIGCONT)


def began_or_stopped(place: Installation, began: Path) -> bool:
    """Report whether the work has begun, or all processes of the worker are stopped before it."""
    children = place.at(f"sleeper@{place.namespace}").children()
    return began.exists() or all("\nState:\tT" in Path(f"/proc/{pid}/status").read_text() for pid in children)


def stopped_worker(place: Installation, folder: Path, **environment: str) -> tuple[Worker, dict[str, Run]]:
    """Start all runs on one worker, and stop this worker during its steps; another worker of the host continues."""
    place.worker("awake", "--concurrency", "1", "-Q", "control,noop,command.undo,functions.undo").start(wait=False)
    sleeper = place.worker("sleeper", "--concurrency", "6", "-Q", "command,functions", **environment)
    sleeper.start(wait=False)
    for worker in place.workers:
        worker.wait_until_ready()
    runs = {name: place.run(plan) for name, plan in plans(folder).items()}
    for run in runs.values():
        wait_for("the step to run", lambda: run.report().step("work").status == "running")  # noqa: B023
    began = [folder / f"{name.replace(' ', '-')}.began" for name in runs]
    wait_for("all steps to begin", lambda: all(began_or_stopped(place, path) for path in began))
    sleeper.signal_group(signal.SIGSTOP)
    return sleeper, runs


def continue_worker(sleeper: Worker, folder: Path) -> None:
    """Continue the stopped worker until it has ended all of its tasks."""
    (folder / "go").touch()
    sleeper.signal_group(signal.SIGCONT)
    app = producer(sleeper.installation.settings)
    ask = app.control.inspect([sleeper.node], timeout=2.0)
    wait_for("the worker to have no active task", lambda: (ask.active() or {}).get(sleeper.node) == [])
    app.close()
    time.sleep(1.0)  # a command that has survived its worker checks for the file every 0.2 s


def assert_no_late_effect(reports: dict[str, Report], folder: Path) -> None:
    for name, report in reports.items():
        assert report.step("work").status == "unknown", name
        assert report.in_doubt == [], name
        written = lines(folder / name.replace(" ", "-"))
        assert written == (["lights"] if name == "always" else []), name


def test_attempt_stopped_during_its_act_is_ended_before_its_run_ends(place: Installation, tmp_path: Path) -> None:
    sleeper, runs = stopped_worker(place, tmp_path)

    reports = {name: run.wait(PATIENCE) for name, run in runs.items()}
    continue_worker(sleeper, tmp_path)

    assert_no_late_effect(reports, tmp_path)


def test_attempt_stopped_before_its_receipt_does_not_act_after_its_run(place: Installation, tmp_path: Path) -> None:
    sleeper, runs = stopped_worker(place, tmp_path, LONGSHORE_STOP_AT="step.claimed")

    reports = {name: run.wait(PATIENCE) for name, run in runs.items()}
    continue_worker(sleeper, tmp_path)

    assert_no_late_effect(reports, tmp_path)


def test_report_names_a_host_with_only_stopped_workers(place: Installation, tmp_path: Path) -> None:
    # given
    sleeper = place.worker("sleeper", "--concurrency", "1", "-Q", "command", LONGSHORE_HOST="web1")
    sleeper.start()
    place.worker("control", "--concurrency", "1", "-Q", "control", LONGSHORE_HOST="web2").start()
    run = place.run(plans(tmp_path)["undo none"])
    wait_for("the step to run", lambda: run.report().step("work").status == "running")

    # when
    sleeper.signal_group(signal.SIGSTOP)
    began = time.monotonic()
    report = run.wait(PATIENCE)

    # then
    assert (report.state, report.exit_code) == ("undone", 3)
    (doubt,) = report.in_doubt
    assert doubt.startswith("host web1 did not answer")
    assert time.monotonic() - began < 60.0
    assert "in doubt: host web1" in place.longshore("runs", "show", run.id).out

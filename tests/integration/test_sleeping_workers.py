"""A worker that was stopped beyond its lease and wakes up after its run has ended: no effect of it comes later.

In none of these runs does a later attempt take the step over, so that nothing but the end of the run fences it.
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
    """By what leaves the lost attempt without a successor."""

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
    import tests.integration.own_operations  # noqa: F401 - the plans are checked here

    yield made
    for worker in made.workers:
        worker.signal_group(signal.SIGCONT)


def settled(place: Installation, began: Path) -> bool:
    """Whether its work has begun, or each process that could do it stands still before that."""
    children = place.at(f"sleeper@{place.namespace}").children()
    return began.exists() or all("\nState:\tT" in Path(f"/proc/{pid}/status").read_text() for pid in children)


def asleep(place: Installation, folder: Path, **environment: str) -> tuple[Worker, dict[str, Run]]:
    """A worker that is at all of these runs, stopped, and another one of its host."""
    place.worker("awake", "--concurrency", "1", "-Q", "control,noop,command.undo,functions.undo").start(wait=False)
    sleeper = place.worker("sleeper", "--concurrency", "6", "-Q", "command,functions", **environment)
    sleeper.start(wait=False)
    for worker in place.workers:
        worker.wait_until_ready()
    runs = {name: place.run(plan) for name, plan in plans(folder).items()}
    for run in runs.values():
        wait_for("it to be at work", lambda: run.report().step("work").status == "running")  # noqa: B023
    began = [folder / f"{name.replace(' ', '-')}.began" for name in runs]
    wait_for("each to be where it sleeps", lambda: all(settled(place, path) for path in began))
    sleeper.signal_group(signal.SIGSTOP)
    return sleeper, runs


def wake(sleeper: Worker, folder: Path) -> None:
    """And let it go on until it has ended all that it was at."""
    (folder / "go").touch()
    sleeper.signal_group(signal.SIGCONT)
    app = producer(sleeper.installation.settings)
    ask = app.control.inspect([sleeper.node], timeout=2.0)
    wait_for("it to be at nothing", lambda: (ask.active() or {}).get(sleeper.node) == [])
    app.close()
    time.sleep(1.0)  # a command that outlived its worker looks for the file every 0.2 s


def check(reports: dict[str, Report], folder: Path) -> None:
    for name, report in reports.items():
        assert report.step("work").status == "unknown", name
        assert report.in_doubt == [], name
        written = lines(folder / name.replace(" ", "-"))
        assert written == (["lights"] if name == "always" else []), name


def test_what_sleeps_in_its_act_is_ended_before_its_run_goes_on(place: Installation, tmp_path: Path) -> None:
    sleeper, runs = asleep(place, tmp_path)

    reports = {name: run.wait(PATIENCE) for name, run in runs.items()}
    wake(sleeper, tmp_path)

    check(reports, tmp_path)


def test_what_sleeps_before_it_has_left_a_receipt_finds_that_its_run_has_ended(
    place: Installation, tmp_path: Path
) -> None:
    sleeper, runs = asleep(place, tmp_path, LONGSHORE_STOP_AT="step.claimed")

    reports = {name: run.wait(PATIENCE) for name, run in runs.items()}
    wake(sleeper, tmp_path)

    check(reports, tmp_path)


def test_a_host_whose_every_worker_sleeps_is_named(place: Installation, tmp_path: Path) -> None:
    # given
    sleeper = place.worker("sleeper", "--concurrency", "1", "-Q", "command", LONGSHORE_HOST="web1")
    sleeper.start()
    place.worker("control", "--concurrency", "1", "-Q", "control", LONGSHORE_HOST="web2").start()
    run = place.run(plans(tmp_path)["undo none"])
    wait_for("it to be at work", lambda: run.report().step("work").status == "running")

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

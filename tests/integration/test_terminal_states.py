"""The ends of runs that do not succeed: cancelled, timed out, partial, and undone later."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from longshore.orchestration import Client, Plan, Run, RunFailed, RunState, StepState
from tests.integration.conftest import MakeInstallation
from tests.integration.processes import PATIENCE, Installation, alive, lines, names, wait_for
from tests.servers import SOON


def sleeper(folder: Path, seconds: float = 60.0) -> Plan:
    """A plan with a file, a long sleep, a file that is never written, and an always step."""
    plan = Plan("sleeper")
    first = plan.step("first", "file.deploy.execute", path=f"{folder}/first", content="x")
    sleep = plan.step("sleep", "noop.execute", sleep=seconds).after(first)
    last = plan.step("last", "file.deploy.execute", path=f"{folder}/last", content="x").after(sleep)
    plan.step("always", "command.shell.execute", command=f"echo always >> {folder}/log").after(last).always()
    return plan


def wait_until_started(run: Run, step: str = "sleep") -> Run:
    wait_for(f"{step} to begin", lambda: step in names(run, "step_started"))
    return run


# --- cancelled --------------------------------------------------------------------------------------


def test_cancelled_run_is_undone_within_three_seconds(workers: Installation, client: Client, tmp_path: Path) -> None:
    # given
    run = wait_until_started(client.start(sleeper(tmp_path)))

    # when
    run.cancel("no longer wanted")
    report = run.wait(PATIENCE)

    # then, by the times in the record
    at = {event.name: event.at for event in run.events()}
    assert at["run_ended"] - at["command"] < 3000
    assert (report.state, report.cause, report.exit_code, report.left_over) == ("undone", "cancel", 1, [])
    assert report.step("sleep").status is StepState.CANCELLED
    assert report.step("last").status is StepState.NOT_RUN
    assert not (tmp_path / "first").exists()
    assert lines(tmp_path / "log") == ["always"]
    (command,) = [event for event in run.events() if event.name == "command"]
    assert (command.fields["actor"], command.fields["reason"]) == ("tester", "no longer wanted")
    # and the always step is the last one
    order = [event.name for event in run.events()]
    assert order.index("undo_ended") < order.index("run_finishing") < order.index("run_ended")


def test_cancel_with_keep_undoes_nothing(workers: Installation, client: Client, tmp_path: Path) -> None:
    # given
    run = wait_until_started(client.start(sleeper(tmp_path)))

    # when
    result = workers.longshore("runs", "cancel", run.id, "--keep", "-o", "json")

    # then
    report = result.json
    assert (report["state"], report["cause"], report["exit_code"]) == ("failed", "cancel", 3)
    assert "first" in report["left_over"]
    assert (tmp_path / "first").read_text() == "x"
    assert lines(tmp_path / "log") == ["always"]
    assert result.code == 3
    assert workers.longshore("runs", "show", run.id).code == 3


def test_kept_run_can_be_undone_later(client: Client, tmp_path: Path) -> None:
    # given
    run = wait_until_started(client.start(sleeper(tmp_path)))
    run.cancel(keep=True)
    assert run.wait(PATIENCE).state == "failed"

    # when
    assert run.answer(run.undo()) == "done"
    report = run.wait(PATIENCE)

    # then
    assert (report.state, report.left_over, report.exit_code) == ("undone", [], 1)
    assert not (tmp_path / "first").exists()
    assert lines(tmp_path / "log") == ["always"]


def test_cancel_kills_a_running_command_and_its_children(workers: Installation, client: Client, tmp_path: Path) -> None:
    # given
    plan = Plan("command")
    plan.step("sleep", "command.shell.execute", command=f"sleep 77 & echo $! > {tmp_path}/pid; wait")
    run = client.start(plan)
    wait_for("the command to start", lambda: lines(tmp_path / "pid"))

    # when
    result = workers.longshore("runs", "cancel", run.id, "-o", "json")

    # then
    assert result.json["steps"][0]["status"] == "cancelled"
    assert not alive(int(lines(tmp_path / "pid")[0]))


def test_cancel_ends_a_step_that_waits_for_a_retry(client: Client) -> None:
    # given
    plan = Plan("patient")
    plan.step("tries", "noop.execute", fail=True).retry(3, initial=600, maximum=600)
    run = client.start(plan)
    wait_for("the first failure", lambda: names(run, "step_retrying"))

    # when
    began = time.monotonic()
    run.cancel()
    report = run.wait(PATIENCE)

    # then
    assert time.monotonic() - began < SOON
    assert (report.state, report.cause, report.exit_code) == ("undone", "cancel", 1)
    assert (report.step("tries").status, report.step("tries").attempts) == (StepState.CANCELLED, 1)


def test_cancel_of_an_ended_run_is_refused_with_the_reason(workers: Installation, client: Client) -> None:
    # given
    plan = Plan("quick")
    plan.step("only", "noop.execute")
    run = client.start(plan)
    run.wait(PATIENCE)

    # when
    result = workers.longshore("runs", "cancel", run.id)

    # then
    assert result.code == 1
    assert "the run is succeeded" in result.err
    assert run.state() == "succeeded"


# --- undone later -----------------------------------------------------------------------------------


def test_undo_command_undoes_a_succeeded_run(workers: Installation, client: Client, tmp_path: Path) -> None:
    # given
    run = client.start(sleeper(tmp_path, 0.0))
    assert run.wait(PATIENCE).state == "succeeded"

    # when
    dry_run = workers.longshore("runs", "undo", run.id, "--dry-run")
    assert (tmp_path / "first").exists()
    result = workers.longshore("runs", "undo", run.id, "-o", "json")

    # then
    assert dry_run.code == 0
    assert "last" in dry_run.out
    report = result.json
    assert (report["state"], report["cause"], report["left_over"]) == ("undone", "operator", [])
    assert result.code == 0
    assert not (tmp_path / "first").exists()
    assert not (tmp_path / "last").exists()
    assert names(run, "undo_ended") == ["last", "sleep", "first"]


def test_failed_undo_is_reported_and_can_be_repeated(workers: Installation, client: Client, tmp_path: Path) -> None:
    # given a file that another program changes before the undo
    mine, other = tmp_path / "mine", tmp_path / "other"
    plan = Plan("contested")
    plan.step("beside", "file.deploy.execute", path=str(tmp_path / "beside"), content="x")
    first = plan.step("first", "file.deploy.execute", path=str(mine), content="x")
    second = plan.step("second", "file.deploy.execute", path=str(other), content="x").after(first)
    third = plan.step("third", "command.shell.execute", command=f"echo theirs > {other}", changes=False).after(second)
    plan.step("fourth", "noop.execute", fail=True).after(third)

    # when
    run = client.start(plan)
    report = run.wait(PATIENCE)

    # then the undo of the first step is held back, and an independent step is undone
    assert (report.state, report.left_over, report.exit_code) == ("undo_failed", ["first", "second"], 3)
    assert other.read_text() == "theirs\n"
    assert mine.read_text() == "x"
    assert not (tmp_path / "beside").exists()
    held = report.step("first").undo
    assert held is not None
    assert (held.status, held.error) == ("held_back", "second depends on it, and its undo failed")
    undo = report.step("second").undo
    assert undo is not None
    assert undo.status == "undo_failed"
    assert "changed outside of this run" in (undo.error or "")

    # and when the file is restored
    other.write_text("x")
    result = workers.longshore("runs", "undo", run.id, "-o", "json")

    # then
    assert (result.json["state"], result.json["left_over"], result.json["exit_code"]) == ("undone", [], 1)
    assert not other.exists()
    assert not mine.exists()
    assert result.code == 0
    assert workers.longshore("runs", "show", run.id).code == 1


# --- timeouts ---------------------------------------------------------------------------------------


def test_run_that_exceeds_its_timeout_is_undone(client: Client, tmp_path: Path) -> None:
    # given
    plan = sleeper(tmp_path)
    plan.timeout = 1.0

    # when
    began = time.monotonic()
    report = client.start(plan).wait(PATIENCE)

    # then
    assert time.monotonic() - began < SOON
    assert (report.state, report.cause, report.exit_code) == ("undone", "deadline", 1)
    assert report.error is not None
    assert "time" in report.error.message
    assert not (tmp_path / "first").exists()
    assert lines(tmp_path / "log") == ["always"]


def test_step_that_exceeds_its_timeout_fails(client: Client) -> None:
    # given
    plan = Plan("slow")
    plan.step("slow", "noop.execute", sleep=30).timeout(1.0)

    # when
    began = time.monotonic()
    report = client.start(plan).wait(PATIENCE)

    # then
    assert time.monotonic() - began < SOON
    assert report.step("slow").status is StepState.FAILED
    assert "time" in (report.step("slow").error or "")
    assert report.step("slow").attempts == 1
    assert (report.cause, report.exit_code) == ("failure", 1)


def test_step_that_no_worker_claims_fails_with_the_reason(install: MakeInstallation, tmp_path: Path) -> None:
    # given no worker for one of the queues
    lonely = install(options={"claim_timeout": "2s"})
    lonely.worker("some", "--concurrency", "1", "--queues", "control,file,file.undo").start()
    plan = Plan("lonely")
    first = plan.step("first", "file.deploy.execute", path=f"{tmp_path}/first", content="x")
    plan.step("nobody", "command.exec.execute", argv=["true"]).after(first)

    # when
    report = lonely.run(plan).wait(PATIENCE)

    # then
    step = report.step("nobody")
    assert (step.status, step.attempts) == (StepState.FAILED, 0)
    assert "command" in (step.error or "")
    assert "2 s" in (step.error or "")
    assert (report.state, report.left_over, report.exit_code) == ("undone", [], 1)
    assert not (tmp_path / "first").exists()


# --- partial ----------------------------------------------------------------------------------------


def test_tolerated_failure_makes_the_run_partial(workers: Installation, tmp_path: Path) -> None:
    # given
    plan = tmp_path / "plan.yaml"
    plan.write_text(f"""\
name: tolerant
on_error: continue
steps:
  good: {{op: file.deploy.execute, with: {{path: {tmp_path}/good, content: x}}}}
  bad: {{op: command.exec.execute, with: {{argv: ["false"]}}}}
  after-bad: {{op: noop.execute, after: [bad]}}
  after-that: {{op: noop.execute, after: [after-bad]}}
  after-good: {{op: noop.execute, after: [good]}}
""")

    # when
    result = workers.longshore("run", str(plan), "-o", "json")

    # then
    assert result.code == 3
    report = result.json
    assert report["state"] == "partial"
    assert {step["name"]: (step["status"], step["reason"]) for step in report["steps"]} == {
        "good": ("changed", None),
        "bad": ("failed", None),
        "after-bad": ("skipped", "dependency failed"),
        "after-that": ("skipped", "dependency failed"),
        "after-good": ("changed", None),
    }
    assert (tmp_path / "good").exists()
    assert all(step["undo"] is None for step in report["steps"])


def test_failure_cancels_waiting_siblings_and_undoes_completed_ones(client: Client, tmp_path: Path) -> None:
    # given
    plan = Plan("siblings")
    good = plan.step("good", "file.deploy.execute", path=f"{tmp_path}/good", content="x")
    bad = plan.step("bad", "command.shell.execute", command="sleep 0.5; exit 1", changes=False)
    plan.step("long", "command.exec.execute", argv=["sleep", "60"], changes=False)
    plan.step("never", "noop.execute").after(good, bad)

    # when
    began = time.monotonic()
    report = client.start(plan).wait(PATIENCE)

    # then
    assert time.monotonic() - began < SOON
    assert report.step("never").status is StepState.NOT_RUN
    assert report.step("long").status is StepState.CANCELLED
    assert (report.state, report.exit_code) == ("undone", 1)
    assert not (tmp_path / "good").exists()


def test_on_failure_keep_undoes_nothing_and_reports_the_effects(client: Client, tmp_path: Path) -> None:
    # given
    plan = sleeper(tmp_path, 0.0)
    plan.on_failure = "keep"
    plan.steps["sleep"].with_["fail"] = "on purpose"

    # when
    run = client.start(plan)
    with pytest.raises(RunFailed) as failed:
        run.wait(PATIENCE, check=True)

    # then
    assert failed.value.exit_code == 3
    assert failed.value.report.left_over == ["first"]
    assert "on purpose" in str(failed.value)
    assert (tmp_path / "first").exists()
    assert lines(tmp_path / "log") == ["always"]


# --- always -----------------------------------------------------------------------------------------


def test_always_step_of_a_failed_run_runs_once_after_the_undo(client: Client, tmp_path: Path) -> None:
    # given
    plan = sleeper(tmp_path, 0.0)
    plan.steps["sleep"].with_["fail"] = True

    # when
    run = client.start(plan)
    report = run.wait(PATIENCE)

    # then
    assert (report.state, report.exit_code) == ("undone", 1)
    assert report.step("always").status is StepState.CHANGED
    assert report.step("always").undo is None
    assert lines(tmp_path / "log") == ["always"]
    story = [(event.name, event.step) for event in run.events() if event.name in {"undo_ended", "step_ended"}]
    assert story[-1] == ("step_ended", "always")


def test_failed_always_step_is_reported(client: Client, tmp_path: Path) -> None:
    # given
    plan = Plan("stubborn")
    first = plan.step("first", "file.deploy.execute", path=f"{tmp_path}/first", content="x")
    plan.step("always", "command.exec.execute", argv=["false"]).after(first).always()

    # when
    report = client.start(plan).wait(PATIENCE)

    # then
    assert report.exit_code == 3
    assert report.step("always").status is StepState.FAILED
    assert (tmp_path / "first").exists()


def test_cancel_does_not_stop_a_running_always_step(client: Client, tmp_path: Path) -> None:
    # given
    plan = Plan("stubborn")
    command = f"touch {tmp_path}/began; while [ ! -e {tmp_path}/go ]; do sleep 0.1; done; echo always >> {tmp_path}/log"
    plan.step("always", "command.shell.execute", command=command).always()
    plan.step("other", "noop.execute", sleep=60)
    run = wait_until_started(client.start(plan), "other")
    wait_for("the always step to begin", (tmp_path / "began").exists)

    # when
    run.cancel()
    wait_for("the other step to end", lambda: "other" in names(run, "step_ended"))
    (tmp_path / "go").touch()
    report = run.wait(PATIENCE)

    # then
    assert (report.state, report.cause) == (RunState.UNDONE, "cancel")
    assert (report.step("always").status, report.step("always").attempts) == (StepState.CHANGED, 1)
    assert report.step("other").status is StepState.CANCELLED
    assert lines(tmp_path / "log") == ["always"]

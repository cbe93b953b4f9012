"""How runs end that do not simply succeed: cancelled, out of time, partly, taken back later."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from longshore.orchestration import Client, Plan, Run, RunFailed, RunState, StepState
from tests.integration.conftest import MakeInstallation
from tests.integration.processes import PATIENCE, Installation, alive, lines, names, wait_for
from tests.servers import SOON


def sleeper(folder: Path, seconds: float = 60.0) -> Plan:
    """A file, a long sleep, a file that is never written, and what must always run."""
    plan = Plan("sleeper")
    first = plan.step("first", "file.deploy.execute", path=f"{folder}/first", content="x")
    sleep = plan.step("sleep", "noop.execute", sleep=seconds).after(first)
    last = plan.step("last", "file.deploy.execute", path=f"{folder}/last", content="x").after(sleep)
    plan.step("always", "command.shell.execute", command=f"echo always >> {folder}/log").after(last).always()
    return plan


def once_it_sleeps(run: Run, step: str = "sleep") -> Run:
    wait_for(f"{step} to begin", lambda: step in names(run, "step_started"))
    return run


# --- cancelled --------------------------------------------------------------------------------------


def test_a_cancelled_run_ends_within_three_seconds_and_is_undone(
    workers: Installation, client: Client, tmp_path: Path
) -> None:
    # given
    run = once_it_sleeps(client.start(sleeper(tmp_path)))

    # when
    run.cancel("no longer wanted")
    report = run.wait(PATIENCE)

    # then, by the record's own clock
    at = {event.name: event.at for event in run.events()}
    assert at["run_ended"] - at["command"] < 3000
    assert (report.state, report.cause, report.exit_code, report.left_over) == ("undone", "cancel", 1, [])
    assert report.step("sleep").status is StepState.CANCELLED
    assert report.step("last").status is StepState.NOT_RUN
    assert not (tmp_path / "first").exists()
    assert lines(tmp_path / "log") == ["always"]
    (command,) = [event for event in run.events() if event.name == "command"]
    assert (command.fields["actor"], command.fields["reason"]) == ("tester", "no longer wanted")
    # and it was the last thing before the end
    order = [event.name for event in run.events()]
    assert order.index("undo_ended") < order.index("run_finishing") < order.index("run_ended")


def test_cancel_keep_leaves_what_was_done(workers: Installation, client: Client, tmp_path: Path) -> None:
    # given
    run = once_it_sleeps(client.start(sleeper(tmp_path)))

    # when
    said = workers.longshore("runs", "cancel", run.id, "--keep", "-o", "json")

    # then
    report = said.json
    assert (report["state"], report["cause"], report["exit_code"]) == ("failed", "cancel", 3)
    assert "first" in report["left_over"]
    assert (tmp_path / "first").read_text() == "x"
    assert lines(tmp_path / "log") == ["always"]
    assert said.code == 3
    assert workers.longshore("runs", "show", run.id).code == 3


def test_what_was_kept_can_be_undone_later(client: Client, tmp_path: Path) -> None:
    # given
    run = once_it_sleeps(client.start(sleeper(tmp_path)))
    run.cancel(keep=True)
    assert run.wait(PATIENCE).state == "failed"

    # when
    assert run.answer(run.undo()) == "done"
    report = run.wait(PATIENCE)

    # then
    assert (report.state, report.left_over, report.exit_code) == ("undone", [], 1)
    assert not (tmp_path / "first").exists()
    assert lines(tmp_path / "log") == ["always"]


def test_a_cancel_ends_a_running_command_and_its_children(
    workers: Installation, client: Client, tmp_path: Path
) -> None:
    # given
    plan = Plan("command")
    plan.step("sleep", "command.shell.execute", command=f"sleep 77 & echo $! > {tmp_path}/pid; wait")
    run = client.start(plan)
    wait_for("the command", lambda: lines(tmp_path / "pid"))

    # when
    said = workers.longshore("runs", "cancel", run.id, "-o", "json")

    # then
    assert said.json["steps"][0]["status"] == "cancelled"
    assert not alive(int(lines(tmp_path / "pid")[0]))


def test_a_cancel_reaches_a_step_that_waits_for_its_next_try(client: Client) -> None:
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


def test_a_cancel_that_comes_too_late_says_so(workers: Installation, client: Client) -> None:
    # given
    plan = Plan("quick")
    plan.step("only", "noop.execute")
    run = client.start(plan)
    run.wait(PATIENCE)

    # when
    said = workers.longshore("runs", "cancel", run.id)

    # then
    assert said.code == 1
    assert "the run is succeeded" in said.err
    assert run.state() == "succeeded"


# --- undone later -----------------------------------------------------------------------------------


def test_runs_undo_takes_a_succeeded_run_back(workers: Installation, client: Client, tmp_path: Path) -> None:
    # given
    run = client.start(sleeper(tmp_path, 0.0))
    assert run.wait(PATIENCE).state == "succeeded"

    # when
    dry_run = workers.longshore("runs", "undo", run.id, "--dry-run")
    assert (tmp_path / "first").exists()
    said = workers.longshore("runs", "undo", run.id, "-o", "json")

    # then
    assert dry_run.code == 0
    assert "last" in dry_run.out
    report = said.json
    assert (report["state"], report["cause"], report["left_over"]) == ("undone", "operator", [])
    assert said.code == 0
    assert not (tmp_path / "first").exists()
    assert not (tmp_path / "last").exists()
    assert names(run, "undo_ended") == ["last", "sleep", "first"]


def test_an_undo_that_failed_is_named_and_can_be_tried_again(
    workers: Installation, client: Client, tmp_path: Path
) -> None:
    # given a file that somebody else changes before it is taken back
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

    # then the first step stays under the second one, and a step beside them is undone
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

    # and when they have put it right
    other.write_text("x")
    said = workers.longshore("runs", "undo", run.id, "-o", "json")

    # then
    assert (said.json["state"], said.json["left_over"], said.json["exit_code"]) == ("undone", [], 1)
    assert not other.exists()
    assert not mine.exists()
    assert said.code == 0
    assert workers.longshore("runs", "show", run.id).code == 1


# --- out of time ------------------------------------------------------------------------------------


def test_a_run_that_runs_out_of_its_time_is_undone(client: Client, tmp_path: Path) -> None:
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


@pytest.mark.parametrize(
    ("operation", "params"),
    [("noop.execute", {"sleep": 30}), ("command.exec.execute", {"argv": ["sleep", "30"], "changes": False})],
)
def test_a_step_that_runs_out_of_its_time_fails(client: Client, operation: str, params: dict[str, object]) -> None:
    # given
    plan = Plan("slow")
    plan.step("slow", operation, **params).timeout(1.0)

    # when
    began = time.monotonic()
    report = client.start(plan).wait(PATIENCE)

    # then
    assert time.monotonic() - began < SOON
    assert report.step("slow").status is StepState.FAILED
    assert "time" in (report.step("slow").error or "")
    assert report.step("slow").attempts == 1
    assert (report.cause, report.exit_code) == ("failure", 1)


def test_a_step_that_no_worker_takes_fails_with_the_reason(install: MakeInstallation, tmp_path: Path) -> None:
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


# --- partly -----------------------------------------------------------------------------------------


def test_a_tolerated_failure_makes_the_run_partial(workers: Installation, tmp_path: Path) -> None:
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
    said = workers.longshore("run", str(plan), "-o", "json")

    # then
    assert said.code == 3
    report = said.json
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


def test_a_failing_sibling_cancels_what_waits_and_undoes_what_its_siblings_did(client: Client, tmp_path: Path) -> None:
    # given
    plan = Plan("siblings")
    good = plan.step("good", "file.deploy.execute", path=f"{tmp_path}/good", content="x")
    bad = plan.step("bad", "command.shell.execute", command="sleep 0.5; exit 1", changes=False)
    plan.step("long", "noop.execute", sleep=60)
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


def test_on_failure_keep_leaves_everything_and_says_so(client: Client, tmp_path: Path) -> None:
    # given
    plan = sleeper(tmp_path, 0.0)
    plan.on_failure = "keep"
    plan.steps["sleep"].with_["fail"] = "as told"

    # when
    run = client.start(plan)
    with pytest.raises(RunFailed) as failed:
        run.wait(PATIENCE, check=True)

    # then
    assert failed.value.exit_code == 3
    assert failed.value.report.left_over == ["first"]
    assert "as told" in str(failed.value)
    assert (tmp_path / "first").exists()
    assert lines(tmp_path / "log") == ["always"]


# --- always -----------------------------------------------------------------------------------------


def test_an_always_step_runs_in_its_place_when_all_goes_well(client: Client, tmp_path: Path) -> None:
    # when
    run = client.start(sleeper(tmp_path, 0.0))
    report = run.wait(PATIENCE)

    # then
    assert report.exit_code == 0
    assert names(run, "step_ended") == ["first", "sleep", "last", "always"]
    assert lines(tmp_path / "log") == ["always"]


def test_an_always_step_runs_once_after_the_undo_when_a_step_fails(client: Client, tmp_path: Path) -> None:
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


def test_an_always_step_that_fails_is_told_of(client: Client, tmp_path: Path) -> None:
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


def test_an_always_step_that_was_under_way_at_the_cancel_is_not_stopped(client: Client, tmp_path: Path) -> None:
    # given
    plan = Plan("stubborn")
    command = f"sleep 1.5; echo always >> {tmp_path}/log"
    plan.step("always", "command.shell.execute", command=command).always()
    plan.step("other", "noop.execute", sleep=60)
    run = once_it_sleeps(client.start(plan), "always")

    # when
    run.cancel()
    report = run.wait(PATIENCE)

    # then
    # The other step may have begun or not: then there is nothing to undo.
    assert report.state in {RunState.UNDONE, RunState.FAILED}
    assert report.cause == "cancel"
    assert report.step("always").status is StepState.CHANGED
    assert lines(tmp_path / "log") == ["always"]

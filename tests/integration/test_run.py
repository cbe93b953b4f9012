"""A run of a new plan, its undo and its dry run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from longshore.orchestration import Plan
from longshore.orchestration.states import RunState
from tests.integration.conftest import MakeInstallation
from tests.integration.processes import Installation, redis_of, tree

PLAN = """\
name: diamond
params:
  text: {{type: string}}
steps:
  begin:
    op: file.deploy.execute
    with: {{path: "{home}/new/deep/begin.conf", content: "{{{{ params.text }}}}", mode: "0600"}}
  left:
    op: file.deploy.execute
    with: {{path: "{home}/left.conf", content: "left of {{{{ steps.begin.data.sha256 }}}}"}}
    after: [begin]
  right:
    op: file.deploy.execute
    with: {{path: "{home}/right.conf", content: "right\\n", mode: "0640"}}
    after: [begin]
  join:
    op: command.exec.execute
    with: {{argv: [cp, left.conf, joined.conf], cwd: "{home}"}}
    undo: {{op: command.exec.execute, with: {{argv: [rm, -f, joined.conf], cwd: "{home}"}}}}
    after: [left, right]
  end:
    op: command.exec.execute
    with: {{argv: [test, -e, {wanted}], cwd: "{home}", changes: false}}
    after: [join]
"""


def as_root() -> bool:
    return os.geteuid() == 0


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder with a file that the plan overwrites, and a file whose mode the plan changes."""
    folder = tmp_path / "home"
    folder.mkdir()
    left, right = folder / "left.conf", folder / "right.conf"
    left.write_bytes(b"\x00 as it was\r\n\xff")
    left.chmod(0o751)
    right.write_text("right\n")
    right.chmod(0o604)
    if as_root():
        os.chown(left, 4321, 1234)
    return folder


@pytest.fixture
def plan(home: Path) -> Path:
    return write(home, "joined.conf")


@pytest.fixture
def failing_plan(home: Path) -> Path:
    return write(home, "what-nobody-made")


def write(home: Path, wanted: str) -> Path:
    file = home.parent / "plan.yaml"
    file.write_text(PLAN.format(home=home, wanted=wanted))
    return file


def by_name(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {step.get("name", step.get("step")): step for step in report["steps"]}


def test_report_has_every_step_of_a_diamond_with_a_tail(workers: Installation, plan: Path, home: Path) -> None:
    # when
    result = workers.longshore("run", str(plan), "-p", "text=hello", "-o", "json")

    # then
    assert result.code == 0, result.err
    report = result.json
    steps = by_name(report)
    assert {name: step["level"] for name, step in steps.items()} == {
        "begin": 0,
        "left": 1,
        "right": 1,
        "join": 2,
        "end": 3,
    }
    assert {name: step["status"] for name, step in steps.items()} == {
        "begin": "changed",
        "left": "changed",
        "right": "changed",
        "join": "changed",
        "end": "unchanged",
    }
    assert all(step["attempts"] == 1 for step in steps.values())
    assert all(0 <= step["duration_s"] < report["duration_s"] for step in steps.values())
    assert all(len(step["task_ids"]) == 1 for step in steps.values())
    assert all(step["undo"] is None for step in steps.values())
    assert (report["state"], report["exit_code"], report["left_over"]) == ("succeeded", 0, [])
    assert report["summary"] == "5 steps, 4 changed, 1 unchanged"
    assert (home / "new/deep/begin.conf").read_text() == "hello"
    assert (home / "left.conf").read_text() == f"left of {steps['begin']['data']['sha256']}"
    assert (home / "joined.conf").read_bytes() == (home / "left.conf").read_bytes()
    found = tree(home)
    assert found["new/deep/begin.conf"][0] == oct(0o100600)
    assert found["right.conf"][0] == oct(0o100640)
    if as_root():
        assert found["left.conf"][1:3] == (4321, 1234)


def test_second_run_of_a_plan_changes_nothing(workers: Installation, plan: Path, home: Path) -> None:
    # given
    assert workers.longshore("run", str(plan), "-p", "text=hello").code == 0
    before = tree(home)

    # when
    result = workers.longshore("run", str(plan), "-p", "text=hello", "-o", "json")

    # then
    assert tree(home) == before
    steps = by_name(result.json)
    assert [steps[name]["changed"] for name in ("begin", "left", "right")] == [False] * 3


def test_failure_of_the_last_step_restores_every_byte(workers: Installation, failing_plan: Path, home: Path) -> None:
    # given
    before = tree(home)

    # when
    result = workers.longshore("run", str(failing_plan), "-p", "text=hello", "-o", "json")

    # then
    assert result.code == 1, result.err
    assert tree(home) == before
    report = result.json
    assert (report["state"], report["cause"], report["left_over"]) == ("undone", "failure", [])
    assert report["error"]["step"] == "end"
    undone = {name: step["undo"] and step["undo"]["status"] for name, step in by_name(report).items()}
    assert undone == {"begin": "undone", "left": "undone", "right": "undone", "join": "undone", "end": None}
    assert all(s["undo"]["attempts"] == 1 and s["undo"]["duration_s"] >= 0 for s in report["steps"] if s["undo"])


def test_undo_proceeds_level_by_level_in_reverse(workers: Installation, failing_plan: Path) -> None:
    # given
    run_id = workers.longshore("run", str(failing_plan), "-p", "text=x", "-o", "json").json["run_id"]

    # when
    events = workers.longshore("runs", "events", run_id, "-o", "json").json

    # then
    undo = [(event["event"], event.get("step")) for event in events if event["event"].startswith("undo_")]
    story = [what for what in undo if what[0] != "undo_level_started"]
    assert story[:2] == [("undo_started", "join"), ("undo_ended", "join")]
    assert sorted(story[2:6]) == sorted(
        (event, step) for event in ("undo_started", "undo_ended") for step in ("left", "right")
    )
    assert story[6:] == [("undo_started", "begin"), ("undo_ended", "begin")]
    levels = [(e["level"], e["steps"]) for e in events if e["event"] == "undo_level_started"]
    assert levels == [("2", "join"), ("1", "left right"), ("0", "begin")]


def test_dry_run_predicts_changes_and_undos_and_changes_nothing(workers: Installation, plan: Path, home: Path) -> None:
    # given
    before, files = redis_of(workers), tree(home)

    # when
    result = workers.longshore("run", str(plan), "-p", "text=hello", "--dry-run")
    data = workers.longshore("--dry-run", "run", str(plan), "-p", "text=hello", "-o", "json")

    # then
    assert (result.code, data.code) == (0, 0), result.err + data.err
    assert tree(home) == files
    assert redis_of(workers) == before
    steps = by_name(data.json)
    assert list(steps) == ["begin", "left", "right", "join", "end"]
    for step in steps.values():
        assert step["action"] in result.out
        assert f"undo: {step['undo'] or 'not known yet'}" in result.out
    assert "create" in steps["begin"]["action"]
    assert f"remove {home}/new/deep/begin.conf" in steps["begin"]["undo"]
    assert "known after step begin" in steps["left"]["action"]
    assert "0604" in steps["right"]["action"]
    assert "0640" in steps["right"]["action"]
    assert "restore" in steps["right"]["undo"]
    assert "cp left.conf joined.conf" in steps["join"]["action"]
    assert "command.exec.execute" in steps["join"]["undo"]


def test_first_dry_run_leaves_no_key_in_redis(install: MakeInstallation, plan: Path) -> None:
    # given a Redis without queues of this installation
    fresh = install()
    fresh.worker("only", "--concurrency", "1").start()
    before = redis_of(fresh)

    # when
    result = fresh.longshore("run", str(plan), "-p", "text=hello", "--dry-run")

    # then
    assert result.code == 0, result.err
    assert redis_of(fresh) == before


def test_template_reads_the_host_of_its_step(workers: Installation, tmp_path: Path) -> None:
    plan = Plan("knows")
    content = "{{ host.name }} {{ host.facts.arch }} {{ host.facts.docker is defined }} {{ host.labels|length }}"
    plan.step("tell", "file.deploy.execute", path=str(tmp_path / "host"), content=content)

    assert workers.run(plan).wait(timeout=60).state is RunState.SUCCEEDED
    assert (tmp_path / "host").read_text() == f"longshore {os.uname().machine} True 0"


def test_quiet_commands_print_failures_on_stderr_and_requested_data(
    workers: Installation, failing_plan: Path, tmp_path: Path
) -> None:
    # given
    command = ["ops", "run", "command.exec.execute", 'argv=["sh", "-c", "echo no >&2; exit 3"]', "--run-id", "quiet-1"]

    # when
    failed = workers.longshore("-q", "run", str(failing_plan), "-p", "text=x", "--run-id", "quiet-2")
    commands = {
        "runs watch": (
            workers.longshore("runs", "watch", "quiet-2", "-q"),
            1,
            "error[run-failed]: run quiet-2 of plan",
        ),
        "runs undo": (
            workers.longshore("-q", "runs", "undo", "quiet-2"),
            1,
            "error[refused]: run quiet-2: the run is undone",
        ),
        "unknown": (
            workers.longshore("-q", "runs", "show", "no-such-run"),
            2,
            "error[unknown-name]: run 'no-such-run' does not",
        ),
        "resume": (
            workers.longshore("-q", "runs", "resume", "quiet-2"),
            1,
            "error[refused]: run quiet-2: the run is undone",
        ),
    }
    impossible = tmp_path / "impossible.yaml"
    (tmp_path / "file").touch()
    step = f"op: file.deploy.execute, with: {{path: {tmp_path}/file/below, content: x}}"
    impossible.write_text(f"name: impossible\nsteps:\n  deploy: {{{step}}}\n")
    predicted = workers.longshore("-q", "run", str(impossible), "--dry-run")
    operation = workers.longshore("-q", *command)
    shown = workers.longshore("-q", "runs", "show", "quiet-2")

    # then
    assert (failed.code, failed.out) == (1, "")
    lines = failed.err.splitlines()
    assert lines[0].startswith("error[run-failed]: run quiet-2 of plan ")
    assert lines[1].startswith("undone: 5 steps, ")
    assert lines[2].startswith("step end: ")
    for name, (result, code, line) in commands.items():
        assert (result.code, result.out) == (code, ""), name
        assert result.err.startswith(line), name
    # requested data is printed
    assert (operation.code, operation.json["exit_code"]) == (3, 3)
    assert operation.err.startswith("error[run-failed]: run quiet-1 of plan command.exec.execute")
    assert "in doubt: do" in operation.err
    assert (shown.code, shown.err) == (1, "")
    assert "undone: 5 steps, " in shown.out
    assert (predicted.code, predicted.err) == (1, "")
    assert "cannot succeed: " in predicted.out


def test_runs_show_prints_the_parameters_of_a_run(workers: Installation, plan: Path, home: Path) -> None:
    assert workers.longshore("run", str(plan), "-p", "text=v7.3.1", "--run-id", "params-1", "-q").code == 0

    shown = {
        "show": workers.longshore("runs", "show", "params-1").out,
        "ls": workers.longshore("runs", "ls").out,
        "search": workers.longshore("runs", "ls", "--text", "text=v7.3").out,
    }

    for name, text in shown.items():
        assert "text=v7.3.1" in text, name
    assert "params-1" in shown["search"]
    assert workers.longshore("runs", "show", "params-1", "-o", "json").json["params"] == {"text": "v7.3.1"}
    assert "no runs" in workers.longshore("runs", "ls", "--text", "text=v7.4").out


def test_quiet_success_prints_nothing(workers: Installation, plan: Path) -> None:
    result = workers.longshore("-q", "run", str(plan), "-p", "text=hello", "--run-id", "quiet-3")

    assert (result.code, result.out, result.err) == (0, "", "")
    undone = workers.longshore("-q", "runs", "undo", "quiet-3")
    assert (undone.code, undone.out, undone.err) == (0, "", "")


def test_dry_run_that_predicts_a_failure_exits_1(workers: Installation, tmp_path: Path) -> None:
    # given
    (tmp_path / "file").touch()
    plan = tmp_path / "plan.yaml"
    step = f"op: file.deploy.execute, with: {{path: {tmp_path}/file/below, content: x}}"
    plan.write_text(f"name: impossible\nsteps:\n  deploy: {{{step}}}\n")

    # when
    result = workers.longshore("run", str(plan), "--dry-run", "-o", "json")

    # then
    assert result.code == 1
    assert result.json["possible"] is False
    assert "a parent of the path is a file" in by_name(result.json)["deploy"]["impossible"]

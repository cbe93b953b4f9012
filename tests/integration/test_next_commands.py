"""The commands that a failed run suggests: the run accepts each of them."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from longshore.orchestration.states import RunState
from tests.integration.processes import CommandResult, Installation

FAILS = "op: command.shell.execute, with: {command: 'echo oops >&2; exit 3'}, undo: none"
WRITES = "op: command.shell.execute, with: {command: 'true'}"
NO_UNDO = f"{WRITES}, undo: none"
UNDO_FAILS = f"{WRITES}, undo: {{op: command.shell.execute, with: {{command: exit 4}}}}"
HAS_UNDO = f"{WRITES}, undo: {{op: command.shell.execute, with: {{command: 'true'}}}}"


def plan_of(first: str, *, on_failure: str = "undo") -> str:
    return f"name: p\non_failure: {on_failure}\nsteps:\n  a: {{{first}}}\n  b: {{{FAILS}, after: a}}\n"


#: Each plan, with the commands that its failed run suggests; RUN stands for the id of the run.
PLANS = {
    "undone": (plan_of(HAS_UNDO), ["show RUN", "logs RUN b"]),
    "kept": (plan_of(HAS_UNDO, on_failure="keep"), ["show RUN", "logs RUN b", "resume RUN", "undo RUN"]),
    "kept-without-undo": (plan_of(NO_UNDO, on_failure="keep"), ["show RUN", "logs RUN b", "resume RUN"]),
    "past-return": (
        plan_of(HAS_UNDO).replace("after: a", "after: sent") + f"  sent: {{{WRITES}, irreversible: true, after: a}}\n",
        ["show RUN", "logs RUN b", "resume RUN"],
    ),
    "undo-failed": (plan_of(UNDO_FAILS), ["show RUN", "logs RUN b", "resolve RUN a --undone", "resume RUN"]),
}


def suggested(result: CommandResult) -> list[str]:
    """The commands below `next:` on stderr."""
    _, _, below = result.err.partition("next:\n")
    return [line.strip().partition("  ")[0] for line in below.splitlines()]


@pytest.mark.parametrize("name", list(PLANS))
def test_run_accepts_each_command_that_it_suggests(workers: Installation, tmp_path: Path, name: str) -> None:
    # given
    text, expected = PLANS[name]
    path, run_id = tmp_path / "plan.yaml", f"next-{name}"
    path.write_text(text)

    # when
    failed = workers.longshore("run", str(path), "--run-id", run_id)
    commands = suggested(failed)

    # then
    assert commands == [f"longshore runs {each}".replace("RUN", run_id) for each in expected]
    # A resumed run fails again, and suggests the same commands.
    for command in sorted(commands, key=lambda command: " resume " not in command):
        done = workers.longshore(*shlex.split(command)[1:])
        assert done.code in {0, 1, 3}
        assert not any(line.startswith("error") for line in done.err.splitlines()), done.err
        if " logs " in command:
            assert (done.code, "oops" in done.err.splitlines()) == (0, True)


@pytest.mark.parametrize("option", [["-q"], ["-o", "json"]], ids=" ".join)
def test_quiet_and_json_output_suggest_no_command(workers: Installation, tmp_path: Path, option: list[str]) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(PLANS["kept"][0])

    failed = workers.longshore("run", str(path), "--run-id", f"next-silent{option[0]}{len(option)}", *option)

    assert failed.code == 3
    assert suggested(failed) == []
    assert "longshore runs" not in failed.err


def test_successful_run_suggests_no_command(workers: Installation, tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text("name: p\nsteps: {a: {op: noop.execute}}\n")

    assert workers.longshore("run", str(path)).err == ""


def test_run_that_waits_for_an_approval_suggests_approve(workers: Installation, tmp_path: Path) -> None:
    # given
    path = tmp_path / "plan.yaml"
    path.write_text("name: p\nsteps: {ask: {op: approval.wait.execute, with: {message: go on?}}}\n")
    workers.longshore("run", str(path), "--run-id", "next-asks", "--detach")
    run = workers.client().get("next-asks")
    for event in run.watch():
        if event.name == "step_waiting":
            break

    # when
    shown = workers.longshore("runs", "show", "next-asks")
    approved = workers.longshore(*shlex.split(suggested(shown)[0])[1:])

    # then
    assert suggested(shown) == ["longshore runs approve next-asks ask"]
    assert approved.code == 0, approved.err
    assert run.wait(timeout=60).state is RunState.SUCCEEDED


def test_run_cancelled_before_its_begin_suggests_resume(workers: Installation, tmp_path: Path) -> None:
    # given
    path = tmp_path / "plan.yaml"
    path.write_text(
        "name: p\nconcurrency: {key: one-at-a-time}\n"
        "steps: {ask: {op: approval.wait.execute, with: {message: go on?}}}\n"
    )
    client = workers.client()
    for run_id in ("next-first", "next-second"):
        assert workers.longshore("run", str(path), "--run-id", run_id, "--detach").code == 0
    first, second = client.get("next-first"), client.get("next-second")
    assert second.answer(second.cancel()) == "done"
    assert second.state() is RunState.CANCELLED

    # when
    shown = workers.longshore("runs", "show", "next-second")
    predicted = workers.longshore(*shlex.split(suggested(shown)[0])[1:], "--dry-run")
    resumed = workers.longshore(*shlex.split(suggested(shown)[0])[1:], "--detach")

    # then
    assert suggested(shown) == ["longshore runs resume next-second"]
    assert (predicted.code, predicted.out) == (0, "would resume run next-second, and run ask (the run is cancelled)\n")
    assert resumed.code == 0, resumed.err
    for run in (first, second):
        run.cancel()
        assert run.wait(timeout=60).state is not RunState.SUCCEEDED


def test_shell_completes_ids_and_steps_of_runs(workers: Installation, tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text("name: p\nsteps: {alpha: {op: noop.execute}, beta: {op: noop.execute}}\n")
    assert workers.longshore("run", str(path), "--run-id", "completed-1").code == 0

    found = {}
    for line in ("longshore runs show completed", "longshore runs logs completed-1 al"):
        count = str(len(line.split()) - 1)
        found[line] = workers.longshore(_LONGSHORE_COMPLETE="bash_complete", COMP_WORDS=line, COMP_CWORD=count).out

    assert list(found.values()) == ["plain,completed-1\n", "plain,alpha\n"]

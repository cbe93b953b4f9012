"""`command.*`: guards, exit codes, what a command sees, and what is foretold of it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from longshore.orchestration.errors import OperationError, Preflight, StepCancelled, StepTimeout, Unsuccessful
from tests.servers import SOON
from tests.unit.tasks.operations.fake_step import Doing


def execute(*argv: str, context: dict[str, Any] | None = None, **params: Any) -> Doing:
    return Doing("command.exec.execute", context, argv=list(argv), **params)


def shell(command: str, context: dict[str, Any] | None = None, **params: Any) -> Doing:
    return Doing("command.shell.execute", context, command=command, **params)


def test_what_a_command_said_and_how_it_ended_is_its_data() -> None:
    outcome = shell("echo out; echo err >&2").act()

    assert outcome.changed
    data = dict(outcome.data)
    assert data.pop("duration_ms") >= 0
    assert data == {"stdout": "out\n", "stderr": "err\n", "exit_code": 0, "truncated": False}


def test_an_argument_list_is_seen_by_no_shell() -> None:
    assert execute("echo", "$HOME; `id` && *").act().data["stdout"] == "$HOME; `id` && *\n"


def test_a_command_that_only_looks_changes_nothing() -> None:
    step = execute("true", changes=False)

    assert step.predict().changed is False
    assert not step.act().changed


def test_an_exit_code_that_is_not_in_order_is_a_failure_that_says_the_last_line() -> None:
    step = shell("echo first; echo second >&2; echo why >&2; exit 7")

    with pytest.raises(Unsuccessful, match=r"^/bin/sh exited with code 7: why$") as caught:
        step.act()

    assert caught.value.data["exit_code"] == 7
    assert caught.value.data["stderr"] == "second\nwhy\n"


def test_a_failure_without_words_on_stderr_is_told_by_stdout() -> None:
    with pytest.raises(Unsuccessful, match=r"exited with code 1: said$"):
        shell("echo said; exit 1").act()
    with pytest.raises(Unsuccessful, match=r"exited with code 1$"):
        shell("exit 1").act()


def test_the_plan_says_which_exit_codes_are_in_order() -> None:
    assert shell("exit 3", ok_codes=[0, 3]).act().data["exit_code"] == 3
    with pytest.raises(Unsuccessful):
        shell("exit 0", ok_codes=[3]).act()


def test_what_is_created_already_is_not_created_again(tmp_path: Path) -> None:
    step = shell("echo x >>made; echo ran", cwd=str(tmp_path), creates="made")

    first, second = step.act(), step.act()

    assert (first.changed, second.changed) == (True, False)
    assert second.data["skipped"] == f"{tmp_path}/made exists"
    assert (tmp_path / "made").read_text() == "x\n"
    assert step.predict().changed is False


def test_what_is_created_may_be_named_from_the_root(tmp_path: Path) -> None:
    step = execute("touch", f"{tmp_path}/made", creates=f"{tmp_path}/made")

    assert [step.act().changed, step.act().changed] == [True, False]


@pytest.mark.parametrize("unless", ["test -e made", ["test", "-e", "made"]])
def test_a_check_decides_whether_there_is_anything_to_do(unless: str | list[str], tmp_path: Path) -> None:
    step = shell("echo x >>made", cwd=str(tmp_path), unless=unless)

    assert step.predict().changed is None
    assert [step.act().changed, step.act().changed] == [True, False]
    assert (tmp_path / "made").read_text() == "x\n"


def test_a_command_sees_what_it_is_given_and_who_it_is_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET", "x")
    monkeypatch.setenv("HOME", "/home/ops")

    said = execute("env", env={"PORT": "80", "PATH": "/usr/bin:/bin"}, context={"attempt": 2}).act().data["stdout"]

    seen = dict(line.split("=", 1) for line in said.splitlines())
    assert (
        seen.items()
        >= {
            "PORT": "80",
            "PATH": "/usr/bin:/bin",
            "HOME": "/home/ops",
            "LONGSHORE_RUN_ID": "r1",
            "LONGSHORE_STEP": "step",
            "LONGSHORE_ATTEMPT": "2",
        }.items()
    )
    assert seen.keys() <= {
        *("PORT", "PATH", "HOME", "LANG", "LC_ALL", "USER", "LOGNAME", "TZ", "TMPDIR", "PWD", "SHLVL", "_"),
        *("LONGSHORE_RUN_ID", "LONGSHORE_STEP", "LONGSHORE_ATTEMPT"),
    }


def test_a_command_reads_the_text_that_it_is_given() -> None:
    assert execute("cat", stdin="grüße\n").act().data["stdout"] == "grüße\n"


def test_what_a_command_prints_goes_to_the_steps_log() -> None:
    told: list[tuple[str, list[str]]] = []

    def printed(stream: str, lines: Sequence[str]) -> None:
        told.append((stream, list(lines)))

    shell("echo out; sleep 0.1; echo err >&2; sleep 0.1; printf rest", {"printed": printed}).act()
    shell("true", {"printed": printed}).act()

    assert told == [("stdout", ["out"]), ("stderr", ["err"]), ("stdout", ["rest"])]


def test_output_is_told_while_the_command_runs_and_never_more_than_is_kept() -> None:
    told: list[tuple[float, int]] = []
    began = time.monotonic()

    def printed(_stream: str, lines: Sequence[str]) -> None:
        told.append((time.monotonic() - began, len(lines)))

    shell("echo first; sleep 1; seq 1 200000; sleep 0.6; echo last", {"printed": printed}).act()

    assert told[0][0] < 1.5, "not only at the end"
    assert max(count for _, count in told) <= 1000


def test_a_command_that_cannot_be_started_has_had_no_effect() -> None:
    with pytest.raises(Preflight, match="no such program"):
        execute("no-such-program").act()
    with pytest.raises(Preflight, match="no such folder"):
        execute("true", cwd="/no/such/folder").act()


def test_a_command_ends_at_its_own_limit_and_at_that_of_its_attempt() -> None:
    started = time.monotonic()

    with pytest.raises(OperationError, match=r"exceeded its timeout of 0\.2 s"):
        execute("sleep", "60", timeout="200ms").act()
    with pytest.raises(StepTimeout):
        execute("sleep", "60", context={"deadline": time.monotonic() + 0.2}).act()

    assert time.monotonic() - started < SOON


def test_a_command_ends_when_the_run_does() -> None:
    started = time.monotonic()

    with pytest.raises(StepCancelled):
        execute("sleep", "60", context={"asked_to_stop": lambda: time.monotonic() > started + 0.2}).act()

    assert time.monotonic() - started < SOON


def test_a_dry_run_says_what_would_be_run_and_runs_nothing(tmp_path: Path) -> None:
    made = tmp_path / "made"
    plain = execute("touch", str(made), "two words")
    guarded = shell(f"touch {made}", unless=f"touch {made}")

    assert plain.predict().action == f"would run: touch {made} 'two words'"
    assert plain.predict().changed is True
    assert guarded.predict().action.startswith("would run, unless its check exits with 0: ")
    assert list(tmp_path.iterdir()) == []


def test_a_command_is_not_taken_back_by_itself() -> None:
    step = execute("true")
    step.act()

    with pytest.raises(OperationError, match="give the step an undo"):
        step.undo()


def test_output_without_line_ends_that_is_no_text_is_bounded() -> None:
    told = 0

    def printed(_stream: str, lines: Sequence[str]) -> None:
        nonlocal told
        told += len(lines)

    data = shell("head -c 33554432 /dev/zero; printf '\\377 end'", {"printed": printed}).act().data

    assert data["truncated"]
    assert len(data["stdout"]) <= 64 * 1024
    assert data["stdout"].endswith("\ufffd end")

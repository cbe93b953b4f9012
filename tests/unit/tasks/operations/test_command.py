"""`command.*`: guards, exit codes, environment, and predictions."""

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


def test_command_data_holds_output_and_exit_code() -> None:
    outcome = shell("echo out; echo err >&2").act()

    assert outcome.changed
    data = dict(outcome.data)
    assert data.pop("duration_ms") >= 0
    assert data == {"stdout": "out\n", "stderr": "err\n", "exit_code": 0, "truncated": False}


def test_argument_list_bypasses_the_shell() -> None:
    assert execute("echo", "$HOME; `id` && *").act().data["stdout"] == "$HOME; `id` && *\n"


def test_read_only_command_reports_no_change() -> None:
    step = execute("true", changes=False)

    assert step.predict().changed is False
    assert not step.act().changed


def test_unexpected_exit_code_fails_with_the_last_line() -> None:
    step = shell("echo first; echo second >&2; echo why >&2; exit 7")

    with pytest.raises(Unsuccessful, match=r"^/bin/sh exited with code 7: why$") as caught:
        step.act()

    assert caught.value.data["exit_code"] == 7
    assert caught.value.data["stderr"] == "second\nwhy\n"


def test_failure_without_stderr_quotes_stdout() -> None:
    with pytest.raises(Unsuccessful, match=r"exited with code 1: text$"):
        shell("echo text; exit 1").act()
    with pytest.raises(Unsuccessful, match=r"exited with code 1$"):
        shell("exit 1").act()


def test_plan_sets_the_accepted_exit_codes() -> None:
    assert shell("exit 3", ok_codes=[0, 3]).act().data["exit_code"] == 3
    with pytest.raises(Unsuccessful):
        shell("exit 0", ok_codes=[3]).act()


def test_existing_creates_path_skips_the_command(tmp_path: Path) -> None:
    step = shell("echo x >>made; echo ran", cwd=str(tmp_path), creates="made")

    first, second = step.act(), step.act()

    assert (first.changed, second.changed) == (True, False)
    assert second.data["skipped"] == f"{tmp_path}/made exists"
    assert (tmp_path / "made").read_text() == "x\n"
    assert step.predict().changed is False


def test_creates_path_may_be_absolute(tmp_path: Path) -> None:
    step = execute("touch", f"{tmp_path}/made", creates=f"{tmp_path}/made")

    assert [step.act().changed, step.act().changed] == [True, False]


@pytest.mark.parametrize("unless", ["test -e made", ["test", "-e", "made"]])
def test_check_command_decides_whether_to_run(unless: str | list[str], tmp_path: Path) -> None:
    step = shell("echo x >>made", cwd=str(tmp_path), unless=unless)

    assert step.predict().changed is None
    assert [step.act().changed, step.act().changed] == [True, False]
    assert (tmp_path / "made").read_text() == "x\n"


def test_command_environment_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET", "x")
    monkeypatch.setenv("HOME", "/home/ops")

    output = execute("env", env={"PORT": "80", "PATH": "/usr/bin:/bin"}, context={"attempt": 2}).act().data["stdout"]

    seen = dict(line.split("=", 1) for line in output.splitlines())
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


def test_command_reads_stdin() -> None:
    assert execute("cat", stdin="grüße\n").act().data["stdout"] == "grüße\n"


def test_command_output_is_logged_for_the_step() -> None:
    calls: list[tuple[str, list[str]]] = []

    def printed(stream: str, lines: Sequence[str]) -> None:
        calls.append((stream, list(lines)))

    shell("echo out; sleep 0.1; echo err >&2; sleep 0.1; printf rest", {"printed": printed}).act()
    shell("true", {"printed": printed}).act()

    assert calls == [("stdout", ["out"]), ("stderr", ["err"]), ("stdout", ["rest"])]


def test_output_is_streamed_and_bounded() -> None:
    calls: list[tuple[float, int]] = []
    began = time.monotonic()

    def printed(_stream: str, lines: Sequence[str]) -> None:
        calls.append((time.monotonic() - began, len(lines)))

    shell("echo first; sleep 1; seq 1 200000; sleep 0.6; echo last", {"printed": printed}).act()

    assert calls[0][0] < 1.5, "the output arrived only at the end"
    assert max(count for _, count in calls) <= 1000


def test_command_that_fails_to_start_has_no_effect() -> None:
    with pytest.raises(Preflight, match="no such program"):
        execute("no-such-program").act()
    with pytest.raises(Preflight, match="no such folder"):
        execute("true", cwd="/no/such/folder").act()


def test_command_ends_at_its_timeout_and_at_its_attempts() -> None:
    started = time.monotonic()

    with pytest.raises(OperationError, match=r"exceeded its timeout of 0\.2 s"):
        execute("sleep", "60", timeout="200ms").act()
    with pytest.raises(StepTimeout):
        execute("sleep", "60", context={"deadline": time.monotonic() + 0.2}).act()

    assert time.monotonic() - started < SOON


def test_command_is_killed_when_its_run_is_cancelled() -> None:
    started = time.monotonic()

    with pytest.raises(StepCancelled):
        execute("sleep", "60", context={"asked_to_stop": lambda: time.monotonic() > started + 0.2}).act()

    assert time.monotonic() - started < SOON


def test_dry_run_shows_the_command_without_running_it(tmp_path: Path) -> None:
    made = tmp_path / "made"
    plain = execute("touch", str(made), "two words")
    guarded = shell(f"touch {made}", unless=f"touch {made}")

    assert plain.predict().action == f"would run: touch {made} 'two words'"
    assert plain.predict().changed is True
    assert guarded.predict().action.startswith("would run, unless its check exits with 0: ")
    assert list(tmp_path.iterdir()) == []


def test_command_has_no_undo_of_its_own() -> None:
    step = execute("true")
    step.act()

    with pytest.raises(OperationError, match="give the step an undo"):
        step.undo()


def test_binary_output_without_newlines_is_bounded() -> None:
    sizes: list[int] = []

    def printed(_stream: str, lines: Sequence[str]) -> None:
        sizes.extend(len(line) for line in lines)

    data = shell("head -c 33554432 /dev/zero; printf '\\377 end'", {"printed": printed}).act().data

    assert data["truncated"]
    assert len(data["stdout"]) <= 64 * 1024
    assert data["stdout"].endswith("\ufffd end")
    assert max(sizes) <= 8192, "a line without end was kept whole"
    assert len(sizes) < 2000, "the log has all lines"

"""Programs: output, exit, and cleanup."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from longshore.orchestration.errors import OperationError, Preflight, StepCancelled
from longshore.tasks.host.machine import process
from longshore.tasks.host.machine.process import OUTPUT_LIMIT, Completed
from tests.servers import SOON

ENV = {"PATH": os.environ["PATH"]}


def sh(command: str, **more: object) -> Completed:
    return process.run(["/bin/sh", "-c", command], env=ENV, **more)  # type: ignore[arg-type]


def is_alive(pid: int) -> bool:
    """Report whether the process exists and is not a zombie."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return status.rpartition(") ")[2][0] != "Z"


def ends_soon(pid: int, within: float = 3.0) -> bool:
    until = time.monotonic() + within
    while is_alive(pid) and time.monotonic() < until:
        time.sleep(0.02)
    return not is_alive(pid)


def written_pid(path: Path) -> int:
    """Wait for a process id that a program writes into a file."""
    until = time.monotonic() + 30
    while time.monotonic() < until:
        if path.exists() and path.read_text().endswith("\n"):
            return int(path.read_text())
        time.sleep(0.01)
    raise AssertionError(f"{path} was not written")


def test_stdout_and_stderr_are_separate() -> None:
    done = sh("echo out; echo err >&2; exit 3")

    assert (done.exit_code, done.stdout, done.stderr, done.truncated) == (3, "out\n", "err\n", False)
    assert 0 <= done.duration_ms < 5000


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGUSR1])
def test_signal_exit_code_is_128_plus_signal(number: signal.Signals) -> None:
    assert sh(f"kill -{number.value} $$").exit_code == 128 + number.value


def test_long_output_keeps_its_end() -> None:
    done = sh("head -c 300000 /dev/zero | tr '\\0' x; echo the end; echo short >&2")

    assert len(done.stdout) == OUTPUT_LIMIT
    assert done.stdout.endswith("xxx" + "the end\n")
    assert done.stderr == "short\n"
    assert done.truncated


def test_output_at_the_limit_is_complete() -> None:
    assert not sh("printf 12345", limit=5).truncated
    assert sh("printf 123456", limit=5).stdout == "23456"


def test_invalid_utf8_output_is_replaced() -> None:
    assert sh(r"printf 'a\377b'").stdout == "a�b"


def test_program_gets_only_the_given_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGSHORE_SECRET", "x")

    done = process.run(["env"], env=ENV | {"ONE": "1"})

    assert sorted(line.partition("=")[0] for line in done.stdout.splitlines()) == ["ONE", "PATH"]


def test_program_runs_in_the_given_folder(tmp_path: Path) -> None:
    assert sh("pwd", cwd=str(tmp_path)).stdout == f"{tmp_path}\n"


def test_stdin_is_written_while_output_is_read() -> None:
    # given: more data than the pipes hold, in both directions
    data = os.urandom(300_000).hex().encode()

    done = process.run(["cat"], env=ENV, stdin=data, limit=10_000_000)

    assert done.stdout.encode() == data


def test_unread_stdin_does_not_block() -> None:
    assert sh("exit 0", stdin=b"x" * 1_000_000).exit_code == 0
    assert sh("cat", stdin=b"").stdout == ""
    assert sh("cat").stdout == "", "a program without input waits for its standard input"


@pytest.mark.parametrize(
    ("argv", "cwd", "says"),
    [
        (["no-such-program"], None, "no such program: no-such-program"),
        (["/no/such/program"], None, "no such program: /no/such/program"),
        (["true"], "/no/such/folder", "no such folder: /no/such/folder"),
        (["true"], "/etc/passwd", "cannot run true: "),
        (["/etc/passwd"], None, "cannot run /etc/passwd: "),
        (["/"], None, "cannot run /: "),
        (["true\0"], None, "embedded null byte"),
    ],
)
def test_program_that_fails_to_start_has_no_effect(argv: list[str], cwd: str | None, says: str) -> None:
    with pytest.raises(Preflight, match=says):
        process.run(argv, cwd=cwd, env=ENV)


def test_timeout_kills_the_process_group(tmp_path: Path) -> None:
    # given: a program and its child, which both ignore TERM
    started = time.monotonic()
    script = (
        f"trap '' TERM; sleep 60 & echo $! >{tmp_path}/child; echo $$ >{tmp_path}/parent; while :; do sleep 60; done"
    )

    with pytest.raises(OperationError, match=r"exceeded its timeout of 0\.4 s"):
        sh(script, timeout=0.4, grace=0.2)

    assert time.monotonic() - started < SOON
    assert ends_soon(written_pid(tmp_path / "parent"))
    assert ends_soon(written_pid(tmp_path / "child"))


def test_sigterm_ends_a_program_before_sigkill(tmp_path: Path) -> None:
    started = time.monotonic()

    with pytest.raises(OperationError, match="exceeded its timeout of"):
        sh(f"trap 'echo bye >{tmp_path}/said; exit 0' TERM; while :; do sleep 0.05; done", timeout=0.3, grace=30)

    assert time.monotonic() - started < SOON
    assert (tmp_path / "said").read_text() == "bye\n"


def test_timeout_applies_after_output_is_closed() -> None:
    assert sh("exec >&- 2>&-; sleep 0.2; exit 4").exit_code == 4
    with pytest.raises(OperationError, match="exceeded its timeout of"):
        sh("exec >&- 2>&-; exec sleep 60", timeout=0.3, grace=0.2)


def test_program_exit_ends_the_call_despite_open_output(tmp_path: Path) -> None:
    # given: a child that keeps the pipes open
    started = time.monotonic()

    done = sh(f"sleep 30 & echo $! >{tmp_path}/child; echo said")
    child = written_pid(tmp_path / "child")
    os.kill(child, signal.SIGKILL)

    assert (done.exit_code, done.stdout) == (0, "said\n")
    assert time.monotonic() - started < SOON


def test_check_error_kills_the_program_and_propagates(tmp_path: Path) -> None:
    # given: a check that cancels
    asked = []

    def check() -> None:
        asked.append(time.monotonic())
        if len(asked) > 2:
            raise StepCancelled("stopped")

    with pytest.raises(StepCancelled, match="stopped"):
        sh(f"echo $$ >{tmp_path}/pid; exec sleep 60", check=check, grace=0.5)

    assert ends_soon(written_pid(tmp_path / "pid"))
    assert asked[-1] - asked[0] < 2, "the check was not called several times a second"


def test_program_dies_with_its_worker(tmp_path: Path) -> None:
    # given: a worker with a running program
    code = (
        "import os\nfrom longshore.tasks.host.machine import process\n"
        f"process.run(['/bin/sh', '-c', 'echo $$ >{tmp_path}/pid; exec sleep 60'], env=dict(os.environ))\n"
    )
    worker = os.posix_spawn(sys.executable, [sys.executable, "-c", code], os.environ)
    program = written_pid(tmp_path / "pid")

    os.kill(worker, signal.SIGKILL)
    os.waitpid(worker, 0)

    assert ends_soon(program)


def test_no_file_descriptors_leak(tmp_path: Path) -> None:
    def descriptors() -> set[str]:
        return set(os.listdir("/proc/self/fd"))

    sh("true")
    before = descriptors()
    sh("echo x; echo y >&2", stdin=b"x")
    with pytest.raises(Preflight):
        process.run(["no-such-program"], env=ENV)
    with pytest.raises(OperationError):
        sh("exec sleep 60", timeout=0.05, grace=0.1)

    assert descriptors() == before

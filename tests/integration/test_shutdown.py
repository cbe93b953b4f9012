"""Ctrl-C does not end a run, and the embedded server cleans up after its last command."""

from __future__ import annotations

import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fork_server import Process
from tests.integration.processes import (
    CommandResult,
    Installation,
    lines,
    processes_with_text,
    result_of,
    tree,
    wait_for,
)

PLAN = """\
name: slow
steps:
  before:
    op: command.shell.execute
    with: {{command: "echo before >> {log}"}}
    undo: {{op: command.shell.execute, with: {{command: "echo taken back >> {log}"}}}}
  sleep: {{op: noop.execute, with: {{sleep: {sleep}}}, after: [before]}}
  after:
    op: command.shell.execute
    with: {{command: "echo after >> {log}; exit {code}"}}
    after: [sleep]
    undo: none
"""


def write(folder: Path, sleep: float, code: int = 0) -> tuple[Path, Path]:
    """Write a plan into a file; return the file, and the log into which the steps write."""
    log, plan = folder / "log", folder / "plan.yaml"
    plan.write_text(PLAN.format(log=log, sleep=sleep, code=code))
    return plan, log


def interrupt_during_the_first_step(process: Process, log: Path) -> float:
    """Send Ctrl-C during the first step, and return the time of the signal."""
    wait_for("the first step to start", lambda: lines(log))
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    return time.monotonic()


def test_ctrl_c_does_not_end_the_run_and_watch_exits_with_its_code(workers: Installation, tmp_path: Path) -> None:
    # given a run that will succeed, and a quiet run that will fail
    started = []
    for code in (0, 1):
        folder = tmp_path / str(code)
        folder.mkdir()
        plan, log = write(folder, 4.0, code)
        more = ["--quiet"] if code else []
        started.append((workers.popen("run", str(plan), "--run-id", f"left-alone-{code}", *more), log))

    # when
    for process, log in started:
        interrupt_during_the_first_step(process, log)
    left = [result_of(process) for process, _ in started]

    # then
    for code, one in enumerate(left):
        assert one.code not in {0, 1, 2, 3}
        assert f"run left-alone-{code} continues" in one.err
        assert f"longshore runs watch left-alone-{code}" in one.err
        assert "Traceback" not in one.err
    # and `runs watch` follows the live runs
    watching = [workers.popen("runs", "watch", f"left-alone-{code}", "-o", "json") for code in (0, 1)]
    watched = [result_of(process) for process in watching]
    assert [one.code for one in watched] == [0, 1]
    assert [one.json["state"] for one in watched] == ["succeeded", "undone"]
    assert [lines(log) for _, log in started] == [["before", "after"], ["before", "after", "taken back"]]
    assert workers.longshore("runs", "show", "left-alone-1").code == 1


def test_second_ctrl_c_within_two_seconds_cancels_the_run(workers: Installation, tmp_path: Path) -> None:
    # given
    plan, log = write(tmp_path, 30.0)
    process = workers.popen("run", str(plan), "--run-id", "second-thought")

    # when
    began = interrupt_during_the_first_step(process, log)
    time.sleep(0.7)
    process.send_signal(signal.SIGINT)
    left = result_of(process)

    # then
    assert left.code not in {0, 1, 2, 3}
    assert "cancel" in left.err
    watched = workers.longshore("runs", "watch", "second-thought", "-o", "json")
    assert time.monotonic() - began < 15.0
    assert watched.code == 1
    assert (watched.json["state"], watched.json["cause"]) == ("undone", "cancel")
    assert lines(log) == ["before", "taken back"]


def test_detach_prints_the_id_and_does_not_wait(workers: Installation, tmp_path: Path) -> None:
    # given
    plan, log = write(tmp_path, 2.5)

    # when
    started = workers.longshore("run", str(plan), "--detach")

    # then
    assert started.code == 0
    assert "after" not in lines(log)
    (run_id,) = started.out.splitlines()
    assert workers.longshore("runs", "watch", run_id).code == 0


# --- the embedded server ----------------------------------------------------------------------------


class Embedded(Installation):
    """An installation without a Redis: the first command starts the embedded server."""

    @property
    def environment(self) -> dict[str, str]:
        env = super().environment
        del env["LONGSHORE_REDIS_URL"], env["LONGSHORE_NAMESPACE"]
        return env

    @property
    def state(self) -> Path:
        return self.folder / "state"

    def processes(self) -> dict[int, str]:
        return processes_with_text(str(self.state))

    def wait_for_end(self) -> None:
        wait_for(f"an end of {self.processes()}", lambda: not self.processes(), 40.0, 0.3)

    def kill(self) -> None:
        """Kill all processes, as a power failure does."""
        for pid in self.processes():
            subprocess.run(["kill", "-KILL", str(pid)], check=False)


@pytest.fixture
def embedded(short_folder: Path) -> Iterator[Embedded]:
    """A new installation, whose server ends after two idle seconds."""
    made = Embedded("", short_folder, options={"idle_timeout": "2s", "concurrency": "2", "lease": "1s"})
    try:
        yield made
    finally:
        made.kill()


@pytest.fixture(scope="module")
def shared() -> Iterator[Embedded]:
    """An installation whose server continues from test to test."""
    with tempfile.TemporaryDirectory(prefix="ls-") as folder:
        made = Embedded("", Path(folder), options={"idle_timeout": "60s", "concurrency": "2", "lease": "1s"})
        try:
            yield made
        finally:
            made.kill()
            made.wait_for_end()


def test_embedded_server_survives_ctrl_c_and_keeps_runs_after_its_idle_end(embedded: Embedded, tmp_path: Path) -> None:
    # given a run that is longer than the idle time
    plan, log = write(tmp_path, 5.0)
    process = embedded.popen("run", str(plan), "--run-id", "alone")

    # when
    interrupt_during_the_first_step(process, log)
    left = result_of(process)

    # then
    assert "longshore runs watch alone" in left.err
    watched = embedded.longshore("runs", "watch", "alone", "-o", "json")
    assert watched.code == 0, watched.err
    assert watched.json["state"] == "succeeded"
    assert lines(log) == ["before", "after"]

    # when no command follows
    embedded.wait_for_end()

    # then a later command finds the run, and leaves no process
    listed = embedded.longshore("runs", "ls", "-o", "json")
    assert [(run["run_id"], run["state"]) for run in listed.json] == [("alone", "succeeded")]
    embedded.wait_for_end()
    assert not (embedded.state / "redis.sock").exists()
    assert {path.name for path in embedded.folder.iterdir()} == {"state"}


def test_four_commands_at_once_share_one_embedded_server(shared: Embedded, tmp_path: Path) -> None:
    # given
    plan, log = write(tmp_path, 0.0)

    # when
    started = [shared.popen("run", str(plan), "--run-id", f"number-{n}") for n in range(4)]
    ended = [result_of(process) for process in started]

    # then
    assert [one.code for one in ended] == [0] * 4, [one.err for one in ended]
    servers = [command for command in shared.processes().values() if "server" in command.split()[0]]
    assert len(servers) == 1
    assert sorted(lines(log)) == ["after"] * 4 + ["before"] * 4


def test_second_ctrl_c_cancels_a_run_on_the_embedded_server(shared: Embedded, tmp_path: Path) -> None:
    # given
    plan, log = write(tmp_path, 60.0)
    process = shared.popen("run", str(plan), "--run-id", "regretted")

    # when
    interrupt_during_the_first_step(process, log)
    time.sleep(0.7)
    process.send_signal(signal.SIGINT)
    result_of(process)

    # then
    shown: CommandResult = shared.longshore("runs", "watch", "regretted", "-o", "json")
    assert (shown.code, shown.json["cause"], shown.json["state"]) == (1, "cancel", "undone")
    assert lines(log) == ["before", "taken back"]


def test_embedded_run_continues_after_all_processes_were_killed(shared: Embedded, tmp_path: Path) -> None:
    # given a run with a running step
    plan, log = write(tmp_path, 4.0)
    started = shared.longshore("run", str(plan), "--run-id", "unplugged", "--detach")
    assert started.code == 0, started.err
    wait_for("the second step to start", lambda: _is_running(shared, "unplugged", "sleep"), interval=0.5)

    # when all processes are killed, as by a power failure
    shared.kill()
    shared.wait_for_end()

    # then the next command completes the run
    watched = shared.longshore("runs", "watch", "unplugged", "-o", "json")
    assert watched.code == 0, watched.err
    assert [step["attempts"] for step in watched.json["steps"]] == [1, 2, 1]
    assert lines(log) == ["before", "after"]


def _is_running(shared: Embedded, run_id: str, step: str) -> bool:
    steps = shared.longshore("runs", "show", run_id, "-o", "json").json["steps"]
    return any(one["name"] == step and one["status"] == "running" for one in steps)


@pytest.mark.parametrize("survivor", ["server", "embedded@"])
def test_next_command_restarts_a_killed_part_of_the_embedded_server(
    shared: Embedded, tmp_path: Path, survivor: str
) -> None:
    # given a run with a running step
    plan, log = write(tmp_path, 4.0)
    run_id = f"orphaned-{survivor.strip('@')}"
    started = shared.longshore("run", str(plan), "--run-id", run_id, "--detach")
    assert started.code == 0, started.err
    wait_for("the second step to start", lambda: _is_running(shared, run_id, "sleep"), interval=0.5)

    # when all processes but the server, or all but the worker, are killed
    spared = [pid for pid, command in shared.processes().items() if survivor in command]
    assert spared
    for pid in shared.processes().keys() - set(spared):
        subprocess.run(["kill", "-KILL", str(pid)], check=False)

    # then the next command completes the run, with one server and one worker
    watched = shared.longshore("runs", "watch", run_id, "-o", "json")
    assert watched.code == 0, watched.err
    assert lines(log) == ["before", "after"]
    assert not set(spared) & shared.processes().keys(), "a process of the earlier start is left"


def test_version_and_help_start_nothing(embedded: Embedded) -> None:
    # when
    version = embedded.longshore("--version")
    help_text = embedded.longshore("run", "--help")

    # then
    assert (version.code, help_text.code) == (0, 0)
    assert tree(embedded.folder) == {}
    assert embedded.processes() == {}

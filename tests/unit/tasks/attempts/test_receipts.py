"""Receipts: one attempt at a time, and none after one with a higher fence."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from longshore.orchestration.errors import StepCancelled, Transient
from longshore.tasks.attempts.receipts import Ledger, Process, Receipt, StaleAttempt

HOLDER = """
import sys, time
from pathlib import Path
from longshore.tasks.attempts.receipts import Receipt
receipt = Receipt(Path(sys.argv[1]), int(sys.argv[2]), "", alone=sys.argv[3] == "alone")
with receipt.held(5.0, lambda: None):
    if len(sys.argv) > 4:
        import subprocess
        receipt.began(subprocess.Popen(["sleep", "60"], start_new_session=True).pid)
    print("held", flush=True)
    time.sleep(60)
"""


def nothing() -> None:
    """A check that never cancels."""


def holder(path: Path, fence: int, *arguments: str) -> subprocess.Popen[str]:
    """Start a process that holds the lock of the receipt until the test kills the process."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path), str(fence), *arguments], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def test_unrecorded_outcome_is_read_from_the_receipt(tmp_path: Path) -> None:
    path = tmp_path / "run" / "step.json"
    first = Receipt(path, 1, "")
    with first.held(1.0, nothing) as found:
        assert found is None
        first.done({"changed": True, "data": {"sha256": "ab"}})

    with Receipt(path, 2, "").held(1.0, nothing) as found:
        assert found == {"changed": True, "data": {"sha256": "ab"}}
    # and again, because that attempt was killed, too
    with Receipt(path, 3, "").held(1.0, nothing) as found:
        assert found is not None


def test_reopened_run_ignores_receipts_of_earlier_epoch(tmp_path: Path) -> None:
    first = Receipt(tmp_path / "r", 1, "", epoch=0)
    with first.held(1.0, nothing):
        first.done({"changed": True, "data": {}})
    with Receipt(tmp_path / "r", 2, "", epoch=1).held(1.0, nothing) as found:
        assert found is None


def test_receipt_without_an_outcome_allows_a_retry(tmp_path: Path) -> None:
    with Receipt(tmp_path / "r", 1, "").held(1.0, nothing):
        pass
    with Receipt(tmp_path / "r", 2, "").held(1.0, nothing) as found:
        assert found is None


def test_attempt_with_a_lower_fence_is_rejected(tmp_path: Path) -> None:
    with Receipt(tmp_path / "r", 7, "").held(1.0, nothing):
        pass
    with pytest.raises(StaleAttempt), Receipt(tmp_path / "r", 6, "").held(1.0, nothing):
        pass


def test_undo_receipt_rejects_forward_attempts(tmp_path: Path) -> None:
    first = Receipt(tmp_path / "r", 1, "")
    with first.held(1.0, nothing):
        first.done({"changed": True, "data": {}})
    with Receipt(tmp_path / "r", 2, "u").held(1.0, nothing) as found:
        assert found is None, "the receipt refused an undo"
    with pytest.raises(StaleAttempt), Receipt(tmp_path / "r", 1, "").held(1.0, nothing):
        pass


def test_stopped_lock_holder_is_killed(tmp_path: Path) -> None:
    ghost = holder(tmp_path / "r", 1, "alone")
    ghost.send_signal(signal.SIGSTOP)

    with Receipt(tmp_path / "r", 2, "").held(10.0, nothing):
        assert ghost.wait(5.0) == -signal.SIGKILL
    end(ghost)


def test_shared_process_holding_the_lock_is_awaited(tmp_path: Path) -> None:
    busy = holder(tmp_path / "r", 1, "threads")

    with pytest.raises(Transient, match="still running"), Receipt(tmp_path / "r", 2, "").held(0.3, nothing):
        pass
    assert busy.poll() is None
    end(busy)


def test_waiting_for_the_lock_can_be_cancelled(tmp_path: Path) -> None:
    busy = holder(tmp_path / "r", 1, "threads")

    def stop() -> None:
        raise StepCancelled("the run is being ended")

    with pytest.raises(StepCancelled), Receipt(tmp_path / "r", 2, "").held(30.0, stop):
        pass
    end(busy)


def test_lock_holder_with_a_higher_fence_is_not_killed(tmp_path: Path) -> None:
    later = holder(tmp_path / "r", 9, "alone")

    with pytest.raises(StaleAttempt), Receipt(tmp_path / "r", 2, "").held(5.0, nothing):
        pass
    assert later.poll() is None
    end(later)


def test_orphaned_programs_of_an_attempt_are_killed(tmp_path: Path) -> None:
    ghost = holder(tmp_path / "r", 1, "alone", "with a program")
    ghost.send_signal(signal.SIGKILL)
    ghost.wait()
    (program,) = json.loads((tmp_path / "r").read_text())["groups"]
    assert Process.read(program) is not None

    with Receipt(tmp_path / "r", 2, "").held(5.0, nothing):
        until = time.monotonic() + 5.0
        found = Process.read(program)
        assert found is not None
        while found.exists() and "Z" not in Path(f"/proc/{found.pid}/stat").read_text().rpartition(")")[2][:3]:
            assert time.monotonic() < until, "an orphaned program still runs"
            time.sleep(0.05)
    end(ghost)


def test_process_identity_includes_start_time(tmp_path: Path) -> None:
    mine = Process.of(os.getpid())
    assert mine is not None
    assert mine.exists()
    assert not Process(mine.pid, "1", mine.boot).exists()
    assert not Process(mine.pid, mine.started, "another boot").exists()
    assert Process.of(2**22 + 1) is None


@pytest.mark.parametrize("text", ["", "{", "[]", '"x"', '{"fence": 0}'])
def test_torn_receipt_is_ignored(tmp_path: Path, text: str) -> None:
    (tmp_path / "r").write_text(text)
    with Receipt(tmp_path / "r", 1, "").held(1.0, nothing) as found:
        assert found is None


def test_outcome_too_large_for_a_receipt_is_repeated(tmp_path: Path) -> None:
    first = Receipt(tmp_path / "r", 1, "")
    with first.held(1.0, nothing):
        first.done({"changed": True, "data": {"text": "x" * 100_000}})
    with Receipt(tmp_path / "r", 2, "").held(1.0, nothing) as found:
        assert found is None


def test_ledger_keeps_the_highest_version_of_a_run(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, "ns")
    assert ledger.version("r", "b") == 0
    ledger.seen("r", "b", 7)
    ledger.seen("r", "b", 5)
    assert (ledger.version("r", "b"), ledger.version("r", "another"), Ledger(tmp_path, "n").version("r", "b")) == (
        7,
        0,
        0,
    )


def test_ledger_removes_receipts_and_backups_of_deleted_runs(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, "ns")
    ledger.clean(10.0, lambda _run_id: False)
    for run_id in ("old", "suspended", "new"):
        ledger.seen(run_id, "b", 1)
        for kind in ("backups", "names"):
            (tmp_path / kind / run_id).mkdir(parents=True)
            (tmp_path / kind / run_id / "step.bytes").write_bytes(b"former content")
    for run_id in ("old", "suspended"):
        os.utime(tmp_path / "receipts" / "ns" / f"{run_id}~b", (0, 0))

    ledger.clean(3600.0, lambda run_id: run_id == "suspended")

    assert [ledger.version(run_id, "b") for run_id in ("old", "suspended", "new")] == [0, 1, 1]
    for kind in ("backups", "names"):
        assert {path.name for path in (tmp_path / kind).iterdir()} == {"suspended", "new"}


def test_ledger_is_readable_by_its_owner_only(tmp_path: Path) -> None:
    with Ledger(tmp_path, "ns").receipt("r", "b", "step", 1, "", alone=True).held(1.0, nothing):
        (path,) = tmp_path.glob("receipts/ns/*/step.json")
        assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)


# --- receipts of an ending run ----------------------------------------------------------------------------


def test_closed_step_rejects_every_forward_attempt(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, "ns")
    ledger.close("run", "instance_id", 0, ["closed", "parts@1"])

    for part in ("closed", "closed@3", "parts@1"):
        receipt = ledger.receipt("run", "instance_id", part, 10**18, "", alone=True)
        with pytest.raises(StaleAttempt), receipt.held(1.0, nothing):
            pass
    for part in ("open", "parts@2"):
        with ledger.receipt("run", "instance_id", part, 1, "", alone=True).held(1.0, nothing):
            pass


def test_resume_reopens_a_closed_step(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, "ns")
    ledger.close("run", "instance_id", 0, ["step"])

    with ledger.receipt("run", "instance_id", "step", 1, "u", alone=True).held(1.0, nothing):
        pass
    with ledger.receipt("run", "instance_id", "step", 2, "", epoch=1, alone=True).held(1.0, nothing):
        pass


def test_closing_more_steps_keeps_closed_steps_closed(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, "ns")
    ledger.close("run", "instance_id", 0, ["one"])
    ledger.close("run", "instance_id", 0, ["two"])

    for part in ("one", "two"):
        receipt = ledger.receipt("run", "instance_id", part, 1, "", alone=True)
        with pytest.raises(StaleAttempt), receipt.held(1.0, nothing):
            pass


def test_receipt_holds_the_data_for_undo(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, "ns")
    with ledger.receipt("run", "instance_id", "step", 5, "", alone=True).held(1.0, nothing):
        pass
    # A later attempt keeps the journal of the first.
    first = ledger.receipt("run", "instance_id", "step", 6, "", alone=True)
    with first.held(1.0, nothing):
        first.journalled('{"path":"x"}', '{"sha256":"ab"}')
    second = ledger.receipt("run", "instance_id", "step", 7, "", alone=True)
    with second.held(1.0, nothing):
        second.done({"changed": True, "data": {}})

    (trace,), held = ledger.traces("run", "instance_id", 1.0)

    assert held == []
    assert (trace.part, trace.fence, trace.rendered, trace.before) == ("step", 7, '{"path":"x"}', '{"sha256":"ab"}')
    assert trace.outcome == {"changed": True, "data": {}}


def test_closing_a_run_kills_receipt_lock_holders(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, "ns")
    path = ledger.receipt("run", "instance_id", "step", 1, "", alone=True).path
    path.parent.mkdir(parents=True)
    ghost = holder(path, 10**18, "alone")
    ghost.send_signal(signal.SIGSTOP)

    (trace,), held = ledger.traces("run", "instance_id", 10.0)

    assert ghost.wait(5.0) == -signal.SIGKILL
    assert (trace.outcome, held) == (None, [])
    end(ghost)


def test_lock_holder_that_cannot_be_killed_is_reported(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, "ns")
    path = ledger.receipt("run", "instance_id", "step", 1, "", alone=True).path
    path.parent.mkdir(parents=True)
    busy = holder(path, 1, "threads")

    assert ledger.traces("run", "instance_id", 0.2) == ([], ["step"])
    end(busy)

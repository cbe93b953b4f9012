"""Receipts stored beside each effect, so that a superseded attempt cannot act again.

A lease is not enough: a worker that was stopped for longer than its lease continues where it was, after its step was
retried or compensated. So every attempt that may change something holds a locked file with its fence on its host while
it acts. The next attempt ends the process that still holds the lock, and a later attempt with a lower fence is refused.
The file also stores the outcome until the record has it: an attempt that finds an outcome does not act again. Receipts
cover effects made from this host: files, commands, containers. The effects of a called service have to be fenced by
that service, by `ctx.fence` or `ctx.idempotency_key`.

Nothing is synced to the disk: a power failure ends the attempts too.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from longshore.orchestration.errors import Transient
from longshore.orchestration.language import identifiers
from longshore.tasks.host.backups import folders_of

log = logging.getLogger(__name__)

#: Largest stored outcome, bytes; a step with a larger one is run again.
_LARGEST = 64 * 1024
#: Largest receipt, bytes: an outcome, and a journal, which may be larger than the outcome.
_READ = 16 * 1024 * 1024
_TICK = 0.05
_CLOSED = "closed"


class StaleAttempt(Exception):
    """A later attempt has acted here, or the run has ended."""


@dataclass(frozen=True)
class Trace:
    """The receipt of the last attempt at one part of a run."""

    part: str
    fence: int
    side: str
    epoch: int
    #: The outcome that the attempt stored here, None where it stored none.
    outcome: dict[str, Any] | None
    rendered: str
    before: str


@dataclass(frozen=True)
class _Closed:
    """Steps, or single parts of them, closed to forward attempts of epochs up to `epoch`."""

    epoch: int = -1
    parts: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Process:
    """The identity of a process: process ids are reused."""

    pid: int
    started: str
    boot: str

    @classmethod
    def of(cls, pid: int) -> Process | None:
        """The present process with this id, or None."""
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
            space = os.readlink("/proc/self/ns/pid")
            boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        except OSError:
            return None
        return cls(pid, stat.rpartition(")")[2].split()[19], f"{boot} {space}")

    @classmethod
    def read(cls, value: Any) -> Process | None:
        return cls(*value) if isinstance(value, list) and len(value) == 3 else None

    def exists(self) -> bool:
        return Process.of(self.pid) == self


@dataclass
class Receipt:
    """The receipt file of one step, or of one part of it, on this host."""

    path: Path
    fence: int
    side: str
    #: How often the run was reopened: an outcome of an earlier epoch does not count now.
    epoch: int = 0
    #: Whether the holder of the lock may be killed: its process runs only this step.
    alone: bool = True
    #: The fence of the previous attempt.
    earlier: int = 0
    #: The rendered parameters and the data for the compensation, JSON, of the first attempt that journalled them.
    journal: list[str] = field(default_factory=lambda: ["", ""])
    _file: int = -1
    _groups: list[list[Any]] = field(default_factory=list)

    @contextlib.contextmanager
    def held(self, patience: float, check: Callable[[], None]) -> Iterator[dict[str, Any] | None]:
        """Hold the receipt while acting; yield the outcome of an attempt that acted and could not record it.

        Raises StaleAttempt, and Transient where an earlier attempt cannot be ended in `patience` seconds.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            before = self._lock(patience, check)
            if self._is_closed():
                raise StaleAttempt
            self.journal = _journal(before)
            self.earlier = int(before.get("fence", 0))
            self._end_groups(before)
            mine = before.get("phase") == "done" and before.get("epoch") == self.epoch and not self.side
            found = before.get("outcome") if mine else None
            self._write("intent" if found is None else "done", found)
            yield found if isinstance(found, dict) else None
        finally:
            os.close(self._file)  # releases the lock
            self._file = -1

    def done(self, outcome: dict[str, Any]) -> None:
        """Store the outcome of the effect until the record has it."""
        with contextlib.suppress(OSError):  # a full disk does not reverse the effect
            self._write("done", outcome if len(json.dumps(outcome)) <= _LARGEST else None)

    def journalled(self, rendered: str, before: str) -> None:
        """Store the data for the compensation beside the effect, in case Redis loses it."""
        self.journal = [rendered, before]
        with contextlib.suppress(OSError):
            self._write("intent", None)

    def taken_over(self, patience: float) -> Trace:
        """End the holder and the programs that it started; return the receipt.

        Raises Transient where the holder cannot be ended in `patience` seconds.
        """
        self._file = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
        try:
            found = self._lock(patience, lambda: None)
            self._end_groups(found)
        finally:
            os.close(self._file)
            self._file = -1
        outcome = found.get("outcome") if found.get("phase") == "done" else None
        return Trace(
            self.path.stem, int(found.get("fence", 0)), str(found.get("side", "")), int(found.get("epoch", 0)), outcome,
            *_journal(found),
        )  # fmt: skip

    def _is_closed(self) -> bool:
        """Whether the part is closed to forward attempts, whatever their fence."""
        closed = _read_closed(self.path.parent)
        step = self.path.stem.partition("@")[0]
        return not self.side and self.epoch <= closed.epoch and bool({step, self.path.stem} & closed.parts)

    def began(self, pid: int) -> None:
        """Note a started program, in its own process group, that must end before another attempt acts."""
        process = Process.of(pid)
        if process is not None:
            self._groups.append([process.pid, process.started, process.boot])
            with contextlib.suppress(OSError):
                self._write("intent", None)

    def _lock(self, patience: float, check: Callable[[], None]) -> dict[str, Any]:
        until = time.monotonic() + patience
        while True:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._end(self._read())
                check()
                if time.monotonic() >= until:
                    raise Transient(f"an earlier attempt is still running ({self.path})") from None
                time.sleep(_TICK)
            else:
                found = self._read()
                if int(found.get("fence", 0)) > self.fence:
                    raise StaleAttempt
                return found

    def _end(self, holder: dict[str, Any]) -> None:
        """End the holder of the lock, which has lost its step, where its process runs only that step."""
        if int(holder.get("fence", 0)) > self.fence:
            raise StaleAttempt
        process = Process.read(holder.get("process"))
        if process is None or process.pid == os.getpid() or not holder.get("alone") or not process.exists():
            return
        log.warning("process %s still holds a step that it has lost, and is killed (%s)", process.pid, self.path)
        with contextlib.suppress(OSError):
            os.kill(process.pid, signal.SIGKILL)

    def _end_groups(self, before: dict[str, Any]) -> None:
        """End the programs that a lost attempt started and that outlived it."""
        for known in before.get("groups") or []:
            process = Process.read(known)
            if process is not None and process.exists():
                with contextlib.suppress(OSError):
                    os.killpg(process.pid, signal.SIGKILL)

    def _read(self) -> dict[str, Any]:
        try:
            found = json.loads(os.pread(self._file, _READ, 0) or b"{}")
        except ValueError:
            return {}  # its process died while writing
        return found if isinstance(found, dict) else {}

    def _write(self, phase: str, outcome: dict[str, Any] | None) -> None:
        mine = Process.of(os.getpid())
        body = {
            "fence": self.fence,
            "side": self.side,
            "epoch": self.epoch,
            "phase": phase,
            "alone": self.alone,
            "process": [mine.pid, mine.started, mine.boot] if mine is not None else None,
            "groups": self._groups,
            "outcome": outcome,
            "journal": self.journal,
        }
        text = json.dumps(body).encode()
        was = os.pread(self._file, _READ, 0)
        if os.pwrite(self._file, text, 0) < len(text):
            os.pwrite(self._file, was, 0)  # this text has room: the fence must stay readable
            raise OSError(errno.ENOSPC, "no room for a receipt", str(self.path))
        os.ftruncate(self._file, len(text))


def _journal(found: dict[str, Any]) -> list[str]:
    kept = found.get("journal")
    return [str(part) for part in kept] if isinstance(kept, list) and len(kept) == 2 else ["", ""]


def _read_closed(folder: Path) -> _Closed:
    try:
        found = json.loads((folder / _CLOSED).read_text())
        return _Closed(int(found["epoch"]), frozenset(found["parts"]))
    except (OSError, ValueError, KeyError, TypeError):
        return _Closed()


class Ledger:
    """The receipts in this host's state folder, with the last version of each run that this host has seen."""

    def __init__(self, state_dir: Path, name: str) -> None:
        """`name` is `Settings.ledger_name`."""
        self._state_dir = state_dir
        self._folder = state_dir / "receipts" / name

    def _of(self, run_id: str, instance_id: str) -> Path:
        return self._folder / f"{identifiers.run_id(run_id)}~{identifiers.instance(instance_id)}"

    def receipt(
        self, run_id: str, instance_id: str, part: str, fence: int, side: str, *, epoch: int = 0, alone: bool
    ) -> Receipt:
        return Receipt(self._of(run_id, instance_id) / f"{identifiers.part(part)}.json", fence, side, epoch, alone)

    def version(self, run_id: str, instance_id: str) -> int:
        """The highest version of the run that this host has seen."""
        try:
            return int((self._of(run_id, instance_id) / "version").read_text() or 0)
        except (OSError, ValueError):
            return 0

    def seen(self, run_id: str, instance_id: str, version: int) -> None:
        """Store the version of the run. A race of two writers may store the lower one, still a lower bound."""
        folder = self._of(run_id, instance_id)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if version > self.version(run_id, instance_id):
            written = folder / f"version.{os.getpid()}"
            written.write_text(str(version))
            written.replace(folder / "version")

    def close(self, run_id: str, instance_id: str, epoch: int, parts: Iterable[str]) -> None:
        """Close these steps, or parts, to forward attempts of epochs up to `epoch`, with or without a receipt yet.

        Call this before `traces`: an attempt that writes a receipt afterwards finds its part closed.
        """
        folder = self._of(run_id, instance_id)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        known = _read_closed(folder)
        closed = sorted({*parts, *(known.parts if known.epoch == epoch else ())})
        written = folder / f"{_CLOSED}.{os.getpid()}"
        written.write_text(json.dumps({"epoch": epoch, "parts": closed}))
        written.replace(folder / _CLOSED)

    def traces(
        self, run_id: str, instance_id: str, patience: float, parts: Collection[str] | None = None
    ) -> tuple[list[Trace], list[str]]:
        """The receipts of a run, of these parts or of all, after their holders were ended.

        Also returns the parts whose holder could not be ended in `patience` seconds.
        """
        found: list[Trace] = []
        held: list[str] = []
        until = time.monotonic() + patience
        for path in sorted(self._of(run_id, instance_id).glob("*.json")):
            if parts is not None and path.stem not in parts:
                continue
            try:
                left = max(0.0, until - time.monotonic())
                found.append(Receipt(path, sys.maxsize, "u").taken_over(left))
            except Transient:
                held.append(path.stem)
        return found, held

    def clean(self, seconds: float, is_stored: Callable[[str], bool]) -> None:
        """Delete the receipts and backups of runs without activity on this host for `seconds`.

        The files of a run that Redis still stores (`is_stored`) stay at any age: an undo needs them.
        """
        if not self._folder.is_dir():
            return
        for folder in self._folder.iterdir():
            run_id = folder.name.rpartition("~")[0]
            with contextlib.suppress(OSError):
                if time.time() - folder.stat().st_mtime > seconds and not is_stored(run_id):
                    for backups in folders_of(self._state_dir, run_id):
                        shutil.rmtree(backups)
                    shutil.rmtree(folder)

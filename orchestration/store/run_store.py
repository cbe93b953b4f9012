"""The records of runs in Redis. Each transition is one script: atomic, and safe to repeat."""

from __future__ import annotations

import contextlib
import getpass
import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from longshore.orchestration.errors import UNREADABLE, Damaged, UnknownName
from longshore.orchestration.language.guards import GuardDecision
from longshore.orchestration.messaging.signing import opened, origin, sealed_command
from longshore.orchestration.plans.compiled import StepId, as_id
from longshore.orchestration.saga import ResumeSet
from longshore.orchestration.settings import LARGE_DATA_BYTES, Settings
from longshore.orchestration.states import Cause, RunState, StepState, UndoState
from longshore.orchestration.store import lua
from longshore.orchestration.store.connection import milliseconds as _ms
from longshore.orchestration.store.indices import Indices, mark
from longshore.orchestration.store.keys import Field
from longshore.orchestration.store.side_records import SideRecords
from longshore.orchestration.transitions import RunRecord, StepRecord

if TYPE_CHECKING:
    from redis.commands.core import Script

#: Schema version of a record. A worker skips records with a newer one.
SCHEMA_VERSION = 3
#: Upper bound for times in ms, since scores may be infinite.
FAR = 2**53
_MEMBER = re.compile(r"u?\d{1,6}(\.\d{1,6})?")
#: Seconds after the start of Redis within which a run whose record was lost may be created again.
_BEGUN_AGAIN = 600.0
#: The question to a person about a step whose effect may have happened.
ASKED = "a word on whether it happened: longshore runs resolve"


@dataclass(frozen=True)
class Grant:
    """The grant of a claim: fence, counters and journal of the attempt."""

    fence: str
    attempt: int
    #: JSON journalled by an earlier attempt, '' for none.
    rendered: str
    step_rendered: str
    before: str
    outcome: str
    first_started: int
    #: JSON of the item of a `foreach` unit.
    item: str = ""
    #: Attempts that count against the retry limit, with this one. Not counted: attempts before the last resume, and
    #: attempts that did not act or whose outcome was still open.
    tries: int = 1
    #: Version of the run, which grows with each event.
    version: int = 0
    #: Service that an earlier attempt found down.
    service: str = ""
    #: Highest fence of an earlier attempt, forward or backward.
    previous: int = field(default=0, compare=False)
    #: Epoch of the run: the number of times that it was reopened.
    epoch: int = 0
    #: Attempts that found the service down and did not act.
    blocked: int = 0


@dataclass(frozen=True)
class UnrecordedAttempt:
    """An attempt that a receipt proves and the record lacks. Its outcome, parameters and `before` are JSON, or ''."""

    step_id: StepId
    fence: int
    status: str
    outcome: str
    rendered: str
    before: str


@dataclass(frozen=True)
class Recorded:
    """The result of recording an outcome."""

    accepted: bool
    #: Whether the run can go on now; the caller then sends an advance.
    advance: bool
    #: Units that were held back and are due now; the caller sends their messages.
    next_units: tuple[StepId, ...] = ()


@dataclass(frozen=True)
class RunSnapshot:
    """A run at one read: fields, commands, the time in ms, the score of its inbox entry, and external waits."""

    fields: dict[str, str]
    commands: list[tuple[str, dict[str, str]]]
    now: int
    inbox: float | None
    #: External waits: `<id>` or `u<id>`, and the latest end in ms.
    waits: dict[str, int]


def stream_order(stream_id: str) -> tuple[int, int]:
    """Sort key of a stream id: ids compare as numbers, not as text. Text that is no id comes first."""
    ms, _, number = stream_id.partition("-")
    return (int(ms), int(number or 0)) if ms.isdigit() and (number or "0").isdigit() else (0, 0)


def actor(settings: Settings) -> str:
    """The actor of commands: the setting, else the OS user, else `unknown`."""
    if settings.actor:
        return settings.actor
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"


class Store(Indices, SideRecords):
    """The runs of one installation. Methods raise StoreUnavailable where Redis does not answer."""

    @cached_property
    def _scripts(self) -> dict[str, Script]:
        return {}

    def _run(self, name: str, run_id: str, *args: object, keys: Sequence[str] = (), lasting: bool = True) -> Any:
        script = self._scripts.get(name)
        if script is None:
            script = self._scripts[name] = self.client.register_script(lua.source(name))
        names = [*self.keys.of(run_id).record(), *keys]
        if not lasting:  # a write that is repeated after its loss does not wait for replicas
            return self.call(script, keys=names, args=list(args))
        return self.acknowledged(script, names, list(args))

    def run_global(self, name: str, keys: list[str], *args: object) -> Any:
        """Run a script of the whole installation."""
        script = self._scripts.get(name)
        if script is None:
            script = self._scripts[name] = self.client.register_script(lua.installation_source(name))
        return self.acknowledged(script, keys, list(args))

    def load_scripts(self) -> bool:
        """Load the scripts that clients call; return whether one was missing.

        A client's Redis user may load no scripts, and Redis loses all of them at a restart or failover. Flower and
        other clients of Celery's remote control release a lock of the broker by a script of redis-py.
        """
        from redis.lock import Lock  # noqa: PLC0415 - see connect

        texts = [*map(lua.installation_source, lua.OF_CLIENTS), Lock.LUA_RELEASE_SCRIPT]
        scripts = [self.client.register_script(text) for text in texts]
        known = self.call(self.client.script_exists, *(script.sha for script in scripts))
        missing = [script for script, there in zip(scripts, known, strict=True) if not there]
        for script in missing:
            self.call(self.client.script_load, script.script)
        return bool(missing)

    # --- commands of clients --------------------------------------------------------------------

    def command(
        self,
        run_id: str,
        kind: str,
        *,
        reason: str = "",
        keep: bool = False,
        step: StepId | None = None,
        resolved_as: str = "",
    ) -> str:
        """Store a command about a run or a step; return the command's id. Raises UnknownName for an unknown run."""
        fields: dict[Any, Any] = {
            "kind": kind,
            "actor": actor(self.settings),
            "origin": origin(self.settings),
            "reason": reason,
            "keep": "1" if keep else "",
        }
        if step is not None:
            fields["step"] = step
        if resolved_as:
            fields["as"] = resolved_as
        if not self.call(self.client.exists, self.keys.of(run_id).request):
            raise UnknownName(f"no run {run_id!r}", remedy="longshore runs ls shows the latest")
        pipe = self.client.pipeline(transaction=False)
        pipe.xadd(self.keys.of(run_id).commands, sealed_command(self.settings, run_id, fields))
        pipe.zadd(self.keys.inbox, {run_id: mark()})
        return str(self.call(self.written, pipe)[0])

    def commands(self, run_id: str) -> list[tuple[str, dict[str, str]]]:
        return self.call(self.client.xrange, self.keys.of(run_id).commands)  # type: ignore[no-any-return]

    # --- reading ----------------------------------------------------------------------------------

    def request(self, run_id: str) -> str | None:
        """The stored request with its signature, or None."""
        return self.call(self.client.get, self.keys.of(run_id).request) or None

    def body(self, run_id: str) -> dict[str, Any] | None:
        """The request, without a check of its signature, or None. Raises Damaged where it cannot be read."""
        text = self.request(run_id)
        return None if text is None else read_request(run_id, text)

    def fields(self, run_id: str) -> dict[str, str]:
        """The fields of the run's hash; empty for a run without a record."""
        return self.call(self.client.hgetall, self.keys.of(run_id).run)  # type: ignore[no-any-return]

    def state(self, run_id: str) -> str | None:
        return self.call(self.client.hget, self.keys.of(run_id).run, "state")  # type: ignore[no-any-return]

    def version(self, run_id: str) -> int:
        """The run's version: the number of its events, 0 without a record."""
        return int(self.call(self.client.hget, self.keys.of(run_id).run, "version") or 0)

    def look(self, run_id: str) -> RunSnapshot:
        """Read all data for a decision about a run, in one round trip. Waits that name no step become dead letters."""
        keys = self.keys.of(run_id)
        pipe = self.client.pipeline(transaction=False)
        # The inbox first: a command stored after this read gets another score, so the entry stays in the inbox.
        pipe.zscore(self.keys.inbox, run_id)
        pipe.hgetall(keys.run)
        pipe.xrange(keys.commands)
        pipe.zrange(keys.waits, 0, -1, withscores=True)
        pipe.time()
        inbox, fields, commands, waits, (seconds, micros) = self.call(pipe.execute)
        for member, _ in waits:
            if not _is_member(member):
                self.drop_wait(run_id, member, "it names no step")
        parked = {str(member): round(min(until, FAR)) for member, until in waits if _is_member(member)}
        return RunSnapshot(fields, commands, int(seconds) * 1000 + int(micros) // 1000, inbox, parked)

    def step_records(self, run_id: str, indices: Sequence[int], *, units: bool = True) -> dict[int, StepRecord]:
        """The records of steps as the reducer reads them; with `units`, their units too. Raises Damaged."""
        counts = self.units(run_id, indices) if units else {}
        rows = self.step_fields(run_id, [*indices, *_ids(counts)], _RECORD)
        return {
            i: replace(_record(rows[i]), units=tuple(_record(rows[f"{i}.{n}"]) for n in range(counts.get(i, 0))))
            for i in indices
        }

    def units(self, run_id: str, indices: Sequence[int]) -> dict[int, int]:
        """The number of units of each of these steps that was fanned out."""
        rows = self.step_fields(run_id, indices, (Field.UNITS,))
        return {i: int(rows[i][0] or 0) for i in indices if rows[i][0]}

    def expanded(self, run_id: str, indices: Sequence[int]) -> list[StepId]:
        """These steps; the units of a step that was fanned out replace the step."""
        counts = self.units(run_id, indices)
        return [leaf for i in indices for leaf in ([f"{i}.{n}" for n in range(counts[i])] if i in counts else [i])]

    def step_fields(
        self, run_id: str, ids: Sequence[StepId], kinds: Sequence[str]
    ) -> dict[StepId, tuple[str | None, ...]]:
        """The same fields of several steps or units, in one HMGET."""
        if not ids:
            return {}
        names = [f"{kind}:{i}" for i in ids for kind in kinds]
        values = self.call(self.client.hmget, self.keys.of(run_id).steps, names)
        width = len(kinds)
        return {i: tuple(values[n * width : (n + 1) * width]) for n, i in enumerate(ids)}

    def noted(self, run_id: str, name: str) -> bool:
        """Whether `note` recorded this field in the hash of the run's steps."""
        return bool(self.call(self.client.hexists, self.keys.of(run_id).steps, name))

    def note(self, run_id: str, name: str) -> None:
        self.call(self.client.hset, self.keys.of(run_id).steps, name, 1)

    def steps_hash(self, run_id: str, indices: Sequence[int]) -> dict[str, str]:
        """All fields of some steps and of their units, with data from keys of their own."""
        return self.steps_of(run_id, [*indices, *_ids(self.units(run_id, indices))])

    def steps_of(self, run_id: str, ids: Sequence[StepId]) -> dict[str, str]:
        """All fields of some steps or units, with data from keys of their own."""
        kinds = [*Field, *(f"u{kind}" for kind in Field)]
        found: dict[str, str] = {}
        for i, row in self.step_fields(run_id, ids, kinds).items():
            found |= {f"{kind}:{i}": value for kind, value in zip(kinds, row, strict=True) if value is not None}
        return found | self._large(run_id, found)

    def everything(self, run_id: str) -> tuple[dict[str, str], dict[str, str]]:
        """The run's fields and its steps' fields, with data from keys of their own."""
        keys = self.keys.of(run_id)
        pipe = self.client.pipeline(transaction=False)
        pipe.hgetall(keys.run)
        pipe.hgetall(keys.steps)
        run, steps = self.call(pipe.execute)
        return run, steps | self._large(run_id, steps)

    def _large(self, run_id: str, steps: Mapping[str, str]) -> dict[str, str]:
        """Large data from keys of their own, each as `bulk:<id>`."""
        keys = self.keys.of(run_id)
        prefix = f"{Field.DATA_KEY}:"
        named = {name.removeprefix(prefix): value for name, value in steps.items() if name.startswith(prefix)}
        if not named:
            return {}
        texts = self.call(self.client.mget, [keys.data(value) for value in named.values()])
        return {f"bulk:{i}": text for i, text in zip(named, texts, strict=True) if text is not None}

    def expired(self, run_id: str, now: int) -> list[str]:
        """Attempts with an expired lease: `<id>` or `u<id>`. Leases that name no step become dead letters."""
        found = self.call(self.client.zrangebyscore, self.keys.of(run_id).leases, "-inf", now)
        for member in found:
            if not _is_member(member):
                self.drop_lease(run_id, member, "it names no step")
        return [member for member in found if _is_member(member)]

    def has_leases(self, run_id: str) -> bool:
        """Whether an attempt holds a lease, live or expired."""
        return bool(self.call(self.client.zcard, self.keys.of(run_id).leases))

    def drop_lease(self, run_id: str, member: str, why: str) -> None:
        """Remove a lease that names no step, since a run does not end while it has a lease."""
        self._drop(self.keys.of(run_id).leases, member, why)

    def drop_wait(self, run_id: str, member: str, why: str) -> None:
        """Remove an external wait that names no step, since each sweep would find the run due because of it."""
        self._drop(self.keys.of(run_id).waits, member, why)

    def _drop(self, key: str, member: str, why: str) -> None:
        if self.call(self.client.zrem, key, member):
            self.dead_letter(key, member, why)

    def read_events(
        self, run_id: str, after: str = "0-0", *, block_ms: int | None = None, count: int = 1000
    ) -> list[tuple[str, dict[str, str]]]:
        """Events after a cursor; with `block_ms`, wait at most so long for the first."""
        stream = {self.keys.of(run_id).events: after}
        block = None if block_ms is None else max(1, _ms(self.longest_block(block_ms / 1000)))
        with contextlib.nullcontext(False) if block is None else self.blocking(block / 1000) as may:
            found = self.call(self.client.xread, stream, count=count, block=block if may else None)
        return found[0][1] if found else []

    def newest_event(self, run_id: str) -> str:
        """The id of the newest event, as a cursor; `0-0` without events."""
        found = self.call(self.client.xrevrange, self.keys.of(run_id).events, count=1)
        return str(found[0][0]) if found else "0-0"

    # --- transitions ------------------------------------------------------------------------------

    def create(self, run_id: str, fields: Mapping[str, object], now: int) -> bool:
        """Create the record; False where it exists. The indices come first: no sweep finds a run without an entry."""
        self.look_at(run_id, now + _ms(self.settings.lease / 3))
        self.call(self.client.zadd, self.keys.runs, {run_id: now}, nx=True)
        pairs = [part for pair in fields.items() for part in pair]
        return bool(self._run("create", run_id, *pairs))

    def open_level(
        self,
        run_id: str,
        run: RunRecord,
        state: RunState,
        level: int,
        ready: Sequence[int],
        skipped: Mapping[int, str],
        *,
        hosts: Mapping[int, str] | None = None,
        tainted: Collection[int] = (),
        failed: Mapping[int, str] | None = None,
        fanned: Mapping[int, GuardDecision] | None = None,
        stopped_by: int | None = None,
    ) -> bool:
        flat: list[object] = []
        for i in ready:
            flat += ["r", i, (hosts or {}).get(i, "")]
        for i, reason in skipped.items():
            flat += ["s", i, reason, "1" if i in tainted else ""]
        for i, error in (failed or {}).items():
            flat += ["f", i, json.dumps({"error": error}, ensure_ascii=False), error]
        for i, verdict in (fanned or {}).items():
            units = verdict.units or ()
            flat += ["x", i, len(units), verdict.at_once or len(units), verdict.tolerated, verdict.canary]
            flat += [part for unit in units for part in (unit.item, unit.host, unit.skip)]
        stop = "" if stopped_by is None else stopped_by
        args = (run.state, run.level, state, level, _ms(self.settings.lease), run.epoch, stop)
        return bool(self._run("open_level", run_id, *args, *flat))

    def open_undo(
        self,
        run_id: str,
        run: RunRecord,
        level: int,
        ready: Sequence[StepId],
        impossible: Mapping[StepId, str],
        held_back: Mapping[StepId, str],
    ) -> bool:
        flat = [part for i, reason in impossible.items() for part in (i, UndoState.NOT_UNDOABLE, reason)]
        flat += [part for i, reason in held_back.items() for part in (i, UndoState.HELD_BACK, reason)]
        came_from = "" if run.undo_level is None else run.undo_level
        grace, limit = _ms(self.settings.lease), _ms(self.settings.undo_timeout)
        args = (run.state, came_from, level, grace, limit, len(ready), *ready, *flat, run.epoch)
        return bool(self._run("open_undo", run_id, *args))

    def abort(self, run_id: str, cause: Cause, error: str, who: str = "", *, keep: bool = False) -> bool:
        return bool(self._run("abort", run_id, cause, error, who, "1" if keep else ""))

    def drain(self, run_id: str, steps: Iterable[tuple[StepId, bool]]) -> bool:
        """Cancel steps that were dispatched and not claimed. `steps`: pairs of id and whether it is an always step."""
        flat: list[object] = []
        for index, always in steps:
            flat += [index, "1" if always else ""]
        return bool(self._run("drain", run_id, *flat))

    def finish(self, run_id: str, came_from: RunState, state: RunState, not_run: Sequence[int], epoch: int = 0) -> bool:
        return bool(self._run("finish", run_id, came_from, state, epoch, *not_run))

    def carry_out(
        self,
        run_id: str,
        command_id: str,
        command: Mapping[str, str],
        levels: int,
        ids: Sequence[StepId],
    ) -> str:
        """Carry out a command, once; return its result. `ids`: failed undos to retry, or the decided step."""
        return self._run(  # type: ignore[no-any-return]
            "command", run_id, command_id, command.get("kind", ""), command.get("actor", ""),
            command.get("reason", ""), command.get("keep", ""), levels, *ids,
        )  # fmt: skip

    def reopen(
        self, run_id: str, command_id: str, command: Mapping[str, str], epoch: int, again: ResumeSet, *, keep: bool
    ) -> str:
        """Resume an ended run; return the result of the command."""
        who, why = command.get("actor", ""), command.get("reason", "")
        args = (command_id, who, why, epoch, again.level, "1" if keep else "", *again.steps)
        return str(self._run("reopen", run_id, *args))

    def resolve(self, run_id: str, command_id: str, command: Mapping[str, str], step_id: StepId) -> str:
        """Record a person's decision about the outcome of a step; return the result of the command."""
        who, note = command.get("actor", ""), command.get("reason", "")
        return str(self._run("resolve", run_id, command_id, who, note, command.get("as", ""), step_id))

    def suspend(
        self, run_id: str, what: str, why: str, epoch: int | None = None, *, service: str = "", version: int = 0
    ) -> bool:
        """Suspend a run in its state. `version`: the version that the run had reached before Redis lost writes."""
        return bool(self._run("suspend", run_id, what, why, service, "" if epoch is None else epoch, version or ""))

    def unsuspend(
        self,
        run_id: str,
        what: str,
        epoch: int,
        side: str,
        ids: Sequence[StepId],
        *,
        delay: float = 0.0,
        command_id: str = "",
        command: Mapping[str, str] | None = None,
    ) -> bool:
        """Resume a run that is suspended for `what`. Its dispatched steps `ids` are due after `delay` seconds.

        A command that is given is recorded as carried out in the same script.
        """
        asked = command or {}
        who = (command_id, asked.get("actor", ""), asked.get("reason", ""))
        return bool(self._run("unsuspend", run_id, what, epoch, side, _ms(delay), *who, *ids))

    def claim(
        self,
        run_id: str,
        step_id: StepId,
        side: str,
        owner: str,
        task_id: str,
        *,
        always: bool = False,
        instance_id: str = "",
        host: str = "",
        stays: bool = False,
    ) -> Grant | str:
        """Claim a step for an attempt; return the grant, or the reason of a refusal.

        An always step can be claimed in a suspended run too. A step that `stays` can be claimed again only on the host
        of its first claim.
        """
        lease = _ms(self.settings.lease)
        more = ("1" if always else "", instance_id, host, "1" if stays else "")
        got = self._run("claim", run_id, step_id, side, owner, task_id, lease, *more)
        if got[0] != "ok":
            return str(got[1])
        fence, attempt, rendered, step_rendered, before, outcome, started, item, *rest = got[1:]
        tries, version, service, previous, epoch, blocked = rest
        return Grant(
            fence, int(attempt), rendered, step_rendered, before, outcome, int(started), item, int(tries),
            int(version), service, int(previous), int(epoch), int(blocked),
        )  # fmt: skip

    def journal(self, run_id: str, step_id: StepId, side: str, fence: str, rendered: str, before: str) -> bool:
        """Journal the data for the undo before the attempt acts. False: the attempt is superseded."""
        return bool(self._run("journal", run_id, step_id, side, fence, rendered, before))

    def complete(
        self,
        run_id: str,
        step_id: StepId,
        side: str,
        fence: str,
        status: str,
        outcome: str,
        *,
        bulk: str = "",
        error: str = "",
        no_effect: bool = False,
        stops: bool = False,
        next_link: int | None = None,
    ) -> Recorded:
        """Record an outcome; without a fence, of a step that is not claimed, or that waits externally.

        `bulk` is the rest of the outcome, a JSON object. A `bulk` of more than LARGE_DATA_BYTES gets a key of its own.
        """
        apart = ""
        if len(bulk) > LARGE_DATA_BYTES:
            # Written before the record that names the key; the key contains the fence, so no other attempt uses it.
            apart = f"{side}{step_id}:{fence}"
            self.call(self.client.set, self.keys.of(run_id).data(apart), bulk)
        elif bulk:
            outcome = f"{outcome[:-1]}{',' if outcome != '{}' else ''}{bulk[1:]}"
        code, advance, held_back = self._run(
            "complete", run_id, step_id, side, fence, status, outcome, "1" if no_effect else "",
            "1" if stops else "", error, "" if next_link is None else next_link, _ms(self.settings.lease), apart,
        )  # fmt: skip
        if code == "stale" and apart:
            self.call(self.client.delete, self.keys.of(run_id).data(apart))
        return Recorded(code != "stale", str(advance) == "1", tuple(as_id(unit) for unit in held_back.split()))

    def park(self, run_id: str, step_id: StepId, side: str, fence: str, seconds: float, info: str, what: str) -> bool:
        """Turn a step into an external wait of at most `seconds`. False: the attempt is superseded."""
        return bool(self._run("park", run_id, step_id, side, fence, _ms(seconds), info, what))

    def begin_task(
        self, run_id: str, step_id: StepId, side: str, fence: str, owner: str, retries: int, *, always: bool = False
    ) -> tuple[str, str]:
        """Begin a delivery of an application's task under a lease.

        Returns `ok` with the ms until the time limit, `early` with the reason to ask again, or `no` with the reason why
        the delivery must not be carried out.
        """
        more = (_ms(self.settings.lease), retries, "1" if always else "")
        answer, what = self._run("begin", run_id, step_id, side, fence, owner, *more)
        if answer == "ok":
            self.look_at(run_id, self.now() + _ms(self.settings.lease / 3), sooner=True)
        return str(answer), str(what)

    def release_task(self, run_id: str, step_id: StepId, side: str, fence: str, owner: str, how: str = "") -> None:
        """Release the lease of a delivery: the task has `ended`, its message comes `again`, or it retries by itself."""
        self._run("release", run_id, step_id, side, fence, owner, how)
        self.look_at(run_id, self.now(), sooner=True)

    def note_task_error(self, run_id: str, step_id: StepId, side: str, error: Mapping[str, Any]) -> None:
        """Record the error of an application's task; Celery's message of the failure does not contain it."""
        name = f"{side}{Field.TASK_ERROR}:{step_id}"
        self.call(self.client.hset, self.keys.of(run_id).steps, name, json.dumps(error, ensure_ascii=False))

    def retry(
        self,
        run_id: str,
        step_id: StepId,
        side: str,
        fence: str,
        delay: float,
        grace: float,
        error: str,
        *,
        always: bool = False,
        counts: bool = True,
        ask_for: float | None = None,
        service: str = "",
    ) -> int:
        """Schedule another attempt after `delay` seconds.

        Returns 1 for scheduled, 0 for a superseded attempt, -1 for an aborting run, and -2 where the outcome was
        polled for `ask_for` seconds without a result. An attempt with `counts=False` does not count against the retry
        limit.
        """
        times = (_ms(delay), _ms(grace))
        more = ("1" if always else "", "" if counts else "1", "" if ask_for is None else _ms(ask_for), service)
        return int(self._run("retry", run_id, step_id, side, fence, *times, error, *more))

    def renew(self, run_id: str, attempts: Iterable[tuple[str, str]]) -> int:
        flat = [part for pair in attempts for part in pair]
        return int(self._run("renew", run_id, _ms(self.settings.lease), *flat, lasting=False))

    def expire(
        self,
        run_id: str,
        step_id: StepId,
        side: str,
        *,
        repeatable: bool,
        stops: bool = False,
        always: bool = False,
        ask_for: float | None = None,
    ) -> tuple[str, tuple[StepId, ...]]:
        """Fence off an attempt with an expired lease; return the decision, and the units to send messages for.

        The decision is `again`, `unknown`, `asked` (a person has `ask_for` seconds to resolve the step), or `no` for a
        live lease. The units were held back and are due now.
        """
        at_most = self.settings.max_lost
        why = "its worker was lost" + (f" {at_most} times, or as the run was ended" if repeatable else "")
        code, held_back = self._run(
            "expire", run_id, step_id, side, "1" if repeatable else "", at_most, json.dumps({"error": why}), why,
            "1" if stops else "", "1" if always else "", _ms(self.settings.lease),
            "" if ask_for is None else _ms(ask_for), json.dumps({"unknown": why, "what": ASKED}), ASKED,
        )  # fmt: skip
        return str(code), tuple(as_id(unit) for unit in held_back.split())

    def resend(
        self,
        run_id: str,
        side: str,
        ids: Sequence[StepId],
        hosts: Mapping[StepId, str] | None = None,
        limit: float | None = None,
    ) -> tuple[list[StepId], list[StepId]]:
        """Steps that need another message, and steps without a claim for `limit` seconds.

        The default of `limit` is the setting `claim_timeout`.
        """
        if not ids:
            return [], []
        flat = [part for i in ids for part in (i, (hosts or {}).get(i, ""))]
        longest = self.settings.claim_timeout if limit is None else limit
        found = [str(item) for item in self._run("resend", run_id, side, _ms(self.settings.lease), _ms(longest), *flat)]
        return [as_id(i) for i in found if i[0] != "!"], [as_id(i[1:]) for i in found if i[0] == "!"]

    def note_jump(self, known: int, jump: int) -> bool:
        """Record a jump of Redis's clock in ms; False where more than `known` jumps are recorded.

        The expiries of locks and of half-open trials are cut to their full length, since a jump may extend them.
        """
        if not self.run_global("jump", [self.keys.clock, self.keys.live, self.keys.ended], known, jump):
            return False
        pipe = self.client.pipeline(transaction=False)
        for name in self.call(self.client.smembers, self.keys.locks):
            pipe.pexpire(self.keys.lock(name), _ms(self.settings.lease), lt=True)
        for service in self.call(self.client.smembers, self.keys.breakers):
            pipe.pexpire(self.keys.half_open(service), _ms(self.settings.slow_retry), lt=True)
        self.call(pipe.execute)
        return True

    def ask(self, run_id: str, epoch: int, question: str, hosts: Sequence[str]) -> bool:
        """Ask hosts for their receipts of a run; False where the epoch has changed or the question is recorded already.

        The hosts' index is written first: a host reads the index, then the record for whether the question is open.
        """
        pipe = self.client.pipeline(transaction=False)
        for host in hosts:
            pipe.sadd(self.keys.asked(host), run_id)
        pipe.hincrby(self.keys.clock, "asked", 1)
        self.call(pipe.execute)
        return bool(self._run("ask", run_id, epoch, question, " ".join(hosts)))

    def asked(self, host: str) -> list[str]:
        """The runs that ask a host for its receipts."""
        return sorted(self.call(self.client.smembers, self.keys.asked(host)))

    def note_answer(
        self,
        run_id: str,
        question: str,
        host: str,
        version: int,
        doubts: Sequence[str],
        found: Sequence[UnrecordedAttempt],
    ) -> bool:
        """Record a host's answer; False where the run no longer waits for this question."""
        flat = [part for one in found for part in astuple(one)]
        noted = self._run("answer", run_id, question, host, version, "\n".join(doubts), *flat)
        self.forget_asked(run_id, host)
        return bool(noted)

    def forget_asked(self, run_id: str, host: str) -> None:
        """Remove a run from the index of a host's open questions."""
        self.call(self.client.srem, self.keys.asked(host), run_id)

    def settle(self, run_id: str, run: RunRecord, doubts: Sequence[str], *, ending: bool) -> bool:
        """Record that the receipts were compared, except those that `doubts` names.

        False where the epoch has changed or more attempts were lost meanwhile.
        """
        return bool(self._run("settle", run_id, run.epoch, run.lost, "1" if ending else "", "\n".join(doubts)))

    def may_have_lost(self, since: int) -> bool:
        """Whether Redis may have lost acknowledged writes after `since`, ms: after a restart or a failover.

        A run that was created again after such a loss is younger than the server, by at most _BEGUN_AGAIN seconds.
        """
        server = self.call(self.client.info, "server")
        if int(self.call(self.client.info, "replication").get("second_repl_offset", -1)) >= 0:
            return True
        return since < self.now() - _ms(int(server["uptime_in_seconds"])) + _ms(_BEGUN_AGAIN)

    def shift(self, run_id: str, number: int, total: int) -> bool:
        """Shift the due times of a run by the `number` jumps of Redis's clock, `total` ms. False: done before."""
        limits = _ms(self.settings.lease), _ms(self.settings.undo_timeout)
        return bool(self._run("shift", run_id, number, total, *limits))

    def parent_of(self, run_id: str) -> str:
        """The id of the parent run, or ''."""
        text = self.call(self.client.hget, self.keys.of(run_id).run, "parent")
        return parent_in(text)

    def children_of(self, run_id: str) -> list[str]:
        """The ids of the child runs."""
        steps = self.call(self.client.hgetall, self.keys.of(run_id).steps)
        parked = (_object(value) for name, value in steps.items() if name.startswith(f"{Field.PARKED}:"))
        return [str(info["child"]) for info in parked if "child" in info]

    def forget(self, run_id: str) -> bool:
        """Delete an ended run, with its request, output and data, in one script; False for a live run.

        The indices are cleared last, so that an interrupted deletion is repeated.
        """
        keys = self.keys.of(run_id)
        names = self.call(self.client.hkeys, keys.steps)
        ids = {name.partition(":")[2] for name in names if name.startswith(f"{Field.ATTEMPTS}:")}
        bulky = [name for name in names if name.partition(":")[0].removeprefix("u") == Field.DATA_KEY]
        apart = self.call(self.client.hmget, keys.steps, bulky) if bulky else []
        for service in self.call(self.client.smembers, self.keys.breakers):
            self.call(self.client.srem, self.keys.blocked(service), run_id)
        more = [*(keys.log(i) for i in ids), *(keys.data(value) for value in apart if value)]
        if not self._run("forget", run_id, keys=[keys.request, keys.commands, *more]):
            return False
        pipe = self.client.pipeline()
        for index in (self.keys.inbox, self.keys.live, self.keys.runs, self.keys.ended):
            pipe.zrem(index, run_id)
        self.call(pipe.execute)
        return True

    def notified(self, run_id: str, event_id: str | None = None) -> str:
        """The id of the last event forwarded to the workers' hooks; with `event_id`, record that one."""
        key = self.keys.of(run_id).run
        if event_id is not None:
            self.call(self.client.hset, key, "told", event_id)
            return event_id
        return self.call(self.client.hget, key, "told") or "0-0"

    def hold(self, run_id: str, why: str) -> None:
        """Record why a run does not begin."""
        self._run("hold", run_id, why)


#: The fields of a step that the reducer reads.
_RECORD = (
    Field.STATUS, Field.ATTEMPTS, f"u{Field.STATUS}", Field.REASON, Field.NO_EFFECT, Field.TAINTED,
)  # fmt: skip


def _record(row: tuple[str | None, ...]) -> StepRecord:
    """A step's record from its fields. Raises Damaged."""
    status, attempts, undo, reason, no_effect, tainted = row
    try:
        return _read_record(status, attempts, undo, reason, no_effect, tainted)
    except ValueError as error:
        raise Damaged(f"the record of a step cannot be read: {error}") from None


def _read_record(
    status: str | None,
    attempts: str | None,
    undo: str | None,
    reason: str | None,
    no_effect: str | None,
    tainted: str | None,
) -> StepRecord:
    return StepRecord(
        status=StepState(status or "pending"),
        attempts=int(attempts or 0),
        undo=UndoState(undo) if undo else None,
        reason=reason or "",
        no_effect=bool(no_effect),
        tainted=bool(tainted),
    )


def parent_in(text: str | None) -> str:
    """The run id in the field `parent` of a run's record, or ''."""
    return str(_object(text or "").get("run", ""))


def _object(text: str) -> dict[str, Any]:
    """A JSON object; an empty one for text that is no JSON object."""
    try:
        return dict(json.loads(text or "{}"))
    except UNREADABLE:
        return {}


def _ids(units: Mapping[int, int]) -> list[StepId]:
    return [f"{i}.{n}" for i, count in units.items() for n in range(count)]


def read_request(run_id: str, sealed_text: str) -> dict[str, Any]:
    """Parse a request, without a check of its signature. Raises Damaged."""
    try:
        body = json.loads(opened(sealed_text)[0])
        if all(isinstance(body.get(name, {}), dict) for name in ("plan", "params", "files")):
            return dict(body)
    except UNREADABLE as error:
        raise Damaged(f"the request of run {run_id} cannot be read: {type(error).__name__}: {error}") from None
    raise Damaged(f"the request of run {run_id} is no request")


def _is_member(text: str) -> bool:
    """Whether a member of the leases or waits names a step, a unit, or the undo of one."""
    return _MEMBER.fullmatch(text) is not None


def run_record(fields: Mapping[str, str], now: int) -> RunRecord:
    """The reducer's view of the run's fields. Raises Damaged."""
    try:
        return _read_run(fields, now)
    except (ValueError, KeyError) as error:
        raise Damaged(f"the record of the run cannot be read: {type(error).__name__}: {error}") from None


def _read_run(fields: Mapping[str, str], now: int) -> RunRecord:
    return RunRecord(
        state=RunState(fields["state"]),
        level=int(fields["level"]),
        undo_level=int(fields["undo_level"]) if "undo_level" in fields else None,
        left=int(fields.get("left", 0)),
        keep=bool(fields.get("keep")),
        cause=Cause(fields["cause"]) if fields.get("cause") else None,
        now=now,
        deadline=int(fields["deadline"]) if fields.get("deadline") else None,
        undo_deadline=int(fields["undo_deadline"]) if fields.get("undo_deadline") else None,
        epoch=int(fields.get("epoch", 0)),
        was=RunState(fields["suspended_state"]) if fields.get("suspended_state") else None,
        lost=int(fields.get("lost", 0)),
        fenced=int(fields.get("fenced", 0)),
        compared=fields.get("compared") == fields.get("epoch", "0"),
    )

"""The saga's record in Redis. Each method that changes it is one script, atomic, and safe to repeat."""

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

#: Of the record; a worker that meets a newer one leaves it alone.
SCHEMA_VERSION = 3
#: A time that is as good as never, ms: scores may be infinite.
FAR = 2**53
_MEMBER = re.compile(r"u?\d{1,6}(\.\d{1,6})?")
#: Seconds after the start of Redis within which a run may be begun again whose record it has lost.
_BEGUN_AGAIN = 600.0
#: What a person is asked about a step that may have happened.
ASKED = "a word on whether it happened: longshore runs resolve"


@dataclass(frozen=True)
class Grant:
    """A claimed attempt."""

    fence: str
    attempt: int
    #: JSON as journalled by an earlier attempt, '' where there was none.
    rendered: str
    step_rendered: str
    before: str
    outcome: str
    first_started: int
    #: JSON of the item that a unit of a `foreach` is for.
    item: str = ""
    #: Attempts that count for its retries, this one included: not those before the run was resumed, nor those in vain.
    tries: int = 1
    #: Of the run: grows with each transition.
    version: int = 0
    #: That an earlier attempt found down.
    service: str = ""
    #: The highest fence of an attempt before it, forward or backward.
    previous: int = field(default=0, compare=False)
    #: Of the run: how often it was reopened.
    epoch: int = 0
    #: Attempts that found its service down, so that nothing was begun.
    blocked: int = 0


@dataclass(frozen=True)
class UnrecordedAttempt:
    """An attempt that a receipt knows of and the record does not. All but its step are JSON, '' where unknown."""

    step_id: StepId
    fence: int
    status: str
    outcome: str
    rendered: str
    before: str


@dataclass(frozen=True)
class Recorded:
    """What became of an outcome."""

    accepted: bool
    #: The run can go on now: somebody has to advance it.
    advance: bool
    #: Units that were held back, and need their messages now.
    next_units: tuple[StepId, ...] = ()


@dataclass(frozen=True)
class RunSnapshot:
    """A run as it was found: its fields, what was asked of it, the time, its mark in the inbox."""

    fields: dict[str, str]
    commands: list[tuple[str, dict[str, str]]]
    now: int
    inbox: float | None
    #: What is parked, `<id>` or `u<id>`, and until when at most, ms.
    waits: dict[str, int]


def stream_order(stream_id: str) -> tuple[int, int]:
    """Ids of a stream compare as numbers, not as text; whatever is no id comes first."""
    ms, _, number = stream_id.partition("-")
    return (int(ms), int(number or 0)) if ms.isdigit() and (number or "0").isdigit() else (0, 0)


def actor(settings: Settings) -> str:
    """Who does it: the setting, else the OS user."""
    if settings.actor:
        return settings.actor
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"


class Store(Indices, SideRecords):
    """One installation's runs. Raises StoreUnavailable where Redis does not answer."""

    @cached_property
    def _scripts(self) -> dict[str, Script]:
        return {}

    def _run(self, name: str, run_id: str, *args: object, keys: Sequence[str] = (), lasting: bool = True) -> Any:
        script = self._scripts.get(name)
        if script is None:
            script = self._scripts[name] = self.client.register_script(lua.source(name))
        names = [*self.keys.of(run_id).record(), *keys]
        if not lasting:  # what is lost with a server is done again, and must not wait for its replicas
            return self.call(script, keys=names, args=list(args))
        return self.acknowledged(script, names, list(args))

    def run_global(self, name: str, keys: list[str], *args: object) -> Any:
        """A script that is about no single run."""
        script = self._scripts.get(name)
        if script is None:
            script = self._scripts[name] = self.client.register_script(lua.installation_source(name))
        return self.acknowledged(script, keys, list(args))

    def load_scripts(self) -> bool:
        """Have Redis know the scripts that clients call; whether one was missing.

        A client's user may load no script, and Redis forgets them all when it restarts or another takes its place.
        Flower, and whoever asks workers by remote control, gives back a lock of the broker's by a script of redis-py's.
        """
        from redis.lock import Lock  # noqa: PLC0415 - see connect

        texts = [*map(lua.installation_source, lua.OF_CLIENTS), Lock.LUA_RELEASE_SCRIPT]
        scripts = [self.client.register_script(text) for text in texts]
        known = self.call(self.client.script_exists, *(script.sha for script in scripts))
        missing = [script for script, there in zip(scripts, known, strict=True) if not there]
        for script in missing:
            self.call(self.client.script_load, script.script)
        return bool(missing)

    # --- what clients write ---------------------------------------------------------------------

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
        """Put down what is asked of a run, or of a step of it; returns the command's id."""
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
        """The request with its signature, as it was written; None where there is none."""
        return self.call(self.client.get, self.keys.of(run_id).request) or None

    def body(self, run_id: str) -> dict[str, Any] | None:
        """The request, whoever wrote it, or None. Damaged where it cannot be read."""
        text = self.request(run_id)
        return None if text is None else read_request(run_id, text)

    def fields(self, run_id: str) -> dict[str, str]:
        """The run's own fields; empty for a run that has not begun."""
        return self.call(self.client.hgetall, self.keys.of(run_id).run)  # type: ignore[no-any-return]

    def state(self, run_id: str) -> str | None:
        return self.call(self.client.hget, self.keys.of(run_id).run, "state")  # type: ignore[no-any-return]

    def version(self, run_id: str) -> int:
        """How many transitions it has gone through."""
        return int(self.call(self.client.hget, self.keys.of(run_id).run, "version") or 0)

    def look(self, run_id: str) -> RunSnapshot:
        """All that is needed to decide about a run, in one round trip."""
        keys = self.keys.of(run_id)
        pipe = self.client.pipeline(transaction=False)
        # The inbox first: what is asked for after this is not taken for seen.
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
        """What the reducer needs to know of these steps; with `units`, also of theirs."""
        counts = self.units(run_id, indices) if units else {}
        rows = self.step_fields(run_id, [*indices, *_ids(counts)], _RECORD)
        return {
            i: replace(_record(rows[i]), units=tuple(_record(rows[f"{i}.{n}"]) for n in range(counts.get(i, 0))))
            for i in indices
        }

    def units(self, run_id: str, indices: Sequence[int]) -> dict[int, int]:
        """How many units each of these steps has: those that were fanned out."""
        rows = self.step_fields(run_id, indices, (Field.UNITS,))
        return {i: int(rows[i][0] or 0) for i in indices if rows[i][0]}

    def expanded(self, run_id: str, indices: Sequence[int]) -> list[StepId]:
        """These steps, and in place of one that was fanned out its units."""
        counts = self.units(run_id, indices)
        return [leaf for i in indices for leaf in ([f"{i}.{n}" for n in range(counts[i])] if i in counts else [i])]

    def step_fields(
        self, run_id: str, ids: Sequence[StepId], kinds: Sequence[str]
    ) -> dict[StepId, tuple[str | None, ...]]:
        """The same fields of many steps or units."""
        if not ids:
            return {}
        names = [f"{kind}:{i}" for i in ids for kind in kinds]
        values = self.call(self.client.hmget, self.keys.of(run_id).steps, names)
        width = len(kinds)
        return {i: tuple(values[n * width : (n + 1) * width]) for n, i in enumerate(ids)}

    def noted(self, run_id: str, name: str) -> bool:
        """Whether something was noted of the run's steps."""
        return bool(self.call(self.client.hexists, self.keys.of(run_id).steps, name))

    def note(self, run_id: str, name: str) -> None:
        self.call(self.client.hset, self.keys.of(run_id).steps, name, 1)

    def steps_hash(self, run_id: str, indices: Sequence[int]) -> dict[str, str]:
        """All fields of some steps and of their units, and what is kept apart from them."""
        return self.steps_of(run_id, [*indices, *_ids(self.units(run_id, indices))])

    def steps_of(self, run_id: str, ids: Sequence[StepId]) -> dict[str, str]:
        """All fields of some steps or units, and what is kept apart from them."""
        kinds = [*Field, *(f"u{kind}" for kind in Field)]
        found: dict[str, str] = {}
        for i, row in self.step_fields(run_id, ids, kinds).items():
            found |= {f"{kind}:{i}": value for kind, value in zip(kinds, row, strict=True) if value is not None}
        return found | self._large(run_id, found)

    def everything(self, run_id: str) -> tuple[dict[str, str], dict[str, str]]:
        """The run's fields and its steps' fields, with what is kept apart from them."""
        keys = self.keys.of(run_id)
        pipe = self.client.pipeline(transaction=False)
        pipe.hgetall(keys.run)
        pipe.hgetall(keys.steps)
        run, steps = self.call(pipe.execute)
        return run, steps | self._large(run_id, steps)

    def _large(self, run_id: str, steps: Mapping[str, str]) -> dict[str, str]:
        """What is kept in keys of its own, each as `bulk:<id>`."""
        keys = self.keys.of(run_id)
        prefix = f"{Field.DATA_KEY}:"
        named = {name.removeprefix(prefix): value for name, value in steps.items() if name.startswith(prefix)}
        if not named:
            return {}
        texts = self.call(self.client.mget, [keys.data(value) for value in named.values()])
        return {f"bulk:{i}": text for i, text in zip(named, texts, strict=True) if text is not None}

    def expired(self, run_id: str, now: int) -> list[str]:
        """Attempts whose lease has run out: `<index>` or `u<index>`."""
        found = self.call(self.client.zrangebyscore, self.keys.of(run_id).leases, "-inf", now)
        for member in found:
            if not _is_member(member):
                self.drop_lease(run_id, member, "it names no step")
        return [member for member in found if _is_member(member)]

    def has_leases(self, run_id: str) -> bool:
        """Whether some attempt is at work, or was lost and not taken from its step yet."""
        return bool(self.call(self.client.zcard, self.keys.of(run_id).leases))

    def drop_lease(self, run_id: str, member: str, why: str) -> None:
        """Remove a lease that nobody can hold: a run does not end as long as it has one."""
        self._drop(self.keys.of(run_id).leases, member, why)

    def drop_wait(self, run_id: str, member: str, why: str) -> None:
        """Remove an external wait of a step that does not exist: the run would be looked at for it, again and again."""
        self._drop(self.keys.of(run_id).waits, member, why)

    def _drop(self, key: str, member: str, why: str) -> None:
        if self.call(self.client.zrem, key, member):
            self.dead_letter(key, member, why)

    def read_events(
        self, run_id: str, after: str = "0-0", *, block_ms: int | None = None, count: int = 1000
    ) -> list[tuple[str, dict[str, str]]]:
        """Events after a cursor; with `block_ms`, waits so long for the first."""
        stream = {self.keys.of(run_id).events: after}
        with contextlib.nullcontext(False) if block_ms is None else self.blocking(block_ms / 1000) as may:
            found = self.call(self.client.xread, stream, count=count, block=block_ms if may else None)
        return found[0][1] if found else []

    def newest_event(self, run_id: str) -> str:
        """Its id, as a cursor; that of the beginning where there is none."""
        found = self.call(self.client.xrevrange, self.keys.of(run_id).events, count=1)
        return str(found[0][0]) if found else "0-0"

    # --- transitions ------------------------------------------------------------------------------

    def create(self, run_id: str, fields: Mapping[str, object], now: int) -> bool:
        """Begin the record; False if it is there. The indices first: a run in none would be lost."""
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
        self, run_id: str, run: RunRecord, level: int, ready: Sequence[StepId], impossible: Mapping[StepId, str]
    ) -> bool:
        flat = [part for pair in impossible.items() for part in pair]
        came_from = "" if run.undo_level is None else run.undo_level
        grace, limit = _ms(self.settings.lease), _ms(self.settings.undo_timeout)
        args = (run.state, came_from, level, grace, limit, len(ready), *ready, *flat, run.epoch)
        return bool(self._run("open_undo", run_id, *args))

    def abort(self, run_id: str, cause: Cause, error: str, who: str = "", *, keep: bool = False) -> bool:
        return bool(self._run("abort", run_id, cause, error, who, "1" if keep else ""))

    def drain(self, run_id: str, steps: Iterable[tuple[StepId, bool]]) -> bool:
        """Cancel what was dispatched and not claimed; pairs of step and whether it is an always step."""
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
        """Do what was asked for. `ids`: the failed undos to be tried again, or the step that was decided on."""
        return self._run(  # type: ignore[no-any-return]
            "command", run_id, command_id, command.get("kind", ""), command.get("actor", ""),
            command.get("reason", ""), command.get("keep", ""), levels, *ids,
        )  # fmt: skip

    def reopen(
        self, run_id: str, command_id: str, command: Mapping[str, str], epoch: int, again: ResumeSet, *, keep: bool
    ) -> str:
        """Have a run that rests go on; what became of the command."""
        who, why = command.get("actor", ""), command.get("reason", "")
        args = (command_id, who, why, epoch, again.level, "1" if keep else "", *again.steps)
        return str(self._run("reopen", run_id, *args))

    def resolve(self, run_id: str, command_id: str, command: Mapping[str, str], step_id: StepId) -> str:
        """Take a person's word for what became of a step; what became of the command."""
        who, note = command.get("actor", ""), command.get("reason", "")
        return str(self._run("resolve", run_id, command_id, who, note, command.get("as", ""), step_id))

    def suspend(
        self, run_id: str, what: str, why: str, epoch: int | None = None, *, service: str = "", version: int = 0
    ) -> bool:
        """Hold a run where it is. `version`: it had come so far once, and Redis has lost that."""
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
        """Let a run go on that was suspended for that; `ids`: what it had dispatched, due after `delay` seconds.

        With a command, it is carried out with that.
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
        """The attempt, or why there is none. An always step has its turn in a suspended run, too.

        What `stays` is claimed only on the host that it was begun on, once it has.
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
        """Keep what is needed to undo, before anything is done. False: the step is another attempt's now."""
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
        """Record an outcome; without a fence, that of a step that nobody has claimed, or that is parked.

        `bulk` is more of the outcome, a JSON object, that is kept in a key of its own where it is large.
        """
        apart = ""
        if len(bulk) > LARGE_DATA_BYTES:
            # Before the record that names it; an attempt that is refused leaves a key that only it knew.
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
        """Let go of a step that waits for something else than a worker. False: it is another attempt's now."""
        return bool(self._run("park", run_id, step_id, side, fence, _ms(seconds), info, what))

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
        """1 noted, 0 the step is another attempt's now, -1 the run is ending, -2 it was asked after for `ask_for`
        seconds in vain. An attempt that does not count is none of those that a policy allows.
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
        """Take a step from an attempt that has lost its lease: `again`, `unknown`, `asked` (a person has `ask_for`
        seconds to say whether it happened), or `no`: it is alive.

        With it, the units that were held back, and need their messages now.
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
        """Steps that need a message again, and steps that have waited for a worker longer than `limit` seconds, the
        setting `claim_timeout` if left out.
        """
        if not ids:
            return [], []
        flat = [part for i in ids for part in (i, (hosts or {}).get(i, ""))]
        longest = self.settings.claim_timeout if limit is None else limit
        found = [str(item) for item in self._run("resend", run_id, side, _ms(self.settings.lease), _ms(longest), *flat)]
        return [as_id(i) for i in found if i[0] != "!"], [as_id(i[1:]) for i in found if i[0] == "!"]

    def note_jump(self, known: int, jump: int) -> bool:
        """Note that Redis's clock has jumped, ms; False where there are more than the `known` ones.

        What expires by itself, and would now last longer than it may, is cut to its length.
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
        """Ask hosts for what their receipts of a run say; asked again, as long as they have not answered.

        The index comes first: a host looks there, and at the record whether it is still asked.
        """
        pipe = self.client.pipeline(transaction=False)
        for host in hosts:
            pipe.sadd(self.keys.asked(host), run_id)
        pipe.hincrby(self.keys.clock, "asked", 1)
        self.call(pipe.execute)
        return bool(self._run("ask", run_id, epoch, question, " ".join(hosts)))

    def asked(self, host: str) -> list[str]:
        """Runs that ask a host for what its receipts say."""
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
        """Note a host's answer; False where nobody asks that any more."""
        flat = [part for one in found for part in astuple(one)]
        noted = self._run("answer", run_id, question, host, version, "\n".join(doubts), *flat)
        self.forget_asked(run_id, host)
        return bool(noted)

    def forget_asked(self, run_id: str, host: str) -> None:
        """A run does not ask a host any more."""
        self.call(self.client.srem, self.keys.asked(host), run_id)

    def settle(self, run_id: str, run: RunRecord, doubts: Sequence[str], *, ending: bool) -> bool:
        """The receipts were compared, but for those of the hosts that `doubts` names."""
        return bool(self._run("settle", run_id, run.epoch, run.lost, "1" if ending else "", "\n".join(doubts)))

    def may_have_lost(self, since: int) -> bool:
        """Whether Redis may have lost what it acknowledged since then, ms: it was started, or took over, later.

        A run that was itself begun again after such a loss is younger than the server, but not by much.
        """
        server = self.call(self.client.info, "server")
        if int(self.call(self.client.info, "replication").get("second_repl_offset", -1)) >= 0:
            return True
        return since < self.now() - _ms(int(server["uptime_in_seconds"])) + _ms(_BEGUN_AGAIN)

    def shift(self, run_id: str, number: int, total: int) -> bool:
        """Move the times that a run waits for with Redis's clock, which has jumped so often, by `total` ms in all."""
        limits = _ms(self.settings.lease), _ms(self.settings.undo_timeout)
        return bool(self._run("shift", run_id, number, total, *limits))

    def parent_of(self, run_id: str) -> str:
        """The run that it is a part of, or ''."""
        text = self.call(self.client.hget, self.keys.of(run_id).run, "parent")
        return parent_in(text)

    def children_of(self, run_id: str) -> list[str]:
        """The runs that are parts of it."""
        steps = self.call(self.client.hgetall, self.keys.of(run_id).steps)
        parked = (_object(value) for name, value in steps.items() if name.startswith(f"{Field.PARKED}:"))
        return [str(info["child"]) for info in parked if "child" in info]

    def forget(self, run_id: str) -> bool:
        """Delete a run that rests, with its request, its output and its data, in one script; whether it is gone.

        The indices last: if this is interrupted, it is done again.
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
        """Up to which event the workers' hooks have been told; with an event, notes that."""
        key = self.keys.of(run_id).run
        if event_id is not None:
            self.call(self.client.hset, key, "told", event_id)
            return event_id
        return self.call(self.client.hget, key, "told") or "0-0"

    def hold(self, run_id: str, why: str) -> None:
        """Say why a run does not begin."""
        self._run("hold", run_id, why)


#: What the reducer looks at.
_RECORD = (
    Field.STATUS, Field.ATTEMPTS, f"u{Field.STATUS}", Field.REASON, Field.NO_EFFECT, Field.TAINTED,
)  # fmt: skip


def _record(row: tuple[str | None, ...]) -> StepRecord:
    """Raises Damaged."""
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
    """The run that the field `parent` of a run's record names, or ''."""
    return str(_object(text or "").get("run", ""))


def _object(text: str) -> dict[str, Any]:
    """A JSON object; an empty one for a text that is none."""
    try:
        return dict(json.loads(text or "{}"))
    except UNREADABLE:
        return {}


def _ids(units: Mapping[int, int]) -> list[StepId]:
    return [f"{i}.{n}" for i, count in units.items() for n in range(count)]


def read_request(run_id: str, sealed_text: str) -> dict[str, Any]:
    """A request without its signature. Raises Damaged."""
    try:
        body = json.loads(opened(sealed_text)[0])
        if all(isinstance(body.get(name, {}), dict) for name in ("plan", "params", "files")):
            return dict(body)
    except UNREADABLE as error:
        raise Damaged(f"the request of run {run_id} cannot be read: {type(error).__name__}: {error}") from None
    raise Damaged(f"the request of run {run_id} is no request")


def _is_member(text: str) -> bool:
    """Whether it names a step, a unit, or the undo of one, as leases and waits do."""
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

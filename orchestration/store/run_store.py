"""The records of runs in Redis. Each transition is one script: atomic, and safe to repeat."""

from __future__ import annotations

import getpass
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cache
from typing import Any

from longshore.orchestration.errors import UnknownName
from longshore.orchestration.language.guards import GuardDecision
from longshore.orchestration.messaging.signing import origin, sealed_command
from longshore.orchestration.plans.compiled import StepId, as_id
from longshore.orchestration.saga import ResumeSet
from longshore.orchestration.settings import LARGE_DATA_BYTES, Settings
from longshore.orchestration.states import Cause, RunState, UndoState
from longshore.orchestration.store.audit import KEPT
from longshore.orchestration.store.connection import as_dict
from longshore.orchestration.store.connection import milliseconds as _ms
from longshore.orchestration.store.fan_out import FanOut, fan_out
from longshore.orchestration.store.indices import mark
from longshore.orchestration.store.keys import Field
from longshore.orchestration.store.receipt_questions import ReceiptQuestions
from longshore.orchestration.store.records import Ending, Grant, Recorded, granted
from longshore.orchestration.store.run_reads import RunReads
from longshore.orchestration.store.task_leases import TaskLeases
from longshore.orchestration.transitions import RunRecord

#: Steps that one call of a script on each of them reads.
_AT_ONCE = 1000
#: The question to a person about a step whose effect may have happened.
ASKED = "a decision whether the effect happened: longshore runs resolve"


def actor(settings: Settings) -> str:
    """The actor of commands: the setting, else the OS user, else `unknown`."""
    return settings.actor or _os_user()


@cache
def _os_user() -> str:
    try:
        return getpass.getuser()  # may read the file of all users
    except (KeyError, OSError):
        return "unknown"


class Store(RunReads, ReceiptQuestions, TaskLeases, FanOut):
    """The runs of one installation. Methods raise StoreUnavailable where Redis does not answer."""

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

    # --- transitions ------------------------------------------------------------------------------

    def create(
        self,
        run_id: str,
        fields: Mapping[str, object],
        *,
        inbox: float | None = None,
        audit: Mapping[str, str] | None = None,
        admit: Sequence[str] = (),
    ) -> tuple[bool, dict[str, str]]:
        """Create the record, its entries in the indices, and the `audit` entry; the entry of the inbox is removed.

        `inbox` is the score at which that entry was found. With the keys `admit`, the run is admitted too; see
        `Admission.keys_without_limits`. Returns whether the record was created, and its fields.
        """
        keys = self.keys
        line, values = audit or {}, [part for pair in fields.items() for part in pair]
        noted = [part for pair in line.items() for part in pair]
        score = "" if inbox is None else f"{inbox:.0f}"
        created, found = self._run(
            "create", run_id, run_id, score, _ms(self.settings.lease / 3), KEPT, len(line), *noted, *values,
            keys=[keys.live, keys.runs, keys.inbox, keys.clock, keys.audit, *admit],
        )  # fmt: skip
        return bool(created), as_dict(found)

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
        stored = self.store_wide(run_id, run, fanned or {})
        if stored is None:
            return False
        flat: list[object] = []
        for i in ready:
            flat += ["r", i, (hosts or {}).get(i, "")]
        for i, reason in skipped.items():
            flat += ["s", i, reason, "1" if i in tainted else ""]
        for i, error in (failed or {}).items():
            flat += ["f", i, json.dumps({"error": error}, ensure_ascii=False), error]
        for i, verdict in (fanned or {}).items():
            flat += fan_out(i, verdict)
        stop = "" if stopped_by is None else stopped_by
        args = (run.state, run.level, state, level, run.epoch, stop, len(stored) // 3, *stored)
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

    def finish(
        self,
        run_id: str,
        came_from: RunState,
        state: RunState,
        not_run: Sequence[int],
        epoch: int = 0,
        *,
        release: Sequence[str] = (),
        last: bool = False,
    ) -> Ending:
        """End a run and, with the keys `release`, free its place, key and locks; see `Admission.held_keys`.

        With `last`, the run leaves the live runs, unless others wait: nothing else follows its end.
        """
        more = ("1" if last else "", *not_run)
        return Ending(self._run("finish", run_id, came_from, state, epoch, run_id, *more, keys=release))

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
        return granted(self._run("claim", run_id, step_id, side, owner, task_id, lease, *more))

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
        ahead: tuple[str, str, str, bool] | None = None,
    ) -> Recorded:
        """Record an outcome; without a fence, of a step that is not claimed, or that waits externally.

        `ahead` claims the next link in the same script, where the outcome opens that link: the owner and task id of its
        attempt, its host, and whether the link `stays`.
        `bulk` is the rest of the outcome, a JSON object. A `bulk` of more than LARGE_DATA_BYTES gets a key of its own.
        """
        apart = ""
        if len(bulk) > LARGE_DATA_BYTES:
            # Written before the record that names the key; the key contains the fence, so no other attempt uses it.
            apart = f"{side}{step_id}:{fence}"
            self.call(self.client.set, self.keys.of(run_id).data(apart), bulk)
        elif bulk:
            outcome = f"{outcome[:-1]}{',' if outcome != '{}' else ''}{bulk[1:]}"
        owner, task_id, host, stays = ahead or ("", "", "", False)
        code, advance, held_back, *claims = self._run(
            "complete", run_id, step_id, side, fence, status, outcome, "1" if no_effect else "",
            "1" if stops else "", error, "" if next_link is None else next_link, _ms(self.settings.lease), apart,
            owner, task_id, host, "1" if stays else "",
        )  # fmt: skip
        if code == "stale" and apart:
            self.call(self.client.delete, self.keys.of(run_id).data(apart))
        grant = granted(claims[0]) if claims else None
        units = tuple(as_id(unit) for unit in held_back.split())
        return Recorded(code != "stale", str(advance) == "1", units, grant if isinstance(grant, Grant) else None)

    def park(self, run_id: str, step_id: StepId, side: str, fence: str, seconds: float, info: str, what: str) -> bool:
        """Turn a step into an external wait of at most `seconds`. False: the attempt is superseded."""
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
            "1" if stops else "", "1" if always else "",
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
        queued: Collection[StepId] = (),
    ) -> tuple[list[StepId], list[StepId]]:
        """Steps that need another message, and steps without a claim for `limit` seconds.

        The default of `limit` is the setting `claim_timeout`. The messages of `queued` steps still wait in their queue.
        """
        if not ids:
            return [], []
        flat = [part for i in ids for part in (i, (hosts or {}).get(i, ""), "1" if i in queued else "")]
        longest = self.settings.claim_timeout if limit is None else limit
        lease = _ms(self.settings.lease)
        found: list[str] = []
        for begin in range(0, len(flat), 3 * _AT_ONCE):  # a long script would block Redis for all others
            page = flat[begin : begin + 3 * _AT_ONCE]
            found += map(str, self._run("resend", run_id, side, lease, _ms(longest), *page))
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

    def shift(self, run_id: str, number: int, total: int) -> bool:
        """Shift the due times of a run by the `number` jumps of Redis's clock, `total` ms. False: done before."""
        limits = _ms(self.settings.lease), _ms(self.settings.undo_timeout)
        return bool(self._run("shift", run_id, number, total, *limits))

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

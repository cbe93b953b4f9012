"""Receipts compared with the record: what Redis has lost is found, and a lost attempt is fenced on its host.

The coordinator asks the hosts before a run that was aborted is undone or ends, and wherever an attempt was lost and no
later one fences it off. The host agent, a thread in the main process of each worker, answers: it closes the run's
receipts, ends the processes that still hold one, and tells which attempts the record knows nothing of. A host that does
not answer in time is named by the report.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Collection
from typing import Protocol

from longshore.orchestration.errors import StoreUnavailable
from longshore.orchestration.plans.compiled import CompiledPlan, StepId, at_host
from longshore.orchestration.states import StepState
from longshore.orchestration.store.hosts import Host, Hosts, HostState
from longshore.orchestration.store.keys import Field
from longshore.orchestration.store.run_store import RunSnapshot, Store, UnrecordedAttempt
from longshore.orchestration.transitions import RunRecord
from longshore.tasks.attempts.receipts import Trace
from longshore.tasks.loaded_runs import Loaded, NotOurs, Plans

log = logging.getLogger(__name__)

#: Seconds that a host is given at least: what runs its workers may be starting one again.
_STARTS = 15.0
#: Seconds that the agent gives processes that it ends.
_PATIENCE = 5.0


class Receipts(Protocol):
    """The receipts of a host: `longshore.tasks.attempts.receipts.Ledger`."""

    def close(self, run_id: str, instance_id: str, epoch: int, parts: Collection[str]) -> None: ...

    def traces(
        self, run_id: str, instance_id: str, patience: float, parts: Collection[str] | None = None
    ) -> tuple[list[Trace], list[str]]: ...

    def version(self, run_id: str, instance_id: str) -> int: ...


class Comparison:
    """The coordinator's part. Every call is safe to repeat."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def advance(self, run_id: str, plan: CompiledPlan, run: RunRecord, *, ending: bool) -> bool:
        """Ask the hosts, or go on once they have answered or had their time; whether the run goes on now."""
        found = self.store.look(run_id)
        question = f"{run.epoch}:{run.lost}:{'all' if ending else 'lost'}"
        if found.fields.get("asking") != question:
            hosts = self._hosts(run_id, plan, run, found, ending=ending)
            if not hosts:
                return self.store.settle(run_id, run, [], ending=ending)
            self.store.ask(run_id, run.epoch, question, hosts)
        else:
            asked, answered = found.fields["asked"].split(), found.fields.get("answered", "").split()
            waiting = [host for host in asked if host not in answered]
            # Time alone decides here: only where the clock was compared.
            limit = max(_STARTS, 2 * self.store.settings.lease)
            late = bool(run.now) and run.now - int(found.fields["asked_at"]) >= 1000 * limit
            if not waiting or late:
                for host in waiting:
                    self.store.forget_asked(run_id, host)
                return self.store.settle(run_id, run, [_unanswered(host) for host in waiting], ending=ending)
            self.store.ask(run_id, run.epoch, question, waiting)
        self.store.look_at(run_id, found.now + round(1000 * self.store.settings.sweep_interval), sooner=True)
        return False

    def _hosts(self, run_id: str, plan: CompiledPlan, run: RunRecord, found: RunSnapshot, *, ending: bool) -> list[str]:
        """Those that had an attempt that was lost; and, where Redis may have lost that others took part, each that can
        have."""
        queues = {step.operation.queue for step in plan.steps if step.fenced}
        if not queues:
            return []
        asked: set[str] = set()
        known: dict[str, Host] = {}
        if run.lost > run.fenced:
            known = Hosts(self.store).all()
            asked |= {_host_of(node, known) for node in self._lost_nodes(run_id, plan)}
        created = int(found.fields["created"])
        if ending and self.store.may_have_lost(created):
            asked |= {name.partition("@")[2] for name in found.fields if name.startswith("claimed@")}
            known = known or Hosts(self.store).all()
            asked |= {host.name for host in known.values() if _could(host, queues, created)}
        return sorted(asked - {""})

    def _lost_nodes(self, run_id: str, plan: CompiledPlan) -> set[str]:
        leaves = self.store.expanded(run_id, [step.index for step in plan.steps if step.fenced])
        rows = self.store.step_fields(run_id, leaves, (Field.STATUS, Field.OWNER))
        return {str(owner).partition("@")[2].partition("/")[0] for status, owner in rows.values() if _lost(status)}


def _lost(status: str | None) -> bool:
    """Also where a person is asked what became of it: what the step itself waits for leaves no receipt."""
    return status in {StepState.UNKNOWN, StepState.WAITING}


def _host_of(node: str, known: dict[str, Host]) -> str:
    """The host of a worker; by its name, where the registry does not know it."""
    for host in known.values():
        if any(one.name == node for one in (*host.nodes, *([host.last] if host.last else []))):
            return host.name
    return node.partition("@")[2]


def _could(host: Host, queues: Collection[str], since: int) -> bool:
    """Whether a host can have taken part in a run that was begun then."""
    had = any(queue in host.had or at_host(queue, host.name) in host.had for queue in queues)
    return had and (host.state not in {HostState.LOST, HostState.STOPPED} or host.seen >= since)


def _unanswered(host: str) -> str:
    return f"host {host} could not be asked: an attempt there may have acted, or may act when it wakes up"


class HostAgent:
    """A host's part, in the main process of a worker of it."""

    def __init__(self, store: Store, plans: Plans, receipts: Receipts, host: str, queues: Collection[str]) -> None:
        self.store = store
        self.plans = plans
        self.receipts = receipts
        self.host = host
        self.queues = frozenset(queues)
        self._seen = -1

    def look(self, asked: int) -> list[str]:
        """Answer what this host is asked; `asked` changes with each question. Returns the runs that can go on."""
        if asked == self._seen:
            return []
        done = [run_id for run_id in self.store.asked(self.host) if self._answer_safely(run_id)]
        self._seen = asked
        return done

    def _answer_safely(self, run_id: str) -> bool:
        try:
            return self._answer(run_id)
        except StoreUnavailable:
            raise
        except NotOurs:
            return False  # another worker of this host may know it
        except Exception:  # one run's receipts must not keep the others from being looked at
            log.exception("the receipts of run %s cannot be compared", run_id)
            return False

    def _answer(self, run_id: str) -> bool:
        loaded = self.plans.get(run_id)
        mine = [s for s in loaded.plan.steps if s.fenced and self._serves(s.operation.queue)]
        if not mine:
            return False
        found = self.store.look(run_id)
        question = found.fields.get("asking", "")
        if not question or self.host not in found.fields.get("asked", "").split():
            self.store.forget_asked(run_id, self.host)
            return False
        if self.host in found.fields.get("answered", "").split():
            return False
        epoch, ending = int(question.split(":")[0]), question.endswith(":all")
        leaves = self._leaves(run_id, loaded)
        parts = {part for part, (_, status, _) in leaves.items() if _lost(status)}
        if ending:  # the always steps have their turn yet
            parts |= {step.name for step in loaded.plan.steps if step.fenced and not step.always}
        self.receipts.close(run_id, loaded.instance_id, epoch, parts)
        traces, held = self.receipts.traces(run_id, loaded.instance_id, _PATIENCE, None if ending else parts)
        unseen, doubts = self._unseen(loaded, leaves, traces if ending else [])
        doubts += [f"{part} on {self.host} is still at work, and its process cannot be ended" for part in held]
        version = self.receipts.version(run_id, loaded.instance_id) if ending else 0
        for one in unseen:
            name = loaded.plan.name_of(one.step_id)
            log.warning("run %s step %s: Redis has lost an attempt that was made here", run_id, name)
        return self.store.note_answer(run_id, question, self.host, version, doubts, unseen)

    def _serves(self, queue: str) -> bool:
        """Whether this worker's state folder is that of the workers that do this work: it takes it on, or back."""
        return not self.queues.isdisjoint({queue, at_host(queue, self.host), f"{queue}.undo"})

    def _leaves(self, run_id: str, loaded: Loaded) -> dict[str, tuple[StepId, str | None, int]]:
        """By part, its id, its status and the highest fence that the record knows."""
        plan = loaded.plan
        ids: list[StepId] = []
        for step in plan.steps:
            if step.fenced:
                ids += [step.index, *self.store.expanded(run_id, [step.index])]
        rows = self.store.step_fields(run_id, ids, (Field.STATUS, Field.FENCE, f"u{Field.FENCE}"))
        return {
            plan.part_of(i): (i, status, max(int(fence or 0), int(back or 0)))
            for i, (status, fence, back) in rows.items()
        }

    def _unseen(
        self, loaded: Loaded, leaves: dict[str, tuple[StepId, str | None, int]], traces: list[Trace]
    ) -> tuple[list[UnrecordedAttempt], list[str]]:
        """Attempts that the record knows nothing of; and those of parts that it does not even have."""
        found: list[UnrecordedAttempt] = []
        doubts: list[str] = []
        for trace in traces:
            name = trace.part.partition("@")[0]
            step = loaded.plan.steps[loaded.plan.index[name]] if name in loaded.plan.index else None
            if step is None or step.always:
                continue
            if trace.part not in leaves:
                doubts.append(
                    f"{trace.part} on {self.host} may have been done, and Redis has lost what is needed to undo it"
                )
                continue
            step_id, _, known = leaves[trace.part]
            if trace.fence > known:
                found.append(self._found(step_id, trace))
        return found, doubts

    def _found(self, step_id: StepId, trace: Trace) -> UnrecordedAttempt:
        outcome = trace.outcome
        if outcome is None or trace.side:
            body = {"error": "Redis has lost what became of it", "host": self.host}
            return UnrecordedAttempt(
                step_id, trace.fence, StepState.UNKNOWN, json.dumps(body), trace.rendered, trace.before
            )
        status = StepState.CHANGED if outcome.get("changed") else StepState.UNCHANGED
        body = {"host": self.host} | ({"data": outcome["data"]} if outcome.get("data") else {})
        return UnrecordedAttempt(step_id, trace.fence, status, json.dumps(body), trace.rendered, trace.before)

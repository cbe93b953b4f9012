"""Receipt comparison: find attempts that Redis has lost, and fence lost attempts on their hosts.

The coordinator asks the hosts before an aborted run is compensated or ends, and wherever an attempt was lost and no
later one fences it. The host agent, a thread in the main process of each worker, closes steps of the run, ends the
processes that still hold one, and answers with the attempts that are missing in the record. The report names a host
that does not answer in time.
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
from longshore.orchestration.store.records import RunSnapshot, UnrecordedAttempt
from longshore.orchestration.store.run_store import Store
from longshore.orchestration.transitions import RunRecord
from longshore.tasks.attempts.receipts import Trace
from longshore.tasks.loaded_runs import Loaded, NotOurs, Plans

log = logging.getLogger(__name__)

#: Minimum time limit of a host's answer, seconds: its supervisor may be restarting a worker.
_STARTS = 15.0
#: Seconds that the agent waits for the processes that it ends.
_PATIENCE = 5.0


class Receipts(Protocol):
    """The receipts of a host: `longshore.tasks.attempts.receipts.Ledger`."""

    def close(self, run_id: str, instance_id: str, epoch: int, parts: Collection[str]) -> None: ...

    def traces(
        self, run_id: str, instance_id: str, patience: float, parts: Collection[str] | None = None
    ) -> tuple[list[Trace], list[str]]: ...

    def version(self, run_id: str, instance_id: str) -> int: ...


class Comparison:
    """The coordinator's part of the comparison. Every call is safe to repeat."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def advance(self, run_id: str, plan: CompiledPlan, run: RunRecord, *, ending: bool) -> bool:
        """Ask the hosts, or settle after their answers or the time limit; return whether the run continues now."""
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
            # A time limit decides here: only where the clock was compared.
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
        """The hosts of lost attempts and, where Redis may have lost claims, each host that can have claimed a step."""
        queues = {step.operation.queue for step in plan.steps if step.fenced}
        if not queues:
            return []
        asked: set[str] = set()
        known: dict[str, Host] = {}
        if run.lost > run.fenced:
            known = Hosts(self.store).all()
            asked |= {_host_of(node, known) for node in self._lost_nodes(run_id, plan)}
        # By the clock as it is now: a clock that was set back makes a run younger than the server that lost its writes.
        created = int(found.fields.get("since") or found.fields["created"])
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
    """Whether an attempt was lost.

    A waiting step counts, because a person may be deciding about a lost attempt; other external waits leave no receipt.
    """
    return status in {StepState.UNKNOWN, StepState.WAITING}


def _host_of(node: str, known: dict[str, Host]) -> str:
    """The host of a worker; derived from the worker's name where the registry does not contain it."""
    for host in known.values():
        if any(one.name == node for one in (*host.nodes, *([host.last] if host.last else []))):
            return host.name
    return node.partition("@")[2]


def _could(host: Host, queues: Collection[str], since: int) -> bool:
    """Whether a host can have claimed a step of a run that was created at `since`, ms."""
    had = any(queue in host.had or at_host(queue, host.name) in host.had for queue in queues)
    return had and (host.state not in {HostState.LOST, HostState.STOPPED} or host.seen >= since)


def _unanswered(host: str) -> str:
    return f"host {host} did not answer: an attempt there may have acted, or may act once it continues"


class HostAgent:
    """A host's part of the comparison, in the main process of a worker."""

    def __init__(self, store: Store, plans: Plans, receipts: Receipts, host: str, queues: Collection[str]) -> None:
        self.store = store
        self.plans = plans
        self.receipts = receipts
        self.host = host
        self.queues = frozenset(queues)
        self._seen = -1

    def look(self, asked: int) -> list[str]:
        """Answer the questions to this host; `asked` changes with each one. Returns the runs that can continue."""
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
            return False  # another worker of this host may know the run
        except Exception:  # one run's receipts must not block the other runs
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
        if ending:  # always steps may still run
            parts |= {step.name for step in loaded.plan.steps if step.fenced and not step.always}
        self.receipts.close(run_id, loaded.instance_id, epoch, parts)
        traces, held = self.receipts.traces(run_id, loaded.instance_id, _PATIENCE, None if ending else parts)
        unseen, doubts = self._unseen(loaded, leaves, traces if ending else [])
        doubts += [f"{part} on {self.host} is still running, and its process cannot be ended" for part in held]
        version = self.receipts.version(run_id, loaded.instance_id) if ending else 0
        for one in unseen:
            name = loaded.plan.name_of(one.step_id)
            log.warning("run %s step %s: Redis has lost an attempt of this host", run_id, name)
        return self.store.note_answer(run_id, question, self.host, version, doubts, unseen)

    def _serves(self, queue: str) -> bool:
        """Whether this worker consumes the queue or its undo queue, and so has the state folder with the receipts."""
        return not self.queues.isdisjoint({queue, at_host(queue, self.host), f"{queue}.undo"})

    def _leaves(self, run_id: str, loaded: Loaded) -> dict[str, tuple[StepId, str | None, int]]:
        """The id, status and highest recorded fence of each part."""
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
        """The attempts that are missing in the record, and doubts about parts that are missing there altogether."""
        found: list[UnrecordedAttempt] = []
        doubts: list[str] = []
        for trace in traces:
            name = trace.part.partition("@")[0]
            step = loaded.plan.steps[loaded.plan.index[name]] if name in loaded.plan.index else None
            if step is None or step.always:
                continue
            if trace.part not in leaves:
                doubts.append(
                    f"{trace.part} on {self.host} may have had an effect, and Redis has lost the data for its undo"
                )
                continue
            step_id, _, known = leaves[trace.part]
            if trace.fence > known:
                found.append(self._found(step_id, trace))
        return found, doubts

    def _found(self, step_id: StepId, trace: Trace) -> UnrecordedAttempt:
        outcome = trace.outcome
        if outcome is None or trace.side:
            body = {"error": "Redis has lost the outcome", "host": self.host}
            return UnrecordedAttempt(
                step_id, trace.fence, StepState.UNKNOWN, json.dumps(body), trace.rendered, trace.before
            )
        status = StepState.CHANGED if outcome.get("changed") else StepState.UNCHANGED
        body = {"host": self.host} | ({"data": outcome["data"]} if outcome.get("data") else {})
        return UnrecordedAttempt(step_id, trace.fence, status, json.dumps(body), trace.rendered, trace.before)

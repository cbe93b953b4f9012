"""A compiled plan: steps by index, with dependencies, levels, queues and policies.

The level of a step is 1 + the highest level of its dependencies, 0 for roots. Inside a level, steps keep the order of
the plan.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from graphlib import CycleError, TopologicalSorter

from longshore.orchestration.errors import UnknownName
from longshore.orchestration.language import templates
from longshore.orchestration.language.guards import LOOKS_AT_FAILURE
from longshore.orchestration.language.targets import ANY, is_several
from longshore.orchestration.operations import (
    NO_RETRY,
    Kind,
    Operation,
    Params,
    Result,
    Retry,
    Undo,
    Waits,
    find,
    known,
)
from longshore.orchestration.plans.model import Plan
from longshore.orchestration.plans.steps import Step


def tolerated(written: str | None, units: int) -> int:
    """The number of units that may fail."""
    if written is None:
        return 0
    if written.endswith("%"):
        return math.floor(units * float(written[:-1]) / 100 + 1e-9)
    return int(written)


#: The index of a step, or `<index>.<unit>` for a unit of a step with fan-out.
StepId = int | str


def index_of(step_id: StepId) -> int:
    """The index of the step of an id."""
    return step_id if isinstance(step_id, int) else int(step_id.partition(".")[0])


def unit_of(step_id: StepId) -> int | None:
    """The unit of an id; None for a step."""
    unit = "" if isinstance(step_id, int) else step_id.partition(".")[2]
    return int(unit) if unit else None


def as_id(text: str) -> StepId:
    """Parse an id of a record."""
    return text if "." in text else int(text)


def _unknown(name: str) -> Operation:
    try:
        return find(name)
    except UnknownName:
        return Operation(name, Params, Result, "unknown", Kind.ACTS, Undo.NONE, "unknown operation")


def find_cycle(plan: Plan) -> list[str] | None:
    """The steps of one cycle, with the first repeated at the end; or None."""
    graph = {name: [d for d in step.after if d in plan.steps] for name, step in plan.steps.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(reversed(error.args[1]))
    return None


@dataclass(frozen=True)
class CompiledStep:
    """One step, with all properties that are the same for every run."""

    index: int
    name: str
    step: Step
    operation: Operation
    level: int
    needs: tuple[int, ...]
    needed_by: tuple[int, ...]
    #: The step's own target, else the plan's.
    target: str = "_any"

    @property
    def always(self) -> bool:
        return self.step.always

    @property
    def inside(self) -> str:
        """The container to run in, as written; '' for the host itself."""
        return self.step.in_.container if self.step.in_ is not None else ""

    @cached_property
    def read_only(self) -> bool:
        return self.operation.is_read_only(self.step.with_)

    @cached_property
    def repeatable(self) -> bool:
        """Whether a lost attempt may be retried."""
        return self.read_only or self.operation.repeatable(self.step.with_)

    @cached_property
    def fenced(self) -> bool:
        """Whether an attempt leaves a receipt beside its effect (`longshore.tasks.attempts.receipts`)."""
        return not self.read_only and self.waits is Waits.NOTHING and self.operation.effect

    @cached_property
    def has_undo(self) -> bool:
        """Whether the step has a compensation to run."""
        if self.step.undo is None:
            return self.operation.takes_back and self.operation.undoable(self.step.with_)
        return self.step.undo != "none"

    @cached_property
    def guarded(self) -> bool:
        """Whether guards decide at dispatch that the step runs."""
        return bool(self.step.when or self.step.only_if or self.step.when_fact)

    @cached_property
    def looks_at_failure(self) -> bool:
        """Whether a guard of the step handles failed dependencies, which then do not skip the step."""
        return any(word in LOOKS_AT_FAILURE for word in self.step.only_if) or any(
            templates.reads_outcome(templates.braced(condition.if_)) for condition in self.step.when
        )

    @cached_property
    def fans_out(self) -> bool:
        """Whether the step can have several units: items, hosts or both."""
        return self.step.foreach is not None or is_several(self.target) or templates.is_template(self.target)

    def stays(self, side: str) -> bool:
        """Whether the effect is on the executing host, which later attempts and the undo must use, too."""
        return self.operation.queue in AT_HOST and (not side or self._undo_operation.queue in AT_HOST)

    @cached_property
    def plain(self) -> bool:
        """Whether dispatch needs no decision: no guards, no fan-out, no target."""
        return not self.guarded and not self.fans_out and self.target == "_any"

    def place(self, side: str, sent_to: str | None, done_at: str | None, journalled: str | None) -> str:
        """The required host according to the record; '' for any host."""
        begun = self.stays(side) and (side or journalled)
        return sent_to or (done_at if begun and done_at else "")

    @property
    def waits(self) -> Waits:
        return self.operation.waits

    @property
    def queue(self) -> str:
        return self.queue_at("")

    def queue_at(self, host: str) -> str:
        """The queue of the step, of one host if given. An always step uses the undo queue, so that neither other work
        nor a drained host delays it.
        """
        queue = at_host(self.operation.queue, host)
        return _first(queue) if self.always else queue

    @cached_property
    def undo_queue(self) -> str:
        return self.undo_queue_at("")

    def undo_queue_at(self, host: str) -> str:
        """The undo queue, which workers consume first so that new work cannot delay compensations."""
        return _first(at_host(self._undo_operation.queue, host))

    @property
    def _undo_operation(self) -> Operation:
        undo = self.step.undo
        return self.operation if undo is None or undo == "none" else find(undo.op)


#: The queue of control work, which every installation consumes.
CONTROL = "control"


#: The queues of operations with an effect on the worker's machine or engine.
AT_HOST = frozenset({"docker", "compose", "command", "file", "network", "node"})


def _first(queue: str) -> str:
    """The prioritised queue of the same work."""
    return queue if queue == CONTROL else f"{queue}.undo"


def is_forward(queue: str) -> bool:
    """Whether a queue carries new work: neither control work, undo nor always steps."""
    return queue != CONTROL and not queue.endswith(".undo")


def at_host(queue: str, host: str) -> str:
    """The queue of one host; control work is not bound to a host."""
    return f"{queue}@{host}" if host and queue != CONTROL else queue


def target_of(plan: Plan, name: str) -> str:
    """The step's own target, else the plan's; for control work `_any`, unless the step sets a target."""
    step, operation = plan.steps[name], known(plan.steps[name].op)
    return step.target or (ANY if operation is not None and operation.queue == CONTROL else plan.target)


class CompiledPlan:
    """A compiled plan. The plan must be valid.

    `lenient` accepts unknown operations, for displaying a run, not for executing it.
    """

    def __init__(self, plan: Plan, *, lenient: bool = False) -> None:
        self.plan = plan
        #: Digest with parameters and files; set if messages are signed.
        self.digest = ""
        #: The rules for plaintext secrets under which the plan was found to be permitted.
        self.permitted: set[str] = set()
        names = list(plan.steps)
        index = {name: i for i, name in enumerate(names)}
        graph = {name: step.after for name, step in plan.steps.items()}
        level: dict[str, int] = {}
        for name in TopologicalSorter(graph).static_order():
            level[name] = 1 + max((level[d] for d in graph[name]), default=-1)
        needed_by: list[list[int]] = [[] for _ in names]
        for name in names:
            for dependency in graph[name]:
                needed_by[index[dependency]].append(index[name])
        self.index = index
        self.steps = tuple(
            CompiledStep(
                index=i,
                name=name,
                step=plan.steps[name],
                operation=_unknown(plan.steps[name].op) if lenient else find(plan.steps[name].op),
                level=level[name],
                needs=tuple(index[d] for d in graph[name]),
                needed_by=tuple(needed_by[i]),
                target=target_of(plan, name),
            )
            for i, name in enumerate(names)
        )
        by_level: dict[int, list[int]] = {}
        for step in self.steps:
            by_level.setdefault(step.level, []).append(step.index)
        self.levels = tuple(tuple(by_level[n]) for n in range(len(by_level)))

    def __len__(self) -> int:
        return len(self.steps)

    def stops(self, index: int) -> bool:
        """Whether a final failure of this step ends the run. A failing `always` step never does."""
        step = self.steps[index]
        return not step.always and (step.step.on_error or self.plan.on_error) == "stop"

    def retry_policy(self, index: int) -> Retry:
        """The policy of the step, else of the plan, else of the operation. Steps that wait for an approval, a run or
        a time are not retried.
        """
        step = self.steps[index]
        if step.waits.is_final:
            return NO_RETRY
        return step.step.retry or self.plan.retry or step.operation.retry

    def retries_every_error(self, index: int) -> bool:
        """Whether a policy of the step or the plan retries each error that is not marked permanent.

        Without one, the policy of the operation retries temporary errors only.
        """
        return self.steps[index].step.retry is not None or self.plan.retry is not None

    def may_chain(self, index: int) -> bool:
        """Whether the step can be part of a chain: alone in its level, and no decision at dispatch."""
        step = self.steps[index]
        alone = len(self.levels[step.level]) == 1
        return alone and not step.always and step.plain and step.waits is Waits.NOTHING

    def chain_from(self, index: int, at_most: int) -> tuple[int, ...]:
        """The step and the single steps of the following levels that can be chained to it."""
        links = [index]
        for level in self.levels[self.steps[index].level + 1 :]:
            if len(links) == at_most or len(level) != 1 or not self.may_chain(level[0]):
                break
            # Dependencies of the first link have succeeded; any other step may have failed without ending the run.
            if not set(self.steps[level[0]].needs) <= {*links, *self.steps[index].needs}:
                break
            links.append(level[0])
        return tuple(links) if self.may_chain(index) else (index,)

    def name_of(self, step_id: StepId) -> str:
        """The display name: `copy`, or `copy[17]` for a unit."""
        unit = unit_of(step_id)
        name = self.steps[index_of(step_id)].name
        return name if unit is None else f"{name}[{unit}]"

    def part_of(self, step_id: StepId) -> str:
        """The name in receipts: `copy`, or `copy@17` for a unit."""
        unit = unit_of(step_id)
        name = self.steps[index_of(step_id)].name
        return name if unit is None else f"{name}@{unit}"

    def id_of(self, name: str) -> StepId:
        """The id of a display name. Raises KeyError for an unknown step."""
        if name in self.index:
            return self.index[name]
        stem, bracket, unit = name.rpartition("[")
        if not bracket or not unit.endswith("]") or not unit[:-1].isdigit():
            raise KeyError(name)
        return f"{self.index[stem]}.{unit[:-1]}"

    def upstream(self, index: int) -> frozenset[int]:
        """All direct and indirect dependencies of a step."""
        seen: set[int] = set()
        stack = list(self.steps[index].needs)
        while stack:
            i = stack.pop()
            if i not in seen:
                seen.add(i)
                stack.extend(self.steps[i].needs)
        return frozenset(seen)

"""Runs in memory: the reducer, scripts, coordinator and runner of production, with a simulated server, engine, clock
and messages. See `longshore.orchestration.testing`.
"""

from __future__ import annotations

import itertools
import json
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import partial
from typing import Any

from celery import Celery

from longshore.orchestration.client.request import request_body
from longshore.orchestration.errors import OperationError, StepTimeout, UnknownName, Unsuccessful
from longshore.orchestration.messaging.canvas import ADVANCE, STEP, Canvas
from longshore.orchestration.operations import Operation, Params, Waits, all_operations, find
from longshore.orchestration.operations.celery_task import CELERY
from longshore.orchestration.operations.subplan import RUN
from longshore.orchestration.plans import loading
from longshore.orchestration.plans.compiled import StepId, at_host, index_of
from longshore.orchestration.plans.model import Plan
from longshore.orchestration.runs import events, report
from longshore.orchestration.runs.events import Event
from longshore.orchestration.runs.hooks import HookDispatcher, Hooks
from longshore.orchestration.runs.report import Report
from longshore.orchestration.settings import Settings
from longshore.orchestration.states import TERMINAL, StepState
from longshore.orchestration.store.admission import Admission
from longshore.orchestration.store.hosts import Hosts, Node, NodeState
from longshore.orchestration.store.keys import Field
from longshore.orchestration.store.records import Recorded
from longshore.tasks.attempts.delivery import Delivery, Refused, RetryScheduled, WaitsOutside
from longshore.tasks.attempts.fencing import NoFence
from longshore.tasks.attempts.runner import Attempt
from longshore.tasks.control.coordinator import Coordinator
from longshore.tasks.control.receipt_comparison import HostAgent
from longshore.tasks.external_wait import WaitingImplementation
from longshore.tasks.host import secret_sources
from longshore.tasks.host.engine import factory
from longshore.tasks.host.facts import facts
from longshore.tasks.implementation import Context, Implementation, Outcome, implementation
from longshore.tasks.loaded_runs import NotOurs, Plans
from longshore.tasks.operations import cache, command, compose, docker, file, http, network, node, noop, stacks, waiting  # noqa: F401 - they make their operations known
from longshore.tasks.simulation.called_task import CalledTask
from longshore.tasks.simulation.engine import MemoryEngine
from longshore.tasks.simulation.memory_store import MemoryStore
from longshore.tasks.simulation.messages import _Line, _Message, _NoReceipts
from longshore.tasks.simulation.sample_data import placeholder, sample_data
from longshore.tasks.simulation.script import Script, Vanished

#: Families that act only on the engine in memory, or have no effect.
_HARMLESS = ("noop.", "docker.", "approval.", "plan.")
_NOT_BEFORE = frozenset({Field.NOT_BEFORE, f"u{Field.NOT_BEFORE}"})
#: Idle turns of the loop after which the run counts as stuck.
_PATIENCE = 400


class _Staged(Implementation[Params]):
    """An operation in the sandbox: as scripted, else real where harmless, else pretended."""

    def __init__(self, sandbox: Sandbox, operation: Operation, real: Implementation[Any] | None) -> None:
        self.sandbox = sandbox
        self.operation = operation
        self.real = real

    @property
    def keeps_journal(self) -> bool:
        if self.real is None:
            return False
        return bool(getattr(self.real, "keeps_journal", type(self.real).before is not Implementation.before))

    def before(self, ctx: Context, params: Params) -> dict[str, Any]:
        if self.real is not None:
            return self.real.before(ctx, params)
        return self.sandbox.sample_before.get(ctx.step, {})

    def act(self, ctx: Context, params: Params, before: dict[str, Any]) -> Outcome:
        name = ctx.step if ctx.unit is None else f"{ctx.step}[{ctx.unit}]"
        self.sandbox.done.append(name)
        script = self.sandbox.scripts.get(name) or self.sandbox.scripts.get(ctx.step)
        if script is None:
            return self._act(ctx, params, before)
        error = script.errors.pop(0) if script.errors else script.always
        if error is not None:
            raise error
        if script.hangs:
            raise StepTimeout("exceeded its time limit")
        outcome = self._act(ctx, params, before) if script.data is None else Outcome(script.changed, dict(script.data))
        if script.vanishes:
            script.vanishes -= 1
            raise Vanished
        return outcome

    def _act(self, ctx: Context, params: Params, before: dict[str, Any]) -> Outcome:
        if self.real is not None:
            return self.real.act(ctx, params, before)
        return Outcome(changed=True, data=self.sandbox.sample.get(ctx.step, {}))

    def undo(self, ctx: Context, params: Params, before: dict[str, Any], data: dict[str, Any] | None) -> Outcome:
        name = ctx.step if ctx.unit is None else f"{ctx.step}[{ctx.unit}]"
        self.sandbox.undone.append(name)
        script = self.sandbox.undo_scripts.get(name) or self.sandbox.undo_scripts.get(ctx.step)
        if script is not None and (error := script.errors.pop(0) if script.errors else script.always):
            raise error
        return self.real.undo(ctx, params, before, data) if self.real is not None else Outcome(changed=True)


@dataclass(frozen=True)
class Done:
    """The result of one operation that ran in a sandbox without a plan, with its journal.

    `before` is the state before the operation, and `outcome` has `changed` and `data`.
    """

    sandbox: Sandbox
    operation: str
    params: Params
    context: Context
    before: dict[str, Any]
    outcome: Outcome

    def undo(self) -> Outcome:
        """Run the compensation of the operation."""
        done = implementation(self.operation)
        with self.sandbox.engine_in_use():
            return done.undo(self.context, self.params, self.before, self.outcome.data)


class Sandbox:
    """Runs plans in memory, for tests, without Redis, workers or Docker.

    The sandbox runs operations of your own, `noop.execute`, and `docker.*` on the MemoryEngine `engine`. Steps of all
    other operations are pretended: they succeed, and return the data that `give` sets. A pretended step is changed,
    unless the step only reads.

    * `hosts` – names of hosts, or a mapping of names to labels
    * `pretend` – pretend all steps, with invented values for secrets
    * `approve_all` – approve every step that waits for an approval
    * `app` – a Celery app, whose tasks the sandbox calls

    `done` and `undone` list the steps that were run and undone, in order. Time passes only while a run waits. The
    methods `fail` to `reject` take the name of a step, or `step[3]` for one of its items.
    """

    def __init__(
        self,
        *,
        hosts: Sequence[str] | Mapping[str, Mapping[str, str]] = ("sandbox",),
        pretend: bool = False,
        approve_all: bool = False,
        lease: float = 15.0,
        app: Celery | None = None,
    ) -> None:
        self.app = app
        self.settings = Settings(redis_url="redis://sandbox", lease=lease, namespace="sandbox")
        self.engine = MemoryEngine()
        self.hosts = list(hosts)
        #: Labels by host name.
        self.labels = dict(hosts) if isinstance(hosts, Mapping) else {}
        self.pretend = pretend
        self.approve_all = approve_all
        self.scripts: dict[str, Script] = {}
        self.undo_scripts: dict[str, Script] = {}
        self.sample: dict[str, dict[str, Any]] = {}
        self.sample_before: dict[str, dict[str, Any]] = {}
        #: Steps that were run and compensated, in order, one entry for each attempt.
        self.done: list[str] = []
        self.undone: list[str] = []
        self.store = MemoryStore(self.settings)
        self.plans = Plans(self.store)
        self._queue: deque[_Message] = deque()
        self._coordinator = Coordinator(None, self.store, self.plans, self._canvas)  # type: ignore[arg-type]
        queues = [operation.queue for operation in all_operations().values()]
        self._agents = [HostAgent(self.store, self.plans, _NoReceipts(), host, queues) for host in self.hosts]
        self._owners = itertools.count(1)
        self._numbers = itertools.count(1)
        self._decisions: dict[str, tuple[str, str]] = {}

    # --- scripted behaviour -----------------------------------------------------------------------

    def _script(self, step: str) -> Script:
        return self.scripts.setdefault(step, Script())

    def fail(self, step: str, error: str | OperationError = "made to fail", *, times: int | None = None) -> None:
        """Make a step fail: always, or only the first `times` times."""
        raised = error if isinstance(error, OperationError) else Unsuccessful(error)
        script = self._script(step)
        if times is None:
            script.always = raised
        else:
            script.errors += [raised] * times

    def fail_undo(self, step: str, error: str = "its undo was made to fail") -> None:
        """Make the undo of a step fail."""
        self.undo_scripts.setdefault(step, Script()).always = OperationError(error)

    def hang(self, step: str) -> None:
        """Make a step exceed its time limit."""
        self._script(step).hangs = True

    def vanish(self, step: str, times: int = 1) -> None:
        """Make the first `times` workers of a step die after its effect, before they record its outcome."""
        self._script(step).vanishes = times

    def give(self, step: str, data: Mapping[str, Any] | None = None, *, changed: bool = True) -> None:
        """Make a step succeed with `data`, without an effect."""
        script = self._script(step)
        script.data, script.changed = dict(data or {}), changed

    def approve(self, step: str, note: str = "") -> None:
        """Approve a step as soon as it waits."""
        self._decisions[step] = ("approve", note)

    def reject(self, step: str, note: str = "") -> None:
        """Reject a step as soon as it waits."""
        self._decisions[step] = ("reject", note)

    def set_clock(self, seconds: float) -> None:
        """Set Redis's clock forward by `seconds`, or back by a negative number."""
        self.store.jump(seconds)

    # --- a run ------------------------------------------------------------------------------------

    def run(
        self,
        plan: Plan,
        params: Mapping[str, Any] | None = None,
        *,
        run_id: str | None = None,
        hooks: Hooks | None = None,
    ) -> Report:
        """Run a plan to its end, and return the report.

        Raises PlanError and ParamsError as `Client.start` does, UnknownName if a step given to another method is not in
        the plan, and AssertionError if the run makes no progress.
        """
        self._known(plan)
        run_id = run_id or f"{plan.name}-{next(self._numbers)}"
        for host in self.hosts:
            queues = tuple(sorted({at_host(operation.queue, host) for operation in all_operations().values()}))
            own = tuple(name for name, operation in all_operations().items() if operation.function is not None)
            labels = self.labels.get(host, {})
            Hosts(self.store).register(host, Node("sandbox", queues, own, labels=labels, facts=facts()))
        self.sample, self.sample_before = sample_data(plan)
        Admission(self.store).submit(run_id, request_body(plan, params or {}, "sandbox"))
        self._queue.append(_Message(ADVANCE, run_id))
        self._coordinator.look_at_clock()
        with self.engine_in_use():
            self._until_it_rests(run_id)
        if hooks is not None:
            dispatcher = HookDispatcher(self.store, run_id, self.plans.get(run_id).plan)
            for event in self.events(run_id):
                dispatcher.tell(event, hooks)
        return self.report(run_id)

    def _known(self, plan: Plan) -> None:
        """Raise UnknownName for a script of a step that is not in the plan: the test would prove nothing."""
        names = set(_names(plan))
        for name in [*self.scripts, *self.undo_scripts, *self._decisions]:
            step = name if name in names else name.partition("[")[0]
            if step not in names and "@undo" not in step:
                near = get_close_matches(step, names, n=1)
                raise UnknownName(
                    f"the sandbox was given step {step!r}, which is not in the plan",
                    remedy=f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(sorted(names))}",
                )

    def report(self, run_id: str) -> Report:
        """The report of a run of this sandbox."""
        run, steps = self.store.everything(run_id)
        return report.build(run_id, self.plans.get(run_id).plan, run, steps, self.store.now())

    def events(self, run_id: str) -> list[Event]:
        """The events of a run of this sandbox."""
        return events.read(self.store, run_id, self.plans.get(run_id).plan)

    @contextmanager
    def engine_in_use(self) -> Iterator[None]:
        """A context manager. Inside, Docker operations of this process act on `engine`."""
        before = factory._factory
        factory.use_engines(lambda _url: self.engine)
        try:
            yield
        finally:
            factory.use_engines(before)

    def _canvas(self, run_id: str, hosts: Mapping[StepId, str] | None) -> Canvas:
        return _Line(self._queue, run_id, hosts)

    def _until_it_rests(self, run_id: str) -> None:
        idle = 0
        while self.store.state(run_id) not in TERMINAL or self._queue:
            if self._queue:
                self._deliver(self._queue.popleft())
                idle = 0
                continue
            idle += 1
            if idle >= _PATIENCE:
                raise AssertionError(f"the run makes no progress in {self.store.state(run_id)}")
            self._decide(run_id)
            self._pass_time(run_id)

    def _pass_time(self, run_id: str) -> None:
        """Advance the clock until something is due; then sweep, as workers do."""
        run_ids = self.store.runs()
        self._sweep(run_ids)  # sweepers run all the time
        now = self.store.now()
        due = [float(when) for when in self._due(run_ids) if when > now]
        self.store.advance((min(due) - now) / 1000 + 0.001 if due else self.settings.lease)
        self._live_on()
        self._sweep(run_ids)

    def _sweep(self, run_ids: Sequence[str]) -> None:
        self._coordinator.look_at_clock()
        self._coordinator.may_expire_leases = (
            True  # sweepers run all the time, however far the clock was advanced in one step
        )
        for agent in self._agents:
            for each in agent.look(self._coordinator.clock.asked):
                self._coordinator.advance(each)
        for each in run_ids:
            self._coordinator.advance(each, recover=True)

    def _live_on(self) -> None:
        for host in self.hosts:
            Hosts(self.store).beat(host, "sandbox", NodeState.READY, 0)

    def _due(self, run_ids: list[str]) -> Iterator[float]:
        for run_id in run_ids:
            keys = self.store.keys.of(run_id)
            for key in (keys.leases, keys.waits):
                yield from (float(when) for _, when in self._scores(key))
            fields, steps = self.store.everything(run_id)
            yield from (float(fields[name]) for name in ("deadline", "undo_deadline") if fields.get(name))
            for name, value in steps.items():
                kind, _, step_id = name.partition(":")
                side = kind.removesuffix(Field.NOT_BEFORE)
                if kind in _NOT_BEFORE and steps.get(f"{side}{Field.STATUS}:{step_id}") == StepState.RETRYING:
                    yield float(value)

    def _scores(self, key: str) -> list[tuple[str, float]]:
        return self.store.client.zrange(key, 0, -1, withscores=True)  # type: ignore[return-value]

    def _decide(self, run_id: str) -> None:
        """Send the scripted decisions of people on waiting steps."""
        for each in self.store.runs():
            plan = self.plans.get(each).plan
            for member in self.store.look(each).waits:
                name = plan.name_of(member if "." in member else int(member)) if member[0] != "u" else ""
                person = name and plan.steps[plan.index[name.partition("[")[0]]].waits is Waits.PERSON
                if name in self._decisions or (self.approve_all and person):
                    kind, note = self._decisions.pop(name, ("approve", ""))
                    self.store.command(each, kind, reason=note, step=plan.id_of(name))
                    self._queue.append(_Message(ADVANCE, each))

    def _deliver(self, message: _Message) -> None:
        if message.task == ADVANCE:
            try:
                self._coordinator.advance(message.run_id)
            except NotOurs:
                return
            return
        delivery = self._delivery(message)
        read = placeholder if self.pretend else secret_sources.read
        done = partial(self._implementation_of, delivery)
        attempt = Attempt(delivery, fence=NoFence(delivery), implementation_of=done, read_secret=read)
        try:
            result = attempt.run()
        except (Refused, Vanished):
            return
        if isinstance(result, WaitsOutside):
            self._queue.append(_Message(ADVANCE, message.run_id))
        elif isinstance(result, RetryScheduled):
            if not result.parked:
                self.store.advance(result.delay)
                self._queue.append(replace(message, rest=()))
        else:
            self._follow(message, result.recorded, good=not result.error)

    def _implementation_of(self, delivery: Delivery, operation: str) -> Implementation[Any]:
        done = self.staged(operation)
        if isinstance(done, WaitingImplementation) and self.scripts.get(delivery.step.name):
            return _Staged(self, find(operation), None)
        return done

    def _follow(self, message: _Message, recorded: Recorded, *, good: bool) -> None:
        """Send the messages that Celery and the result backend send after a task."""
        if recorded.advance:
            self._queue.append(_Message(ADVANCE, message.run_id))
        units = recorded.next_units
        for unit, (host,) in self.store.step_fields(message.run_id, units, (Field.HOST,)).items():
            self._queue.append(_Message(STEP, message.run_id, unit, host or ""))
        if good and message.rest:
            self._queue.append(_Message(STEP, message.run_id, message.rest[0], rest=message.rest[1:]))

    def _delivery(self, message: _Message) -> Delivery:
        name = f"task-{next(self._owners)}"
        return Delivery(
            self.store,
            self.plans.get(message.run_id),
            message.run_id,
            message.step_id,
            owner=f"{name}@sandbox/1",
            task_id=name,
            canvas=self._canvas,
            host=message.host or self.hosts[index_of(message.step_id) % len(self.hosts)],
            side="" if message.task == STEP else "u",
            next_link=message.rest[0] if message.rest else None,
        )

    def staged(self, name: str) -> Implementation[Any]:
        """The implementation that the sandbox uses for an operation."""
        operation = find(name)
        if name.startswith(("approval.", "plan.", "timer.")):
            return implementation(name)
        harmless = not self.pretend and (operation.function is not None or name.startswith(_HARMLESS))
        real = CalledTask(self.app) if self.app is not None and name == CELERY.name else None
        return _Staged(self, operation, implementation(name) if harmless else real)

    # --- one operation ----------------------------------------------------------------------------

    def act(self, op: str, /, **params: Any) -> Done:
        """Run one operation without a plan. Nothing is pretended. Raises the errors of the operation."""
        done, values = implementation(op), find(op).params.model_validate(params)
        context = Context(run_id="sandbox", step=f"step-{next(self._numbers)}", plan="sandbox")
        with self.engine_in_use():
            before = done.before(context, values)
            json.dumps(before)
            return Done(self, op, values, context, before, done.act(context, values, before))


def _names(plan: Plan) -> Iterator[str]:
    """The names of a plan's steps, and of the steps of its sub-plans."""
    for name, step in plan.steps.items():
        yield name
        if step.op == RUN.name and "plan" in step.with_:
            yield from _names(loading.resolve(plan, step.with_["plan"]))

"""The handle of one run: read its state, watch it, wait for its end, and send it commands.

A command is stored in Redis and carried out by a worker; each method that sends one returns at once.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Literal

from celery import Celery
from kombu.exceptions import OperationalError

from longshore.orchestration.errors import RunFailed, RunLost, StoreUnavailable, UnknownName, WaitTimeout
from longshore.orchestration.messaging import signing
from longshore.orchestration.messaging.canvas import Canvas
from longshore.orchestration.plans.compiled import CONTROL, CompiledPlan, StepId
from longshore.orchestration.plans.model import Plan
from longshore.orchestration.runs import events, pending_reasons, report
from longshore.orchestration.runs.events import Event
from longshore.orchestration.runs.hooks import HookDispatcher, Hooks
from longshore.orchestration.runs.report import Report
from longshore.orchestration.runs.step_report import ItemReport, StepReport
from longshore.orchestration.states import TERMINAL, RunState
from longshore.orchestration.store.records import stream_order
from longshore.orchestration.store.run_store import Store

log = logging.getLogger(__name__)

#: How a person may resolve a step whose outcome the record does not know; see `Run.resolve`.
Resolution = Literal["done", "skip", "undone", "abandon"]


#: Seconds between two reads of the output of a step.
_FOLLOW = 0.3
#: Seconds between two looks at why a run without events does not continue.
WAITS_PAUSE = 10.0
#: Seconds between two reads of the answer to a command.
ANSWER_PAUSE = 0.05


class Run:
    """A handle to one run: waits for it, reads its report and events, and sends commands to it.

    `attached` is True if the run existed before this client asked for it. Every method raises StoreUnavailable if Redis
    does not answer in time.
    """

    def __init__(
        self,
        store: Store,
        producer: Callable[[], Celery],
        run_id: str,
        plan: CompiledPlan,
        *,
        attached: bool = False,
        digest: str = "",
    ) -> None:
        self.store = store
        self._producer = producer
        self.id = run_id
        self.plan = plan
        self.attached = attached
        self._digest = digest

    @property
    def run_id(self) -> str:
        return self.id

    def __repr__(self) -> str:
        return f"Run({self.id!r})"

    def state(self) -> RunState:
        """The state of the run; `pending` until a worker has read the request of the run."""
        return RunState(self.store.state(self.id) or RunState.PENDING)

    def _state_there(self) -> RunState:
        """The state of the run. Raises RunLost where neither record nor request exists."""
        state = self.store.state(self.id)
        if state is None and self.store.body(self.id) is None:
            raise lost(self.id)
        return RunState(state or RunState.PENDING)

    def unserved(self) -> list[str]:
        """The queues that the run needs and that no worker consumes now."""
        if self.store.settings.redis_url is None:
            return []  # the embedded supervisor starts its worker by itself
        return pending_reasons.unserved(self.store, self.plan)

    def waits_for(self) -> list[str]:
        """The reasons why the run does not continue now: queues without a worker, and hosts that take no work."""
        if self.store.settings.redis_url is None:
            return []  # see `unserved`
        found = self.report()
        if found.state is RunState.PENDING and found.error is None:
            return [f"no worker consumes queue {CONTROL}"] if CONTROL in self.unserved() else []
        return waiting_reasons(found)

    def report(self) -> Report:
        """The present report of the run. The report is complete once the run has ended."""
        store = self.store
        run, steps = store.everything(self.id)
        if self._digest and run.get("digest", self._digest) != self._digest:
            # Redis lost the run, and a client created it again under the same id with another plan.
            self.plan, self._digest = stored_plan(store, self.id)
        if run.get("state") not in TERMINAL:
            steps |= pending_reasons.pending_reasons(store, self.plan, steps)
        if run.get("state") == RunState.PENDING and run.get("hold_reason"):
            run["hold_reason"] = pending_reasons.hold_reason(store, self.id, run["hold_reason"])
        return report.build(self.id, self.plan, run, steps, store.now())

    def events(self, after: str = "0-0") -> list[Event]:
        """The events so far, after the cursor `after`, which is the id of an event."""
        return events.read(self.store, self.id, self.plan, after)

    def watch(self, after: str = "0-0", *, hooks: Hooks | None = None) -> Iterator[Event]:
        """Yield the events after the cursor `after` as they occur, until the run has ended.

        For each of these events, `hooks` are called once, in order. An exception of a hook is raised here. Raises
        RunLost if the run does not exist.
        """
        watcher = _Watcher(self, hooks, after) if hooks is not None else None
        for event in self._watch(after):
            if watcher is not None:
                watcher.call(event)
            yield event

    def _watch(self, after: str) -> Iterator[Event]:
        for event in events.follow(self.store, self.id, self.plan, after):
            if event is not None:
                yield event
            # A watcher that begins after the last event sees the end in the state alone.
            if (event is None or event.name == "run_ended") and self._state_there() in TERMINAL:
                yield from self.events(event.id) if event is not None else ()
                return

    def wait(self, timeout: float | None = None, *, check: bool = False, hooks: Hooks | None = None) -> Report:
        """Block until the run has ended and return its report.

        `hooks` are called as by `watch`. A warning is logged for each reason why the run waits for a worker.

        Raises WaitTimeout after `timeout` seconds; the run continues. Raises RunLost if the run does not exist any
        more. With `check`, raises RunFailed for an exit code other than 0.
        """
        idle = IdleLog(self.id)
        watcher = _Watcher(self, hooks) if hooks is not None else None
        store = self.store
        began = time.monotonic()
        until = None if timeout is None else began + timeout
        while True:
            # Read before the state, so that any later event wakes the blocking read below.
            newest = store.newest_event(self.id)
            if self._state_there() in TERMINAL:
                break
            left = 2.0 if until is None else min(2.0, until - time.monotonic())
            if left <= 0:
                raise timed_out(self.report(), timeout or 0.0, self.waits_for())
            if watcher is not None:
                watcher.call_for_new_events()
            if store.read_events(self.id, newest, block_ms=max(1, round(left * 1000)), count=1):
                # A wide run emits an event every millisecond; a read for each would slow the run down.
                time.sleep(min(0.05, (time.monotonic() - began) / 50))
            elif idle.is_due():
                idle.tell(self.waits_for())
        if watcher is not None:
            watcher.call_for_new_events()
        return checked(self.report()) if check else self.report()

    def log(self, step: str) -> Iterator[str]:
        """The last thousand lines of the output of a step. Raises UnknownName if the plan has no such step."""
        return (line for _, line in self.output(step))

    def output(self, step: str, *, follow: bool = False) -> Iterator[tuple[str, str]]:
        """The output of a step as pairs (stream, line). The stream is stdout, stderr, or '' for the operation's own.

        With `follow`, yields lines as they are printed, until the run has ended.
        """
        step_id, after = self._id_of(step), "-"
        while True:
            is_settled = not follow or self.state() in TERMINAL
            for entry, stream, line in self.store.log(self.id, step_id, after):
                after = entry
                yield stream, line
            if is_settled:
                return
            time.sleep(_FOLLOW)

    def cancel(self, reason: str = "", *, keep: bool = False) -> str:
        """Cancel the run: no further step begins, running attempts are asked to stop, and completed steps are undone.

        With `keep`, completed steps are not undone. Returns the id of the command, for `answer`.
        """
        return self._command("cancel", reason, keep=keep)

    def undo(self, reason: str = "") -> str:
        """Undo an ended run, or retry its failed undos. Returns the id of the command, for `answer`."""
        return self._command("undo", reason)

    def resume(self, reason: str = "") -> str:
        """Resume a run. Returns the id of the command, for `answer`.

        * A `suspended` run continues.
        * A `failed`, `partial` or `cancelled` run runs the steps that are not done.
        * An `undo_failed` run repeats the undos that failed or were held back.
        """
        return self._command("resume", reason)

    def resolve(self, step: str, word: Resolution, note: str = "") -> str:
        """Record the outcome of a step that a person knows, and Longshore does not.

        * `done` – the step had its effect
        * `skip` – continue as if the step were not needed
        * `undone` – a person undid the step, or the step never had an effect
        * `abandon` – leave the effect; `left_over` in the report names the step

        Returns the id of the command, for `answer`. Raises UnknownName if the plan has no such step.
        """
        return self._command("resolve", note, step=self._id_of(step), resolved_as=word)

    def prune(self, timeout: float = 30.0) -> str:
        """Delete the record of an ended run. Afterwards, the run cannot be undone.

        Returns `done`, or the reason of a refusal. Raises WaitTimeout if no worker reads the command within `timeout`
        seconds. With a `timeout` of 0, returns '' at once.
        """
        command_id = self._command("prune", "")
        return self.answer(command_id, timeout) if timeout else ""

    def approve(self, step: str, note: str = "") -> str:
        """Approve a step that waits for an approval. Returns the id of the command, for `answer`.

        Raises UnknownName if the plan has no such step.
        """
        return self._command("approve", note, step=self._id_of(step))

    def reject(self, step: str, note: str = "") -> str:
        """Reject a step that waits for an approval: the step fails. Returns and raises as `approve` does."""
        return self._command("reject", note, step=self._id_of(step))

    def _id_of(self, step: str) -> StepId:
        try:
            return self.plan.id_of(step)
        except KeyError:
            raise UnknownName(
                f"run {self.id} has no step {step!r}", remedy=f"name one of its steps: {', '.join(self.plan.index)}"
            ) from None

    def answer(self, command_id: str, timeout: float = 30.0) -> str:
        """Block until a worker has handled a command. Returns `done`, or the reason of a refusal.

        Raises WaitTimeout after `timeout` seconds; a worker can still handle the command later.
        """
        until = time.monotonic() + timeout
        while time.monotonic() < until:
            if (found := self._answered(command_id)) is not None:
                return found
            time.sleep(ANSWER_PAUSE)
        raise not_answered(self.id)

    def _answered(self, command_id: str) -> str | None:
        """The answer to a command: `done`, or the reason of a refusal; None until a worker has handled it."""
        fields = self.store.fields(self.id)
        if not fields and self.store.body(self.id) is None:
            return "done"  # pruned, as commanded
        if stream_order(fields.get("last_command", "0-0")) >= stream_order(command_id):
            return fields.get("answer", "done")
        return None

    def _command(
        self, kind: str, reason: str, *, keep: bool = False, step: StepId | None = None, resolved_as: str = ""
    ) -> str:
        command_id = self.store.command(self.id, kind, reason=reason, keep=keep, step=step, resolved_as=resolved_as)
        try:
            with signing.sending(self.store.settings):
                Canvas(self._producer(), self.id).send_advance(self.plan.plan.name)
        except OperationalError as error:
            raise StoreUnavailable(
                f"the {kind} of run {self.id} is stored, but its message could not be sent: {error}",
                remedy="wait until a worker sweeps, which carries it out; start one if none runs: longshore worker",
            ) from error
        return command_id


def lost(run_id: str) -> RunLost:
    """The error of a run that has neither record nor request."""
    return RunLost(
        f"run {run_id} does not exist: it was pruned, or Redis has lost it",
        remedy="check whether Redis keeps its data: longshore doctor",
    )


class IdleLog:
    """Logs why a run does not continue, each reason once."""

    def __init__(self, run_id: str) -> None:
        self._run_id = run_id
        self._told: set[str] = set()
        self._next = 0.0

    def is_due(self) -> bool:
        """Whether to look at the reasons now; called while the run has no events."""
        if time.monotonic() < self._next:
            return False
        self._next = time.monotonic() + WAITS_PAUSE
        return True

    def tell(self, reasons: Sequence[str]) -> None:
        """Log the reasons that were not logged before."""
        for why in reasons:
            if why not in self._told:
                self._told.add(why)
                log.warning("run %s waits: %s", self._run_id, why)


def waiting_reasons(found: Report) -> list[str]:
    """The reasons why dispatched steps and undos of a run have not begun, each once."""
    parts: list[StepReport | ItemReport] = [*found.steps, *(item for step in found.steps for item in step.items)]
    reasons = [reason for part in parts for reason in (part.reason, part.undo and part.undo.reason) if reason]
    prefix = "waits: "
    return list(dict.fromkeys(reason.removeprefix(prefix) for reason in reasons if reason.startswith(prefix)))


def timed_out(report: Report, timeout: float, waits_for: Sequence[str] = ()) -> WaitTimeout:
    """The error of a run that continues after the time of its watcher."""
    reasons = [*([report.error.message] if report.error else []), *waits_for]
    why = f" ({'; '.join(reasons)})" if reasons else ""
    return WaitTimeout(
        f"run {report.run_id} has not ended in {timeout:g} s{why}",
        remedy=f"the run continues; watch it: longshore runs watch {report.run_id}",
    )


def not_answered(run_id: str) -> WaitTimeout:
    """The error of a command that no worker has handled in time."""
    return WaitTimeout(
        f"no worker has read the command of run {run_id} yet",
        remedy="start a worker, which will carry it out: longshore worker",
    )


def checked(done: Report) -> Report:
    """The report of an ended run. Raises RunFailed for an exit code other than 0."""
    if done.exit_code:
        what = done.error.message if done.error else done.summary
        raise RunFailed(f"run {done.run_id} ended {done.state}: {what}", report=done, exit_code=done.exit_code)
    return done


class _Watcher:
    """Calls hooks for each new event, once each and in order."""

    def __init__(self, run: Run, hooks: Hooks, after: str = "0-0") -> None:
        self._run = run
        self._hooks = hooks
        self._dispatcher = HookDispatcher(run.store, run.id, run.plan)
        self.cursor = after
        # Earlier events only rebuild the state of the dispatcher, which the arguments of hooks need.
        for event in run.events() if after != "0-0" else []:
            if stream_order(event.id) <= stream_order(after):
                self._dispatcher.note(event)

    def call(self, event: Event) -> None:
        self._dispatcher.tell(event, self._hooks)
        self.cursor = event.id

    def call_for_new_events(self) -> None:
        for event in self._run.events(self.cursor):
            self.call(event)


def stored_plan(store: Store, run_id: str) -> tuple[CompiledPlan, str]:
    """The plan of a run and the digest of its request. Raises UnknownName where no request is stored."""
    body = store.body(run_id)
    if body is None:
        raise UnknownName(f"run {run_id!r} does not exist", remedy="list the latest runs: longshore runs ls")
    return _compiled(json.dumps(body["plan"])), str(body.get("digest", ""))


# The runs of one plan share its object: a thousand of them would make each garbage collection a long pause.
@lru_cache(maxsize=16)
def _compiled(plan: str) -> CompiledPlan:
    return CompiledPlan(Plan.model_validate_json(plan), lenient=True)

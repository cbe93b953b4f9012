"""One run as its client sees it: read, watched, waited for and commanded.

A command is written to the record of the run and carried out by a worker; each method that sends one returns at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Literal

from celery import Celery
from kombu.exceptions import OperationalError

from longshore.orchestration.errors import RunFailed, RunLost, StoreUnavailable, UnknownName, WaitTimeout
from longshore.orchestration.messaging import signing
from longshore.orchestration.messaging.canvas import Canvas
from longshore.orchestration.plans.compiled import CompiledPlan, StepId
from longshore.orchestration.plans.model import Plan
from longshore.orchestration.runs import events, pending_reasons, report
from longshore.orchestration.runs.events import Event
from longshore.orchestration.runs.hooks import HookDispatcher, Hooks
from longshore.orchestration.runs.report import Report
from longshore.orchestration.states import TERMINAL, RunState
from longshore.orchestration.store.run_store import Store, stream_order

#: What may be said of a step that nobody else knows more of.
Resolution = Literal["done", "skip", "undone", "abandon"]


#: Between two looks at what a step has printed.
_FOLLOW = 0.3


class Run:
    """One run, as a client sees it. `attached` where it was there before."""

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
        return RunState(self.store.state(self.id) or RunState.PENDING)

    def _state_there(self) -> RunState:
        """The state of a run that is waited for; RunLost where there is none any more."""
        state = self.store.state(self.id)
        if state is None and self.store.body(self.id) is None:
            raise RunLost(
                f"run {self.id} is gone: it was pruned, or Redis has lost it",
                remedy="longshore doctor shows whether Redis keeps its data",
            )
        return RunState(state or RunState.PENDING)

    def unserved(self) -> list[str]:
        """The queues that it needs and that no worker takes new work from now: it waits for one."""
        if self.store.settings.redis_url is None:
            return []  # the embedded default starts its worker by itself
        return pending_reasons.unserved(self.store, self.plan)

    def report(self) -> Report:
        """How it stands; complete when it has ended."""
        store = self.store
        run, steps = store.everything(self.id)
        if self._digest and run.get("digest", self._digest) != self._digest:
            # Redis has lost it, and it was made anew; with another plan.
            self.plan, self._digest = stored_plan(store, self.id)
        if run.get("state") not in TERMINAL:
            steps |= pending_reasons.pending_reasons(store, self.plan, steps)
        return report.build(self.id, self.plan, run, steps, store.now())

    def events(self, after: str = "0-0") -> list[Event]:
        """What happened so far, after a cursor."""
        return events.read(self.store, self.id, self.plan, after)

    def watch(self, after: str = "0-0", *, hooks: Hooks | None = None) -> Iterator[Event]:
        """Events as they come, until the run rests. Reading changes nothing.

        `hooks` are called as their events come, each once and in order, from `after` on.
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
            # An event says that it ended; without one, the state does: a watcher may come late.
            if (event is None or event.name == "run_ended") and self._state_there() in TERMINAL:
                yield from self.events(event.id) if event is not None else ()
                return

    def wait(self, timeout: float | None = None, *, check: bool = False, hooks: Hooks | None = None) -> Report:
        """The report, once the run rests. Raises WaitTimeout after `timeout` seconds; the run goes on.

        RunLost where it is gone. With `check`, raises RunFailed unless everything went as asked. `hooks` as for
        `watch`.
        """
        watcher = _Watcher(self, hooks) if hooks is not None else None
        store = self.store
        began = time.monotonic()
        until = None if timeout is None else began + timeout
        while True:
            # Before the state: what happens after it was looked at must wake the reader.
            newest = store.newest_event(self.id)
            if self._state_there() in TERMINAL:
                break
            left = 2.0 if until is None else min(2.0, until - time.monotonic())
            if left <= 0:
                why = self.report().error
                raise WaitTimeout(
                    f"run {self.id} has not ended in {timeout:g} s{f' ({why.message})' if why else ''}",
                    remedy=f"it goes on: longshore runs watch {self.id}",
                )
            if watcher is not None:
                watcher.call_for_new_events()
            if store.read_events(self.id, newest, block_ms=max(1, round(left * 1000)), count=1):
                # A run of many steps has an event every millisecond: looking at each would slow it down.
                time.sleep(min(0.05, (time.monotonic() - began) / 50))
        if watcher is not None:
            watcher.call_for_new_events()
        done = self.report()
        if check and done.exit_code:
            what = done.error.message if done.error else done.summary
            raise RunFailed(f"run {self.id} ended {done.state}: {what}", report=done, exit_code=done.exit_code)
        return done

    def log(self, step: str) -> Iterator[str]:
        """What a step printed: its last thousand lines. UnknownName for a step that the plan does not have."""
        return (line for _, line in self.output(step))

    def output(self, step: str, *, follow: bool = False) -> Iterator[tuple[str, str]]:
        """The same, each line with its stream: stdout, stderr, or '' for what the operation itself says.

        `follow`: as they come, until the run rests.
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
        """Ask for its end: nothing new begins, what runs is asked to stop, and what was done is undone
        (`keep`: stays). Returns at once, with the command's id for `answer`.
        """
        return self._command("cancel", reason, keep=keep)

    def undo(self, reason: str = "") -> str:
        """Ask that a run that rests be taken back, or that a failed undo be tried again. Returns at once,
        with the command's id for `answer`.
        """
        return self._command("undo", reason)

    def resume(self, reason: str = "") -> str:
        """Ask that it go on: from where it is suspended, from the first step that is not done (`failed`,
        `partial`), or with the undos that failed (`undo_failed`). Returns at once, with the command's id for
        `answer`.
        """
        return self._command("resume", reason)

    def resolve(self, step: str, word: Resolution, note: str = "") -> str:
        """Say what became of a step, as one who knows better: `done` (it happened), `skip` (go on as if it were
        not needed), `undone` (taken back by hand, or it never happened), `abandon` (leave it as it is, and name
        it). Returns at once, with the command's id for `answer`. UnknownName for a step that the plan does not
        have.
        """
        return self._command("resolve", note, step=self._id_of(step), resolved_as=word)

    def prune(self, timeout: float = 30.0) -> str:
        """Have a run that rests forgotten, with all that is kept of it: `done`, or why it was not. Afterwards it
        can no longer be undone. WaitTimeout if no worker took it; with a `timeout` of 0 it is asked for only.
        """
        command_id = self._command("prune", "")
        return self.answer(command_id, timeout) if timeout else ""

    def approve(self, step: str, note: str = "") -> str:
        """Say that a step that waits for an approval may go on. Returns at once, with the command's id for
        `answer`. UnknownName for a step that the plan does not have.
        """
        return self._command("approve", note, step=self._id_of(step))

    def reject(self, step: str, note: str = "") -> str:
        """The opposite: the step fails, and with it what depends on it."""
        return self._command("reject", note, step=self._id_of(step))

    def _id_of(self, step: str) -> StepId:
        try:
            return self.plan.id_of(step)
        except KeyError:
            raise UnknownName(
                f"run {self.id} has no step {step!r}", remedy=f"it has {', '.join(self.plan.index)}"
            ) from None

    def answer(self, command_id: str, timeout: float = 30.0) -> str:
        """What became of a command: `done`, or why nothing was done. WaitTimeout if no worker took it."""
        until = time.monotonic() + timeout
        while time.monotonic() < until:
            fields = self.store.fields(self.id)
            if not fields and self.store.body(self.id) is None:
                return "done"  # it was forgotten, as asked
            if stream_order(fields.get("last_command", "0-0")) >= stream_order(command_id):
                return fields.get("answer", "done")
            time.sleep(0.05)
        raise WaitTimeout("no worker has taken the command yet", remedy="it is kept; start one: longshore worker")

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
                remedy="it is carried out when a worker sweeps",
            ) from error
        return command_id


class _Watcher:
    """Calls hooks for each new event, once each and in order."""

    def __init__(self, run: Run, hooks: Hooks, after: str = "0-0") -> None:
        self._run = run
        self._hooks = hooks
        self._teller = HookDispatcher(run.store, run.id, run.plan)
        self.cursor = after
        # Events before the cursor give the hooks' arguments, and are not passed on again.
        for event in run.events() if after != "0-0" else []:
            if stream_order(event.id) <= stream_order(after):
                self._teller.note(event)

    def call(self, event: Event) -> None:
        self._teller.tell(event, self._hooks)
        self.cursor = event.id

    def call_for_new_events(self) -> None:
        for event in self._run.events(self.cursor):
            self.call(event)


def stored_plan(store: Store, run_id: str) -> tuple[CompiledPlan, str]:
    """The plan of a run, and the digest of its request. Raises UnknownName."""
    body = store.body(run_id)
    if body is None:
        raise UnknownName(f"no run {run_id!r}", remedy="longshore runs ls shows the latest")
    return CompiledPlan(Plan.model_validate(body["plan"]), lenient=True), str(body.get("digest", ""))

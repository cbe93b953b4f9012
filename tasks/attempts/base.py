"""One attempt at one step: what it may know, its claim, its record, and what its ends are called."""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from longshore.orchestration.authoring.context import HostFacts
from longshore.orchestration.errors import (
    LongshoreError,
    StoreUnavailable,
)
from longshore.orchestration.language.secrets import Redaction
from longshore.orchestration.operations import Operation, find
from longshore.orchestration.plans.compiled import CompiledPlan, CompiledStep, StepId, index_of, unit_of
from longshore.orchestration.plans.model import UndoSpec
from longshore.orchestration.runs import report
from longshore.orchestration.runs.step_report import StepReport
from longshore.orchestration.settings import get_settings
from longshore.orchestration.states import RunState
from longshore.orchestration.store.caches import Caches
from longshore.orchestration.store.locks import Holder, Locks
from longshore.orchestration.store.objects import Objects
from longshore.orchestration.store.run_store import Grant, Recorded, Store
from longshore.tasks.crash_points import point
from longshore.tasks.external_wait import ExternalWait, MakeCanvas, WaitContext
from longshore.tasks.host import policy, secret_sources
from longshore.tasks.host.facts import facts, labels
from longshore.tasks.implementation import Context, Implementation, implementation
from longshore.tasks.loaded_runs import Loaded
from longshore.tasks.operations import functions as _functions  # noqa: F401 - registers what carries out functions

T = TypeVar("T")

log = logging.getLogger(__name__)

#: Seconds between two looks at whether the run is being ended.
_STOP_POLL = 0.5
#: Seconds that a claimed step waits for Redis while it is away.
_PATIENCE = 900.0
#: The same before it is claimed; then its message comes again.
_CLAIM_PATIENCE = 30.0


class Refused(Exception):
    """The claim was refused."""


class AnotherInstance(Refused):
    """The run that this attempt is of was forgotten, and there is another one of its id."""


class AttemptFailed(Exception):
    """The step's final failure, recorded; raised so that its Celery task is a failed one."""


class TryAgain(Exception):
    """The attempt failed in a way that can pass. `delay` seconds; parked ones are sent by the sweeper."""

    def __init__(self, delay: float, *, parked: bool, error: str) -> None:
        super().__init__(error)
        self.delay = delay
        self.parked = parked
        self.error = error


class WaitsOutside(Exception):
    """The step waits for something else than a worker: the delivery is done, its outcome comes later."""


def hostname(node: str = "") -> str:
    """The host that a step ran on, as the report names it: as it was set, else as the worker's node name says."""
    return get_settings().host or node.partition("@")[2] or socket.gethostname()


@dataclass
class ClaimedStep:
    """What is known of one delivery of one step, or of one unit of it."""

    store: Store
    loaded: Loaded
    run_id: str
    step_id: StepId
    owner: str
    task_id: str
    #: For what an operation sends that is parked.
    canvas: MakeCanvas
    host: str = ""
    _side: str = ""
    #: The link that follows it in its chain, if any.
    next_link: int | None = None
    #: The secrets that this attempt has seen.
    redaction: Redaction = field(default_factory=Redaction)

    @property
    def plan(self) -> CompiledPlan:
        return self.loaded.plan

    @property
    def index(self) -> int:
        return index_of(self.step_id)

    @property
    def step(self) -> CompiledStep:
        return self.plan.steps[self.index]

    def _doing(self, operation: str) -> Implementation[Any]:
        """How an operation is carried out. NotAllowed where this worker may not."""
        policy.check_operation(operation)
        return implementation(operation)

    def _operation(self) -> Operation:
        """What is carried out: backward, it may be the plan's own."""
        undo = self.step.step.undo
        return find(undo.op) if self._side and isinstance(undo, UndoSpec) else self.step.operation

    def queue_again(self, *, forward: bool) -> str | None:
        """The queue for its next attempt: this host's, if what it does is done to this host; else None, as before."""
        if not self.step.stays("" if forward else "u"):
            return None
        return self.step.queue_at(self.host) if forward else self.step.undo_queue_at(self.host)

    def _step_timeout(self) -> float:
        return self.step.step.timeout or self.store.settings.step_timeout

    def _claim(self, side: str) -> Grant:
        # Under the same owner: where the answer was lost, it is given again.
        grant = self._patiently(
            lambda: self.store.claim(
                self.run_id, self.step_id, side, self.owner, self.task_id,
                always=not side and self.step.always, instance_id=self.loaded.instance_id, host=self.host,
                stays=self.step.stays(side),
            ),
            _CLAIM_PATIENCE,
        )  # fmt: skip
        if grant == "another run":
            raise AnotherInstance(grant)
        if isinstance(grant, str):
            raise Refused(grant)
        return grant

    def _record(
        self,
        side: str,
        grant: Grant,
        status: str,
        body: dict[str, Any],
        bulk: str = "",
        **more: Any,
    ) -> Recorded:
        """Record an outcome; while Redis is away, wait for it: what was done must not be lost."""
        told = self.redaction.data(body)
        error = str(told.get("error", ""))[:500].encode("utf-8", "replace").decode()
        text = as_json(told)
        return self._patiently(
            lambda: self.store.complete(
                self.run_id, self.step_id, side, grant.fence, status, text, bulk=bulk, error=error, **more
            )
        )

    def _patiently(self, ask: Callable[[], T], seconds: float = _PATIENCE) -> T:
        """Ask Redis, and wait for it while it is away: a step that was claimed must not fail for that."""
        until = time.monotonic() + seconds
        while True:
            try:
                return ask()
            except StoreUnavailable:
                if time.monotonic() >= until:
                    raise
                log.warning("run %s step %s waits: Redis is away", self.run_id, self.step.name)
                time.sleep(1.0)

    def _if_stale(self, recorded: Recorded) -> None:
        if not recorded.accepted:
            log.warning("run %s step %s: the outcome of a lost attempt was refused", self.run_id, self.step.name)
            raise Refused("the step is another attempt's now")

    def _place(self, grant: Grant, side: str) -> WaitContext:
        return WaitContext(
            store=self.store,
            canvas=self.canvas,
            loaded=self.loaded,
            run_id=self.run_id,
            step_id=self.step_id,
            side=side,
            attempt=grant.attempt,
            fence=grant.fence,
            timeout=self.step.step.timeout,
            epoch=grant.epoch,
        )

    def _park(self, grant: Grant, side: str, parking: ExternalWait) -> None:
        """Let go of the step; raises IsParked."""
        info = as_json(parking.info | {"what": parking.what})
        if not self.store.park(self.run_id, self.step_id, side, grant.fence, parking.seconds, info, parking.what):
            raise Refused("the step is another attempt's now")
        point("step.parked")
        raise WaitsOutside(parking.what)

    def _context(self, grant: Grant, timeout: float) -> Context:
        # What one step is given, another may come across: in a file, or in what a service answers.
        self.redaction.values |= secret_sources.known(self.loaded.secrets)
        context = Context(
            run_id=self.run_id,
            step=self.step.name,
            plan=self.plan.plan.name,
            attempt=grant.attempt,
            fence=int(grant.fence),
            unit=unit_of(self.step_id),
            item=json.loads(grant.item) if grant.item else None,
            host=HostFacts(self.host, labels(), facts()),
            deadline=time.monotonic() + timeout,
            has_upstream=bool(self.step.needs),
            asked_to_stop=self._asked_to_stop(),
            log=self._log,
            printed=self._printed,
            renew=self._renew,
            results=_Upstream(self),
            files=self.loaded.file,
            objects=lambda: Objects(self.store),
            caches=lambda: Caches(self.store),
            make_engine=_engine,
        )
        context.lock = self._lock(grant, context)
        return context

    def _lock(self, grant: Grant, context: Context) -> Callable[[str, str], contextlib.AbstractContextManager[None]]:
        def hold(name: str, what: str) -> contextlib.AbstractContextManager[None]:
            return Locks(self.store).hold(
                name,
                what,
                run=self.run_id,
                step=context.part,
                host=self.host,
                why=self._operation().name,
                fence=int(grant.fence),
                check=context.check,
                sleep=context.sleep,
                waits=self._waits_for,
            )

        return hold

    def _waits_for(self, other: Holder) -> None:
        text = f"{other.what} is held by run {other.run} step {other.step} on {other.host}"
        log.info("run %s step %s waits: %s", self.run_id, self.step.name, text)
        self._log(f"waits: {text}")

    def _renew(self) -> bool:
        """Extend this attempt's own lease; False where the step is another attempt's."""
        try:
            return self.store.renew(self.run_id, [(f"{self._side}{self.step_id}", self.owner)]) > 0
        except StoreUnavailable:
            return True  # the lease decides

    def _log(self, text: str) -> None:
        """Keep what the step prints; its output is not worth failing for."""
        try:
            self.store.add_log(self.run_id, self.step_id, self.redaction.text(text).splitlines())
        except StoreUnavailable:
            return

    def _printed(self, stream: str, lines: Sequence[str]) -> None:
        with contextlib.suppress(StoreUnavailable):
            told = [self.redaction.text(line) for line in lines]
            self.store.add_log(self.run_id, self.step_id, told, stream)

    def _asked_to_stop(self) -> Callable[[], bool]:
        """Whether the run is ending; asks Redis now and then, and goes on where that does not answer."""
        looked_at = time.monotonic()
        stop = False

        def ask() -> bool:
            nonlocal looked_at, stop
            if not stop and not self.step.always and time.monotonic() - looked_at >= _STOP_POLL:
                looked_at = time.monotonic()
                try:
                    stop = self.store.state(self.run_id) == RunState.ABORTING
                except LongshoreError:
                    return stop  # Redis does not say
            return stop

        return ask


class _Upstream(Mapping[str, StepReport]):
    """The steps before one, read when they are asked for."""

    def __init__(self, attempt: ClaimedStep) -> None:
        self._attempt = attempt
        self._names = {attempt.plan.steps[i].name: i for i in sorted(attempt.plan.upstream(attempt.index))}

    def __getitem__(self, name: str) -> StepReport:
        index = self._names[name]
        return report.read(self._attempt.store, self._attempt.run_id, self._attempt.plan, [index])[index]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _engine() -> Any:
    from longshore.tasks.host.engine.client import raw_client  # noqa: PLC0415
    from longshore.tasks.host.engine.factory import engine_url  # noqa: PLC0415 - docker is an extra

    return raw_client(engine_url())


def as_json(value: Any) -> str:
    """As Redis can have it: half a surrogate pair, which is no text, becomes a question mark."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-8", "replace").decode()

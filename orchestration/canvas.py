"""A level as Celery canvas: a chord of two or more steps, or a chain of single ones.

Messages hold ids: the run and the number of the step. The body of a chord, and whatever else moves
a run on, is one idempotent task, `longshore.advance`. Celery 5.7 runs `chain(group, group, …)`
several times over and sends the rest of the plan with each task, so a level is dispatched when the
one before it has closed, never earlier.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from celery import Celery, Signature, chain, chord, group
from celery.app.amqp import Queues
from kombu import Queue

from longshore.orchestration.compiled import CompiledPlan
from longshore.orchestration.settings import Settings, get_settings

STEP = "longshore.step"
UNDO = "longshore.undo"
ADVANCE = "longshore.advance"
PROBE = "longshore.probe"

CONTROL = "control"
#: Links of one chain: each message carries those that follow it, so their number is bounded.
CHAIN_LINKS = 8
#: Seconds after a step's own time limit: then its process is interrupted, and then it is killed.
SOFT_GRACE, HARD_GRACE = 5.0, 30.0


class _WorkersQueues(Queues):
    """Queues of the exchange that the workers have bound: naming one leaves no key of its own in Redis."""

    def new_missing(self, name: str) -> Queue:
        return Queue(name, routing_key=name)


def producer(settings: Settings) -> Celery:
    """An app that only sends: it knows no task, and is nobody's current app."""
    app = Celery("longshore-client", broker=settings.broker_url(), set_as_current=False)
    app.amqp.queues_cls = _WorkersQueues
    app.conf.update(
        task_default_queue=CONTROL,
        task_ignore_result=True,
        broker_connection_timeout=settings.connect_timeout,
        broker_transport_options={
            "socket_connect_timeout": settings.connect_timeout,
            "socket_timeout": 30,
            "global_keyprefix": settings.broker_prefix(),
        },
        task_publish_retry_policy={
            "max_retries": 2,
            "interval_start": 0,
            "interval_step": 0.2,
            "interval_max": 0.5,
        },
    )
    return app


class Canvas:
    """Builds and sends the messages of one run."""

    def __init__(self, app: Celery, run_id: str) -> None:
        self.app = app
        self.run_id = run_id

    def _options(self, queue: str, shadow: str, shown: str) -> dict[str, Any]:
        """One root for the whole run, the step's own name, and no parameter in sight."""
        return {
            "queue": queue,
            "root_id": self.run_id,
            "parent_id": self.run_id,
            "shadow": shadow,
            "argsrepr": shown,
            "kwargsrepr": "{}",
            "ignore_result": True,
        }

    def advance(self, plan_name: str, **options: Any) -> Signature[Any]:
        """The task that moves the run on."""
        shown = self._options(CONTROL, f"{plan_name} (advance)", f"({self.run_id!r},)") | options
        return self.app.signature(ADVANCE, args=(self.run_id,), immutable=True, options=shown)

    def _work(self, task: str, plan: CompiledPlan, index: int) -> Signature[Any]:
        step = plan.steps[index]
        name = f"{plan.plan.name}.{step.name}"
        if task == UNDO:
            queue, shadow = step.undo_queue, f"{name} (undo)"
        else:
            queue, shadow = step.queue, name
        options = self._options(queue, shadow, f"({self.run_id!r}, {step.name!r})")
        # An attempt watches its own time; these end one that is stuck where it cannot.
        limit = step.step.timeout or get_settings().step_timeout
        options |= {"soft_time_limit": limit + SOFT_GRACE, "time_limit": limit + HARD_GRACE}
        return self.app.signature(task, args=(self.run_id, index), immutable=True, options=options)

    def send_start(self, plan_name: str) -> None:
        """The first message; its task id is the run's, so that Flower shows it as the root of the tree."""
        sig = self.advance(plan_name, shadow=plan_name, task_id=self.run_id)
        del sig.options["parent_id"]
        sig.apply_async()

    def send_advance(self, plan_name: str) -> None:
        self.advance(plan_name).apply_async()

    def send_level(self, plan: CompiledPlan, indices: Sequence[int], *, may_chain: bool) -> None:
        """A level's steps: one chord, or one chain with the single steps that follow."""
        if len(indices) > 1:
            self._send_chord(STEP, plan, indices)
            return
        links = plan.chain_from(indices[0], CHAIN_LINKS) if may_chain else tuple(indices)
        signatures = [self._work(STEP, plan, index) for index in links]
        if len(signatures) == 1:
            signatures[0].apply_async()
        else:
            chain(*signatures, app=self.app).apply_async(root_id=self.run_id, parent_id=self.run_id)

    def send_undo(self, plan: CompiledPlan, indices: Sequence[int]) -> None:
        """An undo level's steps."""
        if len(indices) > 1:
            self._send_chord(UNDO, plan, indices)
        else:
            self.send_single(UNDO, plan, indices[0])

    def send_single(self, task: str, plan: CompiledPlan, index: int) -> None:
        """One step by itself, outside of chord and chain: how the sweeper sends."""
        self._work(task, plan, index).apply_async()

    def _send_chord(self, task: str, plan: CompiledPlan, indices: Sequence[int]) -> None:
        header = group([self._work(task, plan, index) for index in indices], app=self.app)
        body = self.advance(plan.plan.name)
        chord(header, body, app=self.app).apply_async(root_id=self.run_id, parent_id=self.run_id)

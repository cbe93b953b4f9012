"""A level as Celery canvas: a chord of two or more steps, or a chain of single ones.

Messages hold ids: the run and the number of the step. The body of a chord, and whatever else moves
a run on, is one idempotent task, `longshore.advance`. Celery 5.7 runs `chain(group, group, …)`
several times over and sends the rest of the plan with each task, so a level is dispatched when the
one before it has closed, never earlier.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from celery import Celery, Signature, chain, chord, group
from celery.app.amqp import Queues
from kombu import Queue

from longshore.orchestration.messaging.signing import plan_header, seal
from longshore.orchestration.plans.compiled import CONTROL, CompiledPlan, StepId, index_of
from longshore.orchestration.settings import Settings, get_settings

STEP = "longshore.step"
UNDO = "longshore.undo"
ADVANCE = "longshore.advance"
DRY_RUN = "longshore.dry_run"
TICK = "longshore.tick"
ORCHESTRATE = "longshore.orchestrate"
TASK_ENDED = "longshore.task_ended"

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
            # As the workers have it: a queue is one list.
            "priority_steps": [0],
            **settings.broker_options(),
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

    def __init__(
        self, app: Celery, run_id: str, hosts: Mapping[StepId, str] | None = None, *, digest: str = ""
    ) -> None:
        self.app = app
        #: Of the plan, where messages are signed.
        self.digest = digest
        self.run_id = run_id
        #: The hosts of those steps and units that are not for whichever worker takes them.
        self.hosts = hosts or {}

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
        shown["headers"] = plan_header(self.digest)
        return self.app.signature(ADVANCE, args=(self.run_id,), immutable=True, options=shown)

    def _work(self, task: str, plan: CompiledPlan, step_id: StepId) -> Signature[Any]:
        step = plan.steps[index_of(step_id)]
        shown = plan.name_of(step_id)
        name, host = f"{plan.plan.name}.{shown}", self.hosts.get(step_id, "")
        if task == UNDO:
            queue, shadow = step.undo_queue_at(host), f"{name} (undo)"
        else:
            queue, shadow = step.queue_at(host), name
        options = self._options(queue, shadow, f"({self.run_id!r}, {shown!r})")
        # An attempt watches its own time; these end one that is stuck where it cannot.
        limit = step.step.timeout or get_settings().step_timeout
        options |= {"soft_time_limit": limit + SOFT_GRACE, "time_limit": limit + HARD_GRACE}
        options["headers"] = plan_header(plan.digest)
        return self.app.signature(task, args=(self.run_id, step_id), immutable=True, options=options)

    def send_start(self, plan_name: str) -> None:
        """The first message; its task id is the run's, so that Flower shows it as the root of the tree."""
        sig = self.advance(plan_name, shadow=plan_name, task_id=self.run_id)
        del sig.options["parent_id"]
        sig.apply_async()

    def send_advance(self, plan_name: str) -> None:
        self.advance(plan_name).apply_async()

    def send_level(self, plan: CompiledPlan, ids: Sequence[StepId], *, may_chain: bool) -> None:
        """A level's steps: one chord, or one chain with the single steps that follow."""
        if len(ids) > 1:
            self._send_chord(STEP, plan, ids)
            return
        first = ids[0]
        links: Sequence[StepId] = ids
        if may_chain and isinstance(first, int):
            links = plan.chain_from(first, CHAIN_LINKS)
        signatures = [self._work(STEP, plan, link) for link in links]
        if len(signatures) == 1:
            signatures[0].apply_async()
        else:
            chain(*signatures, app=self.app).apply_async(root_id=self.run_id, parent_id=self.run_id)

    def send_undo(self, plan: CompiledPlan, ids: Sequence[StepId]) -> None:
        """An undo level's steps."""
        if len(ids) > 1:
            self._send_chord(UNDO, plan, ids)
        else:
            self.send_single(UNDO, plan, ids[0])

    def send_single(self, task: str, plan: CompiledPlan, step_id: StepId) -> None:
        """One step by itself, outside of chord and chain: how the sweeper sends."""
        self._work(task, plan, step_id).apply_async()

    def send_task(
        self,
        task: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        queue: str,
        task_id: str,
        told: tuple[Any, ...],
    ) -> None:
        """An application's own task, bare; Celery tells us by `link` or `link_error` when it has ended."""
        self.app.send_task(
            task,
            args=list(args),
            kwargs=dict(kwargs),
            queue=queue,
            task_id=task_id,
            root_id=self.run_id,
            parent_id=self.run_id,
            link=self._ended(told, ok=True),
            link_error=self._ended(told, ok=False),
        )

    def _ended(self, told: tuple[Any, ...], *, ok: bool) -> Signature[Any]:
        """Celery puts the result, or the id of the task that failed, before these arguments."""
        options = self._options(CONTROL, f"{TASK_ENDED} ({'ok' if ok else 'failed'})", str(told[:2]))
        # An application's worker sends it, and has no key.
        sealed = seal("ended", {"told": list(told), "ok": ok})
        return self.app.signature(TASK_ENDED, args=(*told, ok), kwargs=sealed, options=options | {"serializer": "json"})

    def _send_chord(self, task: str, plan: CompiledPlan, ids: Sequence[StepId]) -> None:
        header = group([self._work(task, plan, step_id) for step_id in ids], app=self.app)
        body = self.advance(plan.plan.name)
        chord(header, body, app=self.app).apply_async(root_id=self.run_id, parent_id=self.run_id)

"""The Celery canvas of a level: a chord of two or more steps, or a chain of single steps.

Messages carry ids only: the run, and the number of the step. The body of a chord is the idempotent task
`longshore.advance`, which also moves a run on in all other cases. Each level is dispatched after the level before it
has closed: Celery 5.7 runs `chain(group, group, …)` several times over and sends the rest of the plan with each task.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from celery import Celery, Signature, chain
from celery.app.amqp import Queues
from celery.signals import before_task_publish
from celery.utils import uuid
from kombu import Queue
from kombu.transport import TRANSPORT_ALIASES

from longshore.orchestration.messaging.signing import OURS, plan_header, seal
from longshore.orchestration.messaging.step_header import StepHeader
from longshore.orchestration.messaging.transport import not_sent
from longshore.orchestration.operations.celery_task import TaskParams
from longshore.orchestration.plans.compiled import CONTROL, CompiledPlan, StepId, index_of
from longshore.orchestration.settings import SENTINEL, Settings, get_settings

STEP = "longshore.step"
UNDO = "longshore.undo"
ADVANCE = "longshore.advance"
DRY_RUN = "longshore.dry_run"
TICK = "longshore.tick"
ORCHESTRATE = "longshore.orchestrate"
TASK_ENDED = "longshore.task_ended"

#: The tasks whose lost messages the sweeper sends again, because the record names the work that is left.
RESENT = frozenset({STEP, UNDO, ADVANCE})

#: The links of one chain, bounded because each message carries all later links.
CHAIN_LINKS = 8
#: The module of the transports of clients, and the alias of that of one server.
_TRANSPORTS = "longshore.orchestration.messaging.transport"
_ALIAS = "longshore-client"
#: Messages of a header in one pipeline: the workers begin with the first ones while the others are built.
_AT_ONCE = 10
#: Seconds of the shortest life of a message.
_SHORTEST = 0.001
#: Seconds after the timeout of a step until its process is interrupted, and until it is killed.
SOFT_GRACE, HARD_GRACE = 5.0, 30.0


class _WorkersQueues(Queues):
    """Queues that the workers have bound: a producer that names one creates no binding key in Redis."""

    def new_missing(self, name: str) -> Queue:
        return Queue(name, routing_key=name)


def producer(settings: Settings) -> Celery:
    """A Celery app that only sends messages; it registers no task and does not become the current app."""
    # kombu takes the transport of a socket from the URL, by an alias.
    TRANSPORT_ALIASES[_ALIAS] = f"{_TRANSPORTS}:Transport"
    url = settings.broker_url().replace("redis+socket://", f"{_ALIAS}+socket://", 1)
    app = Celery("longshore-client", broker=url, set_as_current=False)
    app.amqp.queues_cls = _WorkersQueues
    app.conf.update(
        task_default_queue=CONTROL,
        task_ignore_result=True,
        broker_transport=f"{_TRANSPORTS}:{'SentinelTransport' if settings.url().startswith(SENTINEL) else 'Transport'}",
        broker_connection_timeout=settings.connect_timeout,
        broker_transport_options={
            "socket_connect_timeout": settings.connect_timeout,
            "socket_timeout": settings.connect_timeout,
            # The same as on the workers: one list for each queue.
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


@before_task_publish.connect
def _send_once(sender: Any = None, properties: Any = None, **_: Any) -> None:
    """Omit what Celery sends both as a header and as a property of the message: it reads the headers only."""
    if str(sender).startswith(OURS) and properties:
        for name in ("argsrepr", "kwargsrepr"):
            properties.pop(name, None)


class Canvas:
    """Builds and sends the messages of one run."""

    def __init__(
        self, app: Celery, run_id: str, hosts: Mapping[StepId, str] | None = None, *, digest: str = ""
    ) -> None:
        self.app = app
        #: The digest of the request, where messages are signed.
        self.digest = digest
        self.run_id = run_id
        #: The hosts of those steps and units that target one.
        self.hosts = hosts or {}

    def _options(self, queue: str, shadow: str, shown: str) -> dict[str, Any]:
        """Message options: the run as the root, the name of the step for display, and no visible parameters."""
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
        """The signature of `longshore.advance`, which moves the run on."""
        shown = self._options(CONTROL, f"{plan_name} (advance)", f"({self.run_id!r},)") | options
        shown["headers"] = plan_header(self.digest)
        return self.app.signature(ADVANCE, args=(self.run_id,), immutable=True, options=shown)

    def _body_options(self, plan: CompiledPlan) -> dict[str, Any]:
        shadow = f"{plan.plan.name} (advance)"
        header = {"headers": found} if (found := plan_header(self.digest)) else {}
        return {"queue": CONTROL, "shadow": shadow, "ignore_result": True, **header}

    def _work(self, task: str, plan: CompiledPlan, step_id: StepId) -> Signature[Any]:
        options = self._step_options(task, plan, step_id)
        return self.app.signature(task, args=(self.run_id, step_id), immutable=True, options=options)

    def _step_options(self, task: str, plan: CompiledPlan, step_id: StepId) -> dict[str, Any]:
        step = plan.steps[index_of(step_id)]
        shown = plan.name_of(step_id)
        name, host = f"{plan.plan.name}.{shown}", self.hosts.get(step_id, "")
        if task == UNDO:
            queue, shadow = step.undo_queue_at(host), f"{name} (undo)"
        else:
            queue, shadow = step.queue_at(host), name
        options = self._options(queue, shadow, f"({self.run_id!r}, {shown!r})")
        # An attempt checks its own deadline; these limits end one that is stuck.
        limit = step.step.timeout or get_settings().step_timeout
        options |= {"soft_time_limit": limit + SOFT_GRACE, "time_limit": limit + HARD_GRACE}
        options["headers"] = plan_header(plan.digest)
        return options

    def send_start(self, plan_name: str) -> None:
        """Send the first message of the run; its task id is the run id, which makes it the root in Flower."""
        sig = self.advance(plan_name, shadow=plan_name, task_id=self.run_id)
        del sig.options["parent_id"]
        sig.apply_async(declare=[])  # the workers have declared the queue

    def start_message(self, plan_name: str) -> tuple[str, str]:
        """The message of `send_start`, for a script to send: the list of its queue, without prefix, and the text."""
        with not_sent() as messages:
            self.send_start(plan_name)
        return messages[0]

    def send_advance(self, plan_name: str) -> None:
        """Send a message that moves the run on."""
        self.advance(plan_name).apply_async()

    def send_level(self, plan: CompiledPlan, ids: Sequence[StepId], *, may_chain: bool) -> None:
        """Send the steps of a level: a chord of several, or a chain of one and the single steps that follow."""
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
        """Send the undos of a level: a chord of several, or a single message."""
        if len(ids) > 1:
            self._send_chord(UNDO, plan, ids)
        else:
            self.send_single(UNDO, plan, ids[0])

    def send_single(self, task: str, plan: CompiledPlan, step_id: StepId, *, countdown: float | None = None) -> None:
        """Send one step outside of any chord or chain, as the sweeper does; after `countdown` seconds where given."""
        signature = self._work(task, plan, step_id)
        if countdown is not None:
            signature.set(countdown=countdown)
        signature.apply_async()

    def send_task(self, params: TaskParams, task_id: str, header: StepHeader) -> None:
        """Send a task of an application; Celery reports its end by `link` or `link_error`.

        The message expires at the time limit of its attempt at the latest, so that no worker begins it later.
        """
        reply, options = (header.run_id, header.step_id, header.side, header.fence), params.options
        lifetime = options.lifetime()
        limits = {"time_limit": options.time_limit, "soft_time_limit": options.soft_time_limit}
        more: dict[str, Any] = {key: value for key, value in limits.items() if value}
        if options.priority:
            connection = self.app.connection_for_write()
            # Longshore's own queues have one list each; those of an application have one for each priority.
            connection.transport_options = (connection.transport_options or {}) | {"priority_steps": list(range(10))}
            more |= {"priority": options.priority, "connection": connection}
        self.app.send_task(
            params.task,
            args=params.args,
            kwargs=params.kwargs,
            queue=params.queue,
            task_id=task_id,
            root_id=self.run_id,
            parent_id=self.run_id,
            expires=min(header.seconds, header.seconds if lifetime is None else max(lifetime, _SHORTEST)),
            headers=options.headers | header.as_headers(),
            link=self._ended(reply, ok=True),
            link_error=self._ended(reply, ok=False),
            **more,
        )
        if options.priority:
            more["connection"].close()

    def revoke_task(self, task_id: str) -> None:
        """Tell the application's workers to drop the message of a task. Workers that start later do not learn of it."""
        self.app.control.revoke(task_id)

    def _ended(self, reply: tuple[Any, ...], *, ok: bool) -> Signature[Any]:
        """The `longshore.task_ended` message; Celery puts the result, or the id of the failed task, before `reply`."""
        options = self._options(CONTROL, f"{TASK_ENDED} ({'ok' if ok else 'failed'})", str(reply[:2]))
        # The worker of the application sends this message and has no key, so the seal is made here.
        sealed = seal("ended", {"told": list(reply), "ok": ok})
        return self.app.signature(
            TASK_ENDED, args=(*reply, ok), kwargs=sealed, options=options | {"serializer": "json"}
        )

    def _send_chord(self, task: str, plan: CompiledPlan, ids: Sequence[StepId]) -> None:
        """Send the header of a chord in pipelines.

        Celery's `chord` sends each message of a header in a round trip of its own, which takes longer than the work of
        a short step. The messages are the same.
        """
        group_id = uuid()
        # Each message carries the body, so the body has only the options that its sender does not add.
        body: Any = self.app.signature(ADVANCE, args=(self.run_id,), immutable=True, options=self._body_options(plan))
        declared: set[str] = set()
        with self.app.producer_or_acquire() as producer, producer.batch(_AT_ONCE):
            for index, step_id in enumerate(ids):
                options = self._step_options(task, plan, step_id)
                queue = options["queue"]
                self.app.send_task(
                    task, args=(self.run_id, step_id), producer=producer, task_id=uuid(), group_id=group_id,
                    group_index=index, chord=body, declare=[] if queue in declared else None, **options,
                )  # fmt: skip
                declared.add(queue)

"""A worker's registration of itself and its host, its heartbeat, and its part in a drain."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterable
from functools import partial
from importlib.metadata import version
from typing import Any

from celery.platforms import EX_OK
from celery.signals import celeryd_after_setup, worker_shutdown, worker_shutting_down
from celery.worker import state as worker_state
from celery.worker.control import inspect_command
from kombu import Queue

from longshore.orchestration.errors import StoreUnavailable
from longshore.orchestration.messaging.canvas import STEP, UNDO
from longshore.orchestration.operations import all_operations
from longshore.orchestration.plans.compiled import is_forward
from longshore.orchestration.store.hosts import Drained, Hosts, Node, NodeState
from longshore.orchestration.store.run_store import Store
from longshore.tasks.attempts.delivery import hostname
from longshore.tasks.host.facts import facts, labels, report_engine
from longshore.tasks.host.health import health, report_folders
from longshore.workers.queues import at_this_host

log = logging.getLogger(__name__)

#: Seconds between two full registrations of a worker.
_REFRESH = 60.0
#: Queues of families that act on a Docker engine.
_WITH_ENGINE = ("docker", "compose")


class HostRegistration:
    """The registration of this worker, in its main process."""

    def __init__(self, worker: Any, store: Store) -> None:
        self.worker = worker
        self.hosts = Hosts(store)
        self.store = store
        self.node = str(worker.hostname)
        self.host = hostname(self.node)
        #: The queues consumed while the host is not drained.
        self.queues = tuple(worker.app.amqp.queues.consume_from)
        self.state = NodeState.READY
        self.leaving = False
        #: Set once deregistered: no heartbeat follows.
        self._deregistered = False
        self._registry_lock = threading.Lock()
        self._since = 0
        self._refresh_at = 0.0

    # --- registration and heartbeat ---------------------------------------------------------------

    def describe(self) -> Node:
        own = {name: operation for name, operation in all_operations().items() if operation.function is not None}
        return Node(
            self.node,
            queues=tuple(sorted(self.queues)),
            own=tuple(own),
            accepts={name: operation.accepts for name, operation in own.items()},
            version=version("longshore"),
            labels=labels(),
            facts=facts(),
            since=self._since,
            state=self._state(),
            active=active(),
            health=health(self.store),
        )

    def register(self) -> None:
        """Register the worker, and apply a drain that the host already has."""
        if not self._since:
            self._since = self.store.now()
        if self._refresh_at and has_engine(self.queues):
            # An unresponsive engine must not delay the leases; the next registration carries its answer.
            threading.Thread(target=_report_host, name="longshore-engine", daemon=True).start()
        with self._registry_lock:
            if self._deregistered:
                return
            node = self.describe()
            self.hosts.register(self.host, node)
            if node.health["keys"]:
                # A client whose key fits no worker is refused at once.
                self.store.call(
                    self.store.client.set,
                    self.store.keys.signing_keys,
                    ",".join(node.health["keys"]),
                    ex=round(3 * _REFRESH),
                )
        self._refresh_at = time.monotonic() + _REFRESH
        self.poll()

    def beat(self) -> None:
        """Send a heartbeat, or register again where that is due."""
        if time.monotonic() >= self._refresh_at or not self.hosts.knows(self.host, self.node):
            self.register()
        else:
            self._beat()

    def poll(self) -> None:
        """Apply the host's drain request; a drained worker also reports its progress."""
        if self.state is NodeState.READY:
            self._apply_drain(self.hosts.request_drain(self.host))
        else:
            self._beat()

    def _beat(self) -> None:
        with self._registry_lock:
            if self._deregistered:
                return
            request_drain = self.hosts.beat(self.host, self.node, self._state(), active())
        self._apply_drain(request_drain)

    def leave(self) -> None:
        with self._registry_lock:
            self._deregistered = True
            self.hosts.leave(self.host, self.node)

    def _state(self) -> NodeState:
        return NodeState.STOPPING if self.leaving else self.state

    # --- drain --------------------------------------------------------------------------------------

    def _apply_drain(self, request_drain: Drained | None) -> None:
        forward = [queue for queue in self.queues if is_forward(queue)]
        if request_drain is not None and self.state is NodeState.READY:
            log.warning("host %s is drained by %s: this worker takes no new work", self.host, request_drain.by)
            self._change(partial(self._cancel, forward))
        elif request_drain is None and self.state is NodeState.DRAINED:
            log.warning("host %s is no longer drained: this worker takes new work", self.host)
            self._change(partial(self._consume, forward))
        elif (
            request_drain is not None
            and request_drain.stop
            and request_drain.since > self._since
            and not active()
            and not self.leaving
        ):
            log.warning("host %s is drained by %s: this worker stops", self.host, request_drain.by)
            self.leaving = True
            worker_state.should_stop = EX_OK  # type: ignore[assignment] # a warm stop, as by SIGTERM

    def _change(self, change: Callable[[], None]) -> None:
        """Run `change` in the consumer's thread; at once before the consumer runs."""
        if self._reading is not None:
            self.worker.consumer.call_soon(change)
        else:
            change()

    @property
    def _reading(self) -> Any:
        """The task consumer; None before it starts and during a reconnection."""
        return getattr(getattr(self.worker, "consumer", None), "task_consumer", None)

    def _cancel(self, queues: Iterable[str]) -> None:
        tasks = self._reading
        for queue in queues:
            self.worker.app.amqp.queues.deselect(queue)
            if tasks is not None:
                tasks.cancel_by_queue(queue)
        self.state = NodeState.DRAINED

    def _consume(self, queues: Iterable[str]) -> None:
        tasks = self._reading
        for queue in queues:
            chosen = self.worker.app.amqp.queues.select_add(Queue(queue, routing_key=queue))
            if tasks is not None and not tasks.consuming_from(queue):
                tasks.add_queue(chosen)
        if tasks is not None:
            tasks.consume()
        self.state = NodeState.READY


def has_engine(queues: Iterable[str]) -> bool:
    return any(queue.partition("@")[0] in _WITH_ENGINE for queue in queues)


def _report_host() -> None:
    report_engine()
    report_folders()


def active() -> int:
    """The number of steps that this worker's processes run or have received."""
    return sum(request.type in {STEP, UNDO} for request in tuple(worker_state.reserved_requests))


#: This process's registration, once its worker has started.
_registered: list[HostRegistration] = []


def registration_of(worker: Any, store: Store) -> HostRegistration:
    """Create the worker's registration, which Celery's signals mark as leaving and remove."""
    _registered[:] = [HostRegistration(worker, store)]
    return _registered[0]


@celeryd_after_setup.connect
def _consume_this_hosts_queues(sender: str, instance: Any, **_: Any) -> None:
    """Consume the host's own queue beside each of the worker's queues, and query the host's engine."""
    queues = instance.app.amqp.queues
    for name in at_this_host(list(queues.consume_from), hostname(sender)):
        queues.select_add(Queue(name, routing_key=name))
    if has_engine(queues.consume_from):
        report_engine()  # before the pool forks: its processes inherit the answer


@worker_shutting_down.connect
def _mark_leaving(**_: Any) -> None:
    for registration in _registered:
        registration.leaving = True


@worker_shutdown.connect
def _deregister(**_: Any) -> None:
    for registration in _registered:
        try:
            registration.leave()
        except StoreUnavailable as error:
            log.warning("this worker cannot deregister: %s", error)


@inspect_command(name="host")
def inspect_host(_state: Any) -> dict[str, Any]:
    """`celery inspect host`: the host as the registry holds it."""
    if not _registered:
        return {"error": "the worker is starting"}
    registration = _registered[0]
    found = registration.hosts.find(registration.host)
    data: dict[str, Any] = json.loads(json.dumps(found.as_data())) if found else {}
    return {"host": registration.host, "node": registration.node} | data

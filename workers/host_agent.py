"""What a worker tells of itself and of its host, and what it does where the host is drained."""

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

#: Seconds between two times that a worker describes itself anew.
_REFRESH = 60.0
#: Queues of families that act on a Docker engine.
_WITH_ENGINE = ("docker", "compose")


class HostRegistration:
    """This worker's, in its main process."""

    def __init__(self, worker: Any, store: Store) -> None:
        self.worker = worker
        self.hosts = Hosts(store)
        self.store = store
        self.node = str(worker.hostname)
        self.host = hostname(self.node)
        #: What it consumes while nobody has drained its host.
        self.queues = tuple(worker.app.amqp.queues.consume_from)
        self.state = NodeState.READY
        self.leaving = False
        #: It has said good-bye, and says nothing more.
        self._gone = False
        self._saying = threading.Lock()
        self._since = 0
        self._refresh_at = 0.0

    # --- what it says -----------------------------------------------------------------------------

    def describe(self) -> Node:
        return Node(
            self.node,
            queues=tuple(sorted(self.queues)),
            own=tuple(name for name, operation in all_operations().items() if operation.function is not None),
            version=version("longshore"),
            labels=labels(),
            facts=facts(),
            since=self._since,
            state=self._state(),
            active=active(),
            health=health(self.store),
        )

    def register(self) -> None:
        """Say what it is, and do what was asked of the host before."""
        if not self._since:
            self._since = self.store.now()
        if self._refresh_at and has_engine(self.queues):
            # An engine that does not answer must not hold up the leases; what it says is told the next time.
            threading.Thread(target=_learn, name="longshore-engine", daemon=True).start()
        with self._saying:
            if self._gone:
                return
            node = self.describe()
            self.hosts.register(self.host, node)
            if node.health["keys"]:
                # A client without a key that fits is told so before it waits in vain.
                self.store.call(
                    self.store.client.set,
                    self.store.keys.signing_keys,
                    ",".join(node.health["keys"]),
                    ex=round(3 * _REFRESH),
                )
        self._refresh_at = time.monotonic() + _REFRESH
        self.look()

    def beat(self) -> None:
        """Say that it lives."""
        if time.monotonic() >= self._refresh_at or not self.hosts.knows(self.host, self.node):
            self.register()
        else:
            self._beat()

    def look(self) -> None:
        """Do what is asked of the host. One that is drained also says, each time, how far it has come."""
        if self.state is NodeState.READY:
            self._apply_drain(self.hosts.request_drain(self.host))
        else:
            self._beat()

    def _beat(self) -> None:
        with self._saying:
            if self._gone:
                return
            request_drain = self.hosts.beat(self.host, self.node, self._state(), active())
        self._apply_drain(request_drain)

    def leave(self) -> None:
        with self._saying:
            self._gone = True
            self.hosts.leave(self.host, self.node)

    def _state(self) -> NodeState:
        return NodeState.STOPPING if self.leaving else self.state

    # --- what it is asked ---------------------------------------------------------------------------

    def _apply_drain(self, request_drain: Drained | None) -> None:
        forward = [queue for queue in self.queues if is_forward(queue)]
        if request_drain is not None and self.state is NodeState.READY:
            log.warning("host %s is drained by %s: this worker takes no new work", self.host, request_drain.by)
            self._change(partial(self._cancel, forward))
        elif request_drain is None and self.state is NodeState.DRAINED:
            log.warning("host %s is not drained any more: this worker takes new work", self.host)
            self._change(partial(self._consume, forward))
        elif (
            request_drain is not None
            and request_drain.stop
            and request_drain.since > self._since
            and not active()
            and not self.leaving
        ):
            log.warning("host %s is drained by %s, who has asked this worker to end", self.host, request_drain.by)
            self.leaving = True
            worker_state.should_stop = EX_OK  # type: ignore[assignment] # a warm stop, as by SIGTERM

    def _change(self, change: Callable[[], None]) -> None:
        """In the thread that reads from the queues; at once where it has not begun to."""
        if self._reading is not None:
            self.worker.consumer.call_soon(change)
        else:
            change()

    @property
    def _reading(self) -> Any:
        """What reads from the queues; None before it begins to, and while it is connected anew."""
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


def _learn() -> None:
    report_engine()
    report_folders()


def active() -> int:
    """Steps that this worker's processes are at, or have taken."""
    return sum(request.type in {STEP, UNDO} for request in tuple(worker_state.reserved_requests))


#: Of this process, once its worker has started.
_here: list[HostRegistration] = []


def of_worker(worker: Any, store: Store) -> HostRegistration:
    """The worker's presence, told of its end by Celery's own signals."""
    _here[:] = [HostRegistration(worker, store)]
    return _here[0]


@celeryd_after_setup.connect
def _consume_this_hosts_queues(sender: str, instance: Any, **_: Any) -> None:
    """Beside each queue that the worker was given, the one that is its host's alone. And ask the host's engine."""
    queues = instance.app.amqp.queues
    for name in at_this_host(list(queues.consume_from), hostname(sender)):
        queues.select_add(Queue(name, routing_key=name))
    if has_engine(queues.consume_from):
        report_engine()  # before the pool is there: its processes know what this one does


@worker_shutting_down.connect
def _is_leaving(**_: Any) -> None:
    for presence in _here:
        presence.leaving = True


@worker_shutdown.connect
def _deregister(**_: Any) -> None:
    for presence in _here:
        try:
            presence.leave()
        except StoreUnavailable as error:
            log.warning("it could not be said that this worker ends: %s", error)


@inspect_command(name="host")
def inspect_host(_state: Any) -> dict[str, Any]:
    """The host, as the registry has it: celery inspect host."""
    if not _here:
        return {"error": "the worker is starting"}
    presence = _here[0]
    found = presence.hosts.find(presence.host)
    told: dict[str, Any] = json.loads(json.dumps(found.as_data())) if found else {}
    return {"host": presence.host, "node": presence.node} | told

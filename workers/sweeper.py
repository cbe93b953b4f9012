"""The sweeper and the renewal of leases, in the main process of every worker.

The sweeper recovers lost messages, killed workers, due retries, and requests whose first message was lost.
Concurrent sweepers are safe.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from celery import bootsteps
from celery.exceptions import WorkerTerminate
from celery.worker import state as worker_state

from longshore.orchestration.errors import ConfigError, StoreUnavailable, WrongType
from longshore.orchestration.installation import integrity
from longshore.orchestration.installation.doctor import eviction
from longshore.orchestration.language.targets import is_host_name
from longshore.orchestration.messaging import signing
from longshore.orchestration.messaging.canvas import STEP, UNDO
from longshore.orchestration.settings import Settings
from longshore.orchestration.store.run_store import Store
from longshore.tasks.attempts.receipts import Ledger
from longshore.tasks.control.chain_links import links_of
from longshore.tasks.control.coordinator import Coordinator
from longshore.tasks.control.receipt_comparison import HostAgent
from longshore.tasks.control.sweep import LONGEST_PAUSE, Sweep
from longshore.tasks.loaded_runs import Plans
from longshore.workers.host_agent import HostRegistration, registration_of
from longshore.workers.job_agent import JobWatch

log = logging.getLogger(__name__)

#: Retention of receipts, in retentions of runs: gc reads receipts to know what it may remove.
_RECEIPTS = 4
#: Seconds between two cleanings of this host's receipts.
_CLEAN_EVERY = 3600.0
#: Seconds between two checks of the types of this installation's keys.
_CHECK_EVERY = 60.0


class Sweeper(bootsteps.StartStopStep):
    """Runs two threads a worker: one sweeps, one renews leases."""

    requires = ("celery.worker.components:Pool",)

    def __init__(self, worker: Any, **kwargs: Any) -> None:
        super().__init__(worker, **kwargs)
        self._stop = threading.Event()
        self._leaving = threading.Event()
        self._threads: list[threading.Thread] = []

    def start(self, worker: Any) -> None:
        store = Store()
        refuse_eviction(worker, store)
        refuse_keys(worker)
        registration = registration_of(worker, store)
        refuse_name(worker, registration.host)
        try:
            integrity.repair(store)
            registration.register()  # before the first message: clients choose queues by the registered hosts
        except StoreUnavailable as error:
            log.warning("the worker is not registered yet: %s", error)
        self._stop.clear()
        self._threads = [
            threading.Thread(target=target, args=(worker, registration), name=f"longshore-{name}", daemon=True)
            for name, target in (("sweeper", self._sweep_loop), ("leases", self._renew_loop))
        ]
        for thread in self._threads:
            thread.start()

    def stop(self, worker: Any) -> None:
        """Stop sweeping. Leases are renewed until the steps of a warm stop have ended; Celery's signals deregister."""
        self._leaving.set()

    def terminate(self, worker: Any) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(5.0)

    def _sweep_loop(self, worker: Any, registration: HostRegistration) -> None:
        store = registration.store
        coordinator = Coordinator(worker.app, store, Plans(store), node=str(worker.hostname))
        sweep_runs = Sweep(coordinator)
        jobs = JobWatch(store, registration.host, registration.queues)
        ledger = Ledger(store.settings.state_dir, store.settings.ledger_name)
        agent = HostAgent(store, coordinator.plans, ledger, registration.host, registration.queues)
        next_cleaning = next_check = 0.0

        def sweep() -> None:
            nonlocal next_cleaning, next_check
            if time.monotonic() >= next_check:
                # Keys that only the broker reads: a wrong type would end its consumer.
                integrity.repair(store)
                next_check = time.monotonic() + _CHECK_EVERY
            store.load_scripts()
            if not self._leaving.is_set():
                sweep_runs.run()
                for run_id in agent.look(coordinator.clock.asked):
                    coordinator.advance(run_id)
                repairing(store, jobs.poll)
            if time.monotonic() >= next_cleaning:
                ledger.clean(_RECEIPTS * store.settings.retention, lambda run_id: store.state(run_id) is not None)
                registration.hosts.forget_old(store.settings.retention)
                next_cleaning = time.monotonic() + _CLEAN_EVERY
            if store.settings.alive_file:
                Path(store.settings.alive_file).touch()

        self._repeat("sweeper", store.settings, lambda _: sweep())

    def _renew_loop(self, worker: Any, registration: HostRegistration) -> None:
        """Renew leases and send heartbeats, independently of how long a sweep takes."""
        store = registration.store
        next_renewal = 0.0

        def renew_or_poll(pause: float) -> None:
            nonlocal next_renewal
            next_renewal -= pause
            if next_renewal <= 0:
                renew(store, worker.hostname)
                repairing(store, registration.beat)
                next_renewal = store.settings.lease / 3
            else:
                repairing(store, registration.poll)

        self._repeat("renewal of leases", store.settings, renew_or_poll)

    def _repeat(self, what: str, settings: Settings, do: Callable[[float], None]) -> None:
        logged = False
        while not self._stop.is_set():
            pause = settings.sweep_interval * random.uniform(2 - LONGEST_PAUSE, LONGEST_PAUSE)  # noqa: S311 - jitter
            try:
                do(pause)
                logged = False
            except StoreUnavailable as error:
                if not logged:
                    log.warning("%s waits for Redis: %s", what, error)
                logged = True
            except Exception:  # recovery must survive any single error
                log.exception("%s: unexpected error, retried", what)
            self._stop.wait(min(pause, settings.lease / 8))


def repairing(store: Store, do: Callable[[], object]) -> None:
    """Do one part of a sweep; a key of a wrong type is renamed, and does not end the parts after this one."""
    try:
        do()
    except WrongType as error:
        if not integrity.repair(store):
            log.error("a part of the sweep is skipped: %s", error)


def _refuse(worker: Any, why: str) -> NoReturn:
    log.critical("this worker does not start: %s", why)
    worker.exitcode = 2
    raise WorkerTerminate


def refuse_keys(worker: Any) -> None:
    """Stop a worker with a client's keys: it could verify no message, and no worker would accept its own."""
    try:
        ring = signing.ring()
        why = "LONGSHORE_KEYS holds a client's keys" if ring is not None and ring.role != "worker" else ""
    except ConfigError as error:
        why = str(error)
    if why:
        _refuse(worker, f"{why}: use worker/keys.json of longshore init")


def refuse_name(worker: Any, host: str) -> None:
    """Stop a worker whose host name could form the name of another host's queue."""
    if not is_host_name(host):
        _refuse(worker, f"{host!r} is not a valid host name: set LONGSHORE_HOST")


def refuse_eviction(worker: Any, store: Store) -> None:
    """Stop a worker whose Redis may evict keys: an eviction would lose acknowledged records."""
    try:
        for finding in eviction(store, store.call(store.client.info, "memory")):
            _refuse(worker, f"{finding.what}: {finding.remedy}")
    except StoreUnavailable as error:
        log.warning("the eviction policy of Redis cannot be read: %s", error)


def renew(store: Store, node: str) -> None:
    """Extend the leases of all attempts that run in this worker's processes, one call a run."""
    running: dict[str, list[tuple[str, str]]] = {}
    for request in tuple(worker_state.active_requests):
        if request.type not in {STEP, UNDO} or len(request.args or ()) < 2:
            continue
        run_id, index = request.args[0], request.args[1]
        side = "u" if request.type == UNDO else ""
        # The process of a chain's first link may run the other links too, under the same name.
        members = [f"{side}{index}", *map(str, links_of(request.message.payload[2].get("chain")))]
        running.setdefault(str(run_id), []).extend((member, f"{request.id}@{node}/") for member in members)
    for run_id, attempts in running.items():
        try:
            store.renew(run_id, attempts)
        except WrongType as error:  # of this run only: the other runs' leases are renewed
            log.error("run %s: its leases cannot be renewed: %s", run_id, error)

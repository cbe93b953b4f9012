"""In the main process of every worker: renew the leases of what runs here, and look at what is due.

It is what finds a lost message, a killed worker, a retry whose time has come, and a request whose
first message never arrived. Several at once do no harm.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
from longshore.tasks.control.coordinator import Coordinator
from longshore.tasks.control.receipt_comparison import HostAgent
from longshore.tasks.loaded_runs import Plans
from longshore.workers.host_agent import HostRegistration, of_worker
from longshore.workers.job_agent import JobWatch

log = logging.getLogger(__name__)

#: Receipts are kept for so many times as long as runs: by them gc knows what it may take away.
_RECEIPTS = 4
#: Seconds between two times that this host's receipts are looked through.
_CLEAN_EVERY = 3600.0
#: Seconds between two times that the types of this installation's keys are checked.
_CHECK_EVERY = 60.0


class Sweeper(bootsteps.StartStopStep):
    """Two threads a worker: one sweeps, one renews leases."""

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
        presence = of_worker(worker, store)
        refuse_name(worker, presence.host)
        try:
            integrity.repair(store)
            presence.register()  # before it takes any work: what it is sent is decided by what is known of its host
        except StoreUnavailable as error:
            log.warning("the worker is not registered yet: %s", error)
        self._stop.clear()
        self._threads = [
            threading.Thread(target=target, args=(worker, presence), name=f"longshore-{name}", daemon=True)
            for name, target in (("sweeper", self._loop), ("leases", self._keep))
        ]
        for thread in self._threads:
            thread.start()

    def stop(self, worker: Any) -> None:
        """Sweep no more. A warm stop now waits for the steps under way: their leases are renewed to the end."""
        self._leaving.set()
        # The registry hears of it by Celery's own signals.

    def terminate(self, worker: Any) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(5.0)

    def _loop(self, worker: Any, presence: HostRegistration) -> None:
        store = presence.store
        driver = Coordinator(worker.app, store, Plans(store), node=str(worker.hostname))
        jobs = JobWatch(store, presence.host, presence.queues)
        ledger = Ledger(store.settings.state_dir, store.settings.namespace)
        agent = HostAgent(store, driver.plans, ledger, presence.host, presence.queues)
        next_cleaning = next_check = 0.0

        def sweep() -> None:
            nonlocal next_cleaning, next_check
            if time.monotonic() >= next_check:
                # What only the broker meets: its consumer would end over it.
                integrity.repair(store)
                next_check = time.monotonic() + _CHECK_EVERY
            store.load_scripts()
            if not self._leaving.is_set():
                driver.sweep()
                for run_id in agent.look(driver.clock.asked):
                    driver.advance(run_id)
                as_dead_letters(store, jobs.look)
            if time.monotonic() >= next_cleaning:
                ledger.clean(_RECEIPTS * store.settings.retention)
                presence.hosts.forget_old(store.settings.retention)
                next_cleaning = time.monotonic() + _CLEAN_EVERY
            if store.settings.alive_file:
                Path(store.settings.alive_file).touch()

        self._again("sweeper", store.settings, lambda _: sweep())

    def _keep(self, worker: Any, presence: HostRegistration) -> None:
        """Renew leases, and say that the worker lives: beside the sweeps, however long one of them takes."""
        store = presence.store
        next_renewal = 0.0

        def keep(pause: float) -> None:
            nonlocal next_renewal
            next_renewal -= pause
            if next_renewal <= 0:
                renew(store, worker.hostname)
                as_dead_letters(store, presence.beat)
                next_renewal = store.settings.lease / 3
            else:
                as_dead_letters(store, presence.look)

        self._again("renewal of leases", store.settings, keep)

    def _again(self, what: str, settings: Settings, do: Callable[[float], None]) -> None:
        silent = False
        while not self._stop.is_set():
            pause = settings.sweep_interval * random.uniform(0.8, 1.2)  # noqa: S311 - not in step
            try:
                do(pause)
                silent = False
            except StoreUnavailable as error:
                if not silent:
                    log.warning("the %s waits: %s", what, error)
                silent = True
            except Exception:  # the worker's part in recovery must outlive any single mistake
                log.exception("the %s goes on after an error", what)
            self._stop.wait(min(pause, settings.lease / 8))


def as_dead_letters(store: Store, do: Callable[[], object]) -> None:
    """Do one part of a sweep; a key of a wrong type is renamed, and must not end the parts after this one."""
    try:
        do()
    except WrongType as error:
        if not integrity.repair(store):
            log.error("a part of the sweep was left out: %s", error)


def refuse_keys(worker: Any) -> None:
    """With a client's keys it could check nothing, and nobody would take what it sends."""
    try:
        ring = signing.ring()
        why = "LONGSHORE_KEYS are those of a client" if ring is not None and ring.role != "worker" else ""
    except ConfigError as error:
        why = str(error)
    if why:
        log.critical("this worker does not start: %s: take worker/keys.json of longshore init", why)
        worker.exitcode = 2
        raise WorkerTerminate


def refuse_name(worker: Any, host: str) -> None:
    """A host's name stands in the names of queues, and must not make one of them another's."""
    if not is_host_name(host):
        log.critical("this worker does not start: %r cannot be a host's name: set LONGSHORE_HOST", host)
        worker.exitcode = 2
        raise WorkerTerminate


def refuse_eviction(worker: Any, store: Store) -> None:
    """A Redis that throws acknowledged keys away is no place for a record: a worker does not start with one."""
    try:
        for finding in eviction(store, store.call(store.client.info, "memory")):
            log.critical("this worker does not start: %s: %s", finding.what, finding.remedy)
            worker.exitcode = 2
            raise WorkerTerminate
    except StoreUnavailable as error:
        log.warning("it cannot be seen whether Redis evicts: %s", error)


def renew(store: Store, node: str) -> None:
    """Extend the leases of all attempts that this worker's processes are at, a call a run."""
    running: dict[str, list[tuple[str, str]]] = {}
    for request in tuple(worker_state.active_requests):
        if request.type not in {STEP, UNDO} or len(request.args or ()) < 2:
            continue
        run_id, index = request.args[0], request.args[1]
        side = "u" if request.type == UNDO else ""
        running.setdefault(str(run_id), []).append((f"{side}{index}", f"{request.id}@{node}/"))
    for run_id, attempts in running.items():
        try:
            store.renew(run_id, attempts)
        except WrongType as error:  # of this run alone: the leases of the others are renewed
            log.error("run %s: its leases cannot be renewed: %s", run_id, error)

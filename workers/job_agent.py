"""Job discovery, recovery of orphaned job containers, and removal of one-off ones, in each worker with an engine.

A job container is orphaned when Redis has lost its run, or when the run could not restart its stack. The
container's labels hold all that recovery needs.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from longshore.orchestration.client.client import Client
from longshore.orchestration.errors import LongshoreError, OperationError, RunConflict, StoreUnavailable
from longshore.orchestration.jobs.discovery import HostSnapshot, JobDiscovery
from longshore.orchestration.jobs.plan import job_plan, plan_from_record, restart_plan
from longshore.orchestration.operations.docker.gc import GcParams
from longshore.orchestration.plans.compiled import CompiledPlan
from longshore.orchestration.plans.model import Plan
from longshore.orchestration.runs import report
from longshore.orchestration.runs.job_outcome import JobReport
from longshore.orchestration.states import TERMINAL
from longshore.orchestration.store.hosts import QUEUE, Hosts
from longshore.orchestration.store.run_store import Store
from longshore.tasks.host.engine.factory import close_engine, engine
from longshore.tasks.host.engine.port import EngineTimeout
from longshore.tasks.host.facts import facts
from longshore.tasks.implementation import Context
from longshore.tasks.operations.docker.gc import Gc
from longshore.tasks.operations.docker.spec import RUN, one_offs
from longshore.tasks.operations.jobs.discovery import LeftWorker, described, workers
from longshore.tasks.operations.jobs.snapshot import KEPT_NAME

log = logging.getLogger(__name__)

#: Leases between two searches for orphaned containers: ten seconds by default.
_EVERY = 2 / 3
#: Seconds between two removals of old backups.
_COLLECT = 3600.0
#: Seconds from the end of the run, or of the previous restart run, to the next restart of a stack that is not up.
_AGAIN = (60.0, 300.0, 1500.0)


class JobWatch:
    """Answers job discovery and recovers orphans; called by the sweeper, with engine calls in threads of its own."""

    def __init__(self, store: Store, host: str, queues: tuple[str, ...]) -> None:
        self.store = store
        self.host = host
        self.discovery = JobDiscovery(store)
        self._here = any(queue.partition("@")[0] == QUEUE for queue in queues)
        self._installation = store.settings.installation()
        self._answered = 0
        self._next_search = 0.0
        self._next_collection = time.monotonic() + _COLLECT
        #: The last error of each task, which is logged once.
        self._last_errors: dict[str, str] = {}
        self._threads: dict[str, threading.Thread] = {}
        #: Orphans of the last search: a container is recovered when two searches have found it.
        self._suspects: set[str] = set()

    def poll(self) -> None:
        """Answer a discovery request, and search for orphans when due. Never waits for the engine.

        A host without an engine has no jobs.
        """
        if not self._here or facts().get("docker", "") is None:
            return
        asked = self.discovery.last_request()
        if asked != self._answered:  # smaller, where Redis was emptied
            self._in_background("answer", lambda: self._answer(asked))
        if time.monotonic() >= self._next_search:
            self._next_search = time.monotonic() + _EVERY * self.store.settings.lease
            self._in_background("finish", self.finish)
        if time.monotonic() >= self._next_collection:
            self._next_collection = time.monotonic() + _COLLECT
            self._in_background("collect", self._collect)

    def _in_background(self, name: str, do: Callable[[], None]) -> None:
        running = self._threads.get(name)
        if running is not None and running.is_alive():
            return

        def run_logged() -> None:
            try:
                do()
                self._last_errors.pop(name, None)
            except (StoreUnavailable, OperationError) as error:
                # An engine that does not answer fails each time.
                if str(error) != self._last_errors.get(name):
                    log.warning("discovery of jobs on host %s: %s", self.host, error)
                self._last_errors[name] = str(error)
            except Exception:  # the next poll retries
                log.exception("discovery of jobs on host %s: unexpected error, retried at the next poll", self.host)
            finally:
                close_engine()

        self._threads[name] = threading.Thread(target=run_logged, name=f"longshore-jobs-{name}", daemon=True)
        self._threads[name].start()

    def _answer(self, asked: int) -> None:
        if self.discovery.last_answer(self.host) != asked:
            try:
                where, stacks, entities = described(engine())
                seen = HostSnapshot(self.host, asked, engine=where, stacks=stacks, entities=entities)
            except OperationError as error:
                seen = HostSnapshot(self.host, asked, error=str(error))
            self.discovery.publish(seen)
        self._answered = asked

    # --- orphaned job containers ---------------------------------------------------------------

    def finish(self) -> None:
        """Recover each job container that no live run owns. Idempotent, and safe for several workers at once."""
        suspects = set()
        for left in workers(engine()):
            try:
                if self._is_orphan(left):
                    suspects.add(left.id)
                    if left.id in self._suspects:
                        self._take_up(left)
            except (StoreUnavailable, EngineTimeout):
                raise
            except LongshoreError as error:
                log.warning("job container %s: %s", left.name, error)
            except Exception:  # the error of one container must not block the others
                log.exception("job container %s cannot be recovered", left.name)
        self._suspects = suspects
        self._remove_one_offs()

    def _collect(self) -> None:
        """Remove the backups of runs that Redis no longer has, older than the retention."""
        done = Gc().act(Context("gc", "gc", "gc"), GcParams(), {})
        if done.changed:
            removed = {key: value for key, value in done.data.items() if value}
            log.info("host %s: removed old backups: %s", self.host, removed)

    def _remove_one_offs(self) -> None:
        """Remove ended one-off containers of ended runs: their environment may hold secrets, and they pin images."""
        docker = engine()
        for row in one_offs(docker):
            state = self.store.state(row["Labels"].get(RUN, ""))
            if state in TERMINAL:
                docker.remove(row["Id"])

    def _is_orphan(self, left: LeftWorker) -> bool:
        if not left.run_id or left.is_kept or left.of != self._installation:
            return False
        state = self.store.state(left.run_id)
        return state in TERMINAL if state is not None else self.store.body(left.run_id) is None

    def _take_up(self, left: LeftWorker) -> None:
        if self.store.body(left.run_id) is None:
            self._reconstruct(left)
            return
        found = self._report(left.run_id)
        if found is None:
            return  # another worker has just recovered it
        if found[0].restart in {"healthy", "not_needed", "kept_stopped"}:
            self._clear(left)
            return
        ended = found[1]
        for number, pause in enumerate(_AGAIN, 1):
            again = f"{left.run_id[:120]}.again{number}"
            if self.store.body(again) is None:
                if self.store.now() - ended >= pause * 1000:
                    job, choices = plan_from_record(left.plan_record)
                    self._start(again, restart_plan(job, choices, left.run_id, self.host), "its stack is not up")
                return
            later = self._report(again)
            if later is None:
                return  # the restart run is live
            if later[0].restart == "healthy":
                self._clear(left)
                return
            ended = later[1]
        log.error(
            "run %s: its stack is not up after %d restarts; container %s is kept", left.run_id, len(_AGAIN), left.name
        )
        engine().rename(left.id, left.name + KEPT_NAME)

    def _report(self, run_id: str) -> tuple[JobReport, int] | None:
        """A terminal run's job report and its end, ms; None for a live run, or a run without a job."""
        body = self.store.body(run_id)
        run, steps = self.store.everything(run_id)
        if body is None or run.get("state") not in TERMINAL:
            return None
        plan = CompiledPlan(Plan.model_validate(body["plan"]), lenient=True)
        found = report.build(run_id, plan, run, steps, self.store.now()).job
        return None if found is None else (found, int(run.get("ended", 0)))

    def _reconstruct(self, left: LeftWorker) -> None:
        """Recreate a run that Redis has lost, under its own id, so that clients find it."""
        job, choices = plan_from_record(left.plan_record)
        if job.host and job.host != self.host:
            other = Hosts(self.store).find(job.host)
            if other is not None and other.alive:
                return  # its own host recreates it
        begin = self.store.now() / 1000 - left.made <= job.timeout
        plan = job_plan(job, choices, reconstructed=True, begin=begin, host=self.host)
        self._start(left.run_id, plan, "Redis has no record of it")

    def _start(self, run_id: str, plan: Plan, why: str) -> None:
        log.warning("run %s recovers an orphaned job container: %s", run_id, why)
        try:
            Client(self.store.settings).start(plan, run_id=run_id)
        except RunConflict:
            log.info("run %s was already started by another worker", run_id)

    def _clear(self, left: LeftWorker) -> None:
        """Remove a container whose result is recorded; a failed container that its job keeps is renamed instead."""
        docker = engine()
        now = docker.inspect(left.id)
        if (
            now is not None
            and now.exit_code
            and not now.running
            and plan_from_record(left.plan_record)[1].get("keep_failed_worker")
        ):
            docker.rename(left.id, left.name + KEPT_NAME)
            return
        if left.running:
            docker.stop(left.id, None)
        docker.remove(left.id)
        log.warning("job container %s is removed: its run %s has ended", left.name, left.run_id)

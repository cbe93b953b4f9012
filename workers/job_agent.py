"""In the main process of every worker with an engine: say which jobs are described on it, and finish what was left.

A worker container that no live run owns is what a run leaves that Redis has lost, or that could not bring its stack
up again. Its labels say all that is needed.
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
from longshore.orchestration.plans.compiled import CompiledPlan
from longshore.orchestration.plans.model import Plan
from longshore.orchestration.runs import report
from longshore.orchestration.runs.job_outcome import JobReport
from longshore.orchestration.states import TERMINAL
from longshore.orchestration.store.hosts import QUEUE, Hosts
from longshore.orchestration.store.run_store import Store
from longshore.tasks.host.engine.factory import close_engine, engine
from longshore.tasks.host.engine.port import EngineTimeout
from longshore.tasks.operations.jobs.discovery import LeftWorker, described, workers
from longshore.tasks.operations.jobs.snapshot import KEPT_NAME

log = logging.getLogger(__name__)

#: Between two looks for what was left: so many leases, ten seconds by default.
_EVERY = 2 / 3
#: Seconds after its end, or that of the one before, that a stack that did not come up is tried once more.
_AGAIN = (60.0, 300.0, 1500.0)


class JobWatch:
    """This worker's. It is looked at by the sweeper, and asks the engine in a thread of its own."""

    def __init__(self, store: Store, host: str, queues: tuple[str, ...]) -> None:
        self.store = store
        self.host = host
        self.discovery = JobDiscovery(store)
        self._here = any(queue.partition("@")[0] == QUEUE for queue in queues)
        self._installation = store.settings.installation()
        self._answered = 0
        self._look_at = 0.0
        #: What went wrong last, which is said once.
        self._told: dict[str, str] = {}
        self._threads: dict[str, threading.Thread] = {}
        #: Containers that no run owned at the last look: what is seen twice is no accident.
        self._suspects: set[str] = set()

    def look(self) -> None:
        """Answer what is asked, and look for what was left now and then. Does not wait for the engine."""
        if not self._here:
            return
        asked = self.discovery.last_request()
        if asked != self._answered:  # smaller, where Redis was emptied
            self._in_background("answer", lambda: self._answer(asked))
        if time.monotonic() >= self._look_at:
            self._look_at = time.monotonic() + _EVERY * self.store.settings.lease
            self._in_background("finish", self.finish)

    def _in_background(self, name: str, do: Callable[[], None]) -> None:
        running = self._threads.get(name)
        if running is not None and running.is_alive():
            return

        def within_limits() -> None:
            try:
                do()
                self._told.pop(name, None)
            except (StoreUnavailable, OperationError) as error:
                # Where there is no engine, that is so at every look.
                if str(error) != self._told.get(name):
                    log.warning("jobs on host %s: %s", self.host, error)
                self._told[name] = str(error)
            except Exception:  # whatever it is, it is tried again
                log.exception("jobs on host %s cannot be looked after", self.host)
            finally:
                close_engine()

        self._threads[name] = threading.Thread(target=within_limits, name=f"longshore-jobs-{name}", daemon=True)
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

    # --- what was left ----------------------------------------------------------------------------

    def finish(self) -> None:
        """Take up each worker container that no live run owns. Safe to repeat, and for several at once."""
        suspects = set()
        for left in workers(engine()):
            try:
                if self._is_left(left):
                    suspects.add(left.id)
                    if left.id in self._suspects:
                        self._take_up(left)
            except (StoreUnavailable, EngineTimeout):
                raise
            except LongshoreError as error:
                log.warning("worker container %s: %s", left.name, error)
            except Exception:  # one that cannot be understood must not keep the others from being taken up
                log.exception("worker container %s cannot be taken up", left.name)
        self._suspects = suspects

    def _is_left(self, left: LeftWorker) -> bool:
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
            return  # somebody else has just taken it up
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
                return  # it is at it
            if later[0].restart == "healthy":
                self._clear(left)
                return
            ended = later[1]
        log.error("run %s: its stack did not come up: %s is kept to be looked at", left.run_id, left.name)
        engine().rename(left.id, left.name + KEPT_NAME)

    def _report(self, run_id: str) -> tuple[JobReport, int] | None:
        """The job's part of the report of a run that rests, and when it ended; None of one that is live, or no job."""
        body = self.store.body(run_id)
        run, steps = self.store.everything(run_id)
        if body is None or run.get("state") not in TERMINAL:
            return None
        plan = CompiledPlan(Plan.model_validate(body["plan"]), lenient=True)
        found = report.build(run_id, plan, run, steps, self.store.now()).job
        return None if found is None else (found, int(run.get("ended", 0)))

    def _reconstruct(self, left: LeftWorker) -> None:
        """Make a run anew that Redis has lost: under its own id, so that whoever asks for it finds it."""
        job, choices = plan_from_record(left.plan_record)
        if job.host and job.host != self.host:
            other = Hosts(self.store).find(job.host)
            if other is not None and other.alive:
                return  # its own host does it
        begin = self.store.now() / 1000 - left.made <= job.timeout
        plan = job_plan(job, choices, reconstructed=True, begin=begin, host=self.host)
        self._start(left.run_id, plan, "Redis has no record of it")

    def _start(self, run_id: str, plan: Plan, why: str) -> None:
        log.warning("run %s: a worker container of it was left, and %s: it is finished", run_id, why)
        try:
            Client(self.store.settings).start(plan, run_id=run_id)
        except RunConflict:
            log.info("run %s is taken up by somebody else", run_id)

    def _clear(self, left: LeftWorker) -> None:
        """The result is recorded, and nothing waits for the container; somebody may want to look at it."""
        docker = engine()
        now = docker.inspect(left.id)
        if (
            now is not None
            and now.exit_code
            and not now.running
            and plan_from_record(left.plan_record)[1].keep_failed_worker
        ):
            docker.rename(left.id, left.name + KEPT_NAME)
            return
        if left.running:
            docker.stop(left.id, None)
        docker.remove(left.id)
        log.warning("worker container %s was left by run %s, which has ended, and is removed", left.name, left.run_id)


__all__ = ["JobWatch"]

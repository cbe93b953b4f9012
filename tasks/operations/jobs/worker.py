"""`job.worker`, `work` and `remove`: the container that does the work, from its making to its end."""

from __future__ import annotations

import json
import time
from typing import Any

from longshore.orchestration.errors import (
    Delayed,
    OperationError,
    Preflight,
    StepCancelled,
    StepTimeout,
    Transient,
    Unsuccessful,
)
from longshore.orchestration.jobs.plan import plan_from_record
from longshore.orchestration.operations.docker.containers import CreateParams, Mount
from longshore.orchestration.operations.jobs import REMOVE, WORK, WORKER, RemoveParams, WorkerParams, WorkParams
from longshore.orchestration.settings import get_settings
from longshore.orchestration.states import STEP_GOOD
from longshore.tasks.crash_points import point
from longshore.tasks.host.engine.factory import engine
from longshore.tasks.host.engine.port import Container, Engine, seconds_of
from longshore.tasks.host.file_lock import exclusive
from longshore.tasks.implementation import Context, NoUndo, Outcome, Prediction, implements
from longshore.tasks.operations.docker import spec
from longshore.tasks.operations.docker.run import captured_output, data_of
from longshore.tasks.operations.jobs.discovery import LeftWorker, workers
from longshore.tasks.operations.jobs.log_follower import LogForwarder, followed
from longshore.tasks.operations.jobs.snapshot import (
    JOB,
    KEPT_NAME,
    KIND,
    OF,
    RECIPE,
    SNAPSHOT,
    Snapshot,
    names,
    recall,
    take,
    worker_of,
)
from longshore.tasks.operations.jobs.stack import lock_projects, stop_all

#: Seconds between two looks, at first and at most.
_POLL = (0.05, 0.5)
#: Seconds between two looks for the worker of another installation; and how long one counts that was not started.
_OTHERS_LOOK, _YOUNG = 2.0, 600.0
#: Why a worker is kept that somebody wants to look at.
_FAILED = "it failed"
#: Seconds by which a worker's clock may be behind when it is asked whether it has run for all its time.
_CLOSE = 0.5


@implements(WORKER)
class Worker(NoUndo[WorkerParams]):
    """Whatever is wrong with the job costs no downtime: nothing has been stopped yet."""

    def before(self, ctx: Context, params: WorkerParams) -> dict[str, Any]:
        docker = engine()
        there = worker_of(docker, ctx, params)
        if there is not None:
            return {"image_id": there.image_id}
        if not params.make:
            raise OperationError("the job's worker container was removed by somebody else")
        self._check(docker, params)
        return {"image_id": spec.need(docker, params.image).id}

    def act(self, ctx: Context, params: WorkerParams, before: dict[str, Any]) -> Outcome:
        docker = engine()
        with exclusive(f"job {docker.url} {ctx.run_id}", ctx.check):
            worker, made = worker_of(docker, ctx, params), False
            if worker is None:
                self._check(docker, params)
                _wait_for_others(docker, ctx, params)
                snapshot = take(docker, params.stacks, params.containers)
                point("job.snapped")
                said = self._container(ctx, params, snapshot)
                ours = get_settings().installation()
                marks = {JOB: params.job, SNAPSHOT: snapshot.text(), RECIPE: params.plan_record, OF: ours}
                worker, _ = spec.make(docker, ctx, said, before["image_id"], kind=KIND, marks=marks)
                made = True
                try:
                    _wait_for_others(docker, ctx, params, mine=worker.id)
                except OperationError:
                    docker.remove(worker.id)  # two at the same moment: the one that was made first goes on
                    raise
        known = json.loads(worker.labels[SNAPSHOT])
        for volume, others in in_use(docker, params, Snapshot.of(known)).items():
            ctx.log(f"volume {volume} is also used by {others}, which is not stopped")
        point("job.created")
        return Outcome(changed=made, data={"id": worker.id, "name": worker.name, "snapshot": known})

    def predict(self, ctx: Context, params: WorkerParams) -> Prediction:
        docker = engine()
        try:
            self._check(docker, params)
            snapshot = take(docker, params.stacks, params.containers)
        except Preflight as error:
            return Prediction(f"would fail: {error}", changed=False, impossible=str(error))
        mounts = "".join(f", with {mount.volume} at {mount.path} ({mount.mode})" for mount in params.mounts)
        what = f"would make the worker from {params.image}{mounts}; it remembers what runs: {names(snapshot.kept)}"
        for volume, others in in_use(docker, params, snapshot).items():
            what += f"; volume {volume} is also used by {others}, which would go on"
        return Prediction(what)

    @staticmethod
    def _check(docker: Engine, params: WorkerParams) -> None:
        """A volume that is not there would be made by the engine, and backed up empty."""
        for mount in params.mounts:
            if docker.volume(mount.volume) is None:
                raise Preflight(f"there is no volume {mount.volume!r}", remedy="is its name right, and its host?")

    @staticmethod
    def _container(ctx: Context, params: WorkerParams, snapshot: Snapshot) -> CreateParams:
        stacks = ",".join(params.stacks or snapshot.projects)
        known = {"JOB_NAME": params.job, "RUN_ID": ctx.run_id, "STACK": stacks}
        known |= {f"JOB_{name}": known[name] for name in ("RUN_ID", "STACK")}
        return CreateParams(
            image=params.image,
            name=f"longshore-job-{spec.safe(params.job)}-{spec.short(ctx.run_id)}",
            command=params.command or None,
            env=dict(params.env) | {f"LONGSHORE_{name}": value for name, value in known.items()},
            volumes=[Mount(target=m.path, source=m.volume, read_only=m.mode == "ro") for m in params.mounts],
        )


def _wait_for_others(docker: Engine, ctx: Context, params: WorkerParams, mine: str = "") -> None:
    """Raise where another worker is at work on one of these stacks, or about to be.

    That of another installation, which knows nothing of our locks, is waited for. One of ours that this run meets is
    left of a run that Redis has lost, and needs the locks that this run has: this one gives way.
    """
    ours, now = get_settings().installation(), _engine_time(docker)
    here = {*params.stacks, *params.beside, *params.containers}
    found = workers(docker)
    own = next((left for left in found if left.id == mine), None)
    for left in found:
        if left.id == mine or left.run_id == (params.run or ctx.run_id) or left.is_kept:
            continue
        waits = left.state == "created" and (left.of == ours or now - left.made < _YOUNG)
        if not (left.running or waits) or not here & _stacks_of(left):
            continue
        if own is not None and not left.running and (own.made, own.id) < (left.made, left.id):
            continue
        if left.of == ours:
            raise Transient(f"run {left.run_id} has not done with it yet: its worker {left.name} is {left.state}")
        raise Delayed(f"another installation is at work on it: {left.name} of run {left.run_id}", after=_OTHERS_LOOK)


def _stacks_of(left: LeftWorker) -> set[str]:
    try:
        job, _ = plan_from_record(left.plan_record)
    except ValueError:
        return set()  # nothing can be told of it
    return {*job.stacks, *job.projects, *job.standalone}


def in_use(docker: Engine, params: WorkerParams, snapshot: Snapshot) -> dict[str, str]:
    """The volumes that the worker sees and that somebody uses who is not stopped, with their names."""
    stopped = {one.id for one in snapshot.kept}
    found = {}
    for mount in params.mounts:
        rows = docker.rows({"volume": [mount.volume]}, all_of_them=False)
        others = [row for row in rows if row["Id"] not in stopped and row["Labels"].get(spec.KIND) != KIND]
        if others:
            found[mount.volume] = ", ".join(row["Names"][0].removeprefix("/") for row in others)
    return found


@implements(WORK)
class Work(NoUndo[WorkParams]):
    """Once: whoever finds the container started waits for it, and never starts it a second time."""

    def act(self, ctx: Context, params: WorkParams, before: dict[str, Any]) -> Outcome:
        docker = engine()
        worker, snapshot = recall(docker, ctx, params)
        if worker is None:
            raise OperationError("the job's worker container was removed by somebody else")
        with lock_projects(ctx, docker, params, snapshot):
            if worker.started_at is None and not params.begin:
                raise Preflight("too much time has passed since the job was asked for: it is not begun any more")
            if worker.started_at is None:
                worker = self._start(ctx, docker, params, worker, snapshot)
            point("job.running")
            clock = _engine_time(docker)
            with followed(ctx, worker.id, clock) as told:
                ended, timed_out = self._wait(ctx, docker, params, worker, clock - time.time(), told)
        point("job.waited")
        data = data_of(ctx, docker, ended) | {"timed_out": timed_out}
        if ended.exit_code == 0 and not timed_out:
            return Outcome(changed=True, data=data)
        why = f"was stopped after {params.timeout:g} s" if timed_out else f"ended with {ended.exit_code}"
        why = "was killed for want of memory" if ended.oom_killed else why
        last = (data["stderr"] or data["stdout"]).strip().splitlines()[-1:]
        raise Unsuccessful(f"worker {ended.name} {why}" + (f": {last[0]}" if last else ""), data=data)

    def _start(
        self, ctx: Context, docker: Engine, params: WorkParams, worker: Container, snapshot: Snapshot
    ) -> Container:
        with exclusive(f"job {docker.url} {ctx.run_id}", ctx.check):
            now = docker.inspect(worker.id)
            if now is None:
                raise OperationError("the job's worker container was removed by somebody else")
            if now.started_at is not None:
                return now
            # What came up meanwhile, because the engine was restarted or somebody has started it, would write.
            if again := stop_all(docker, snapshot.kept, params.stop_timeout):
                ctx.log(f"stopped once more: {', '.join(again)}")
            if not ctx.renew():
                raise StepCancelled("the step is another attempt's now")
            docker.start(worker.id)
            point("job.started")
        return docker.inspect(worker.id) or now

    def _wait(
        self, ctx: Context, docker: Engine, params: WorkParams, worker: Container, skew: float, told: LogForwarder
    ) -> tuple[Container, bool]:
        """The container as it ended, and whether it had run out of its time. `skew`: by how much the engine's clock
        is ahead.
        """
        pause, longest = _POLL
        while True:
            now = docker.inspect(worker.id)
            if now is None:
                raise OperationError(f"worker {worker.name} was removed while it ran")
            if not now.running:
                if now.started_at is None:
                    raise Transient(f"worker {now.name} has not started: {now.error}")
                now = captured_output(docker, now)
                return now, _ran_for(now, time.time() + skew) >= params.timeout
            if _ran_for(now, time.time() + skew) >= params.timeout:
                docker.stop(now.id, params.grace)
                return docker.inspect(now.id) or now, True
            told.check()
            try:
                ctx.sleep(pause)
            except (StepCancelled, StepTimeout) as end:
                docker.stop(now.id, params.grace)
                data = data_of(ctx, docker, docker.inspect(now.id) or now) | {"timed_out": False}
                raise type(end)(f"worker {worker.name} {end.message}", data=data) from end
            pause = min(pause * 1.5, longest)

    def predict(self, ctx: Context, params: WorkParams) -> Prediction:
        return Prediction(f"would run the worker of job {params.job}, for at most {params.timeout:g} s")


def _engine_time(docker: Engine) -> float:
    """The engine's clock, by which it says when a container was started."""
    told = docker.info().get("SystemTime")
    return seconds_of(str(told)) if told else time.time()


def _ran_for(container: Container, now: float) -> float:
    began = seconds_of(container.started_at) if container.started_at else now
    ended = seconds_of(container.finished_at) if container.finished_at and not container.running else now
    # One that was ended by a signal may have been so a moment before the whole time was over, by this clock.
    return ended - began + _CLOSE * bool(not container.running and container.exit_code)


@implements(REMOVE)
class Remove(NoUndo[RemoveParams]):
    """As long as the stack is not up again, the worker is what remembers it."""

    def act(self, ctx: Context, params: RemoveParams, before: dict[str, Any]) -> Outcome:
        docker = engine()
        point("job.recorded")
        worker = worker_of(docker, ctx, params)
        if worker is None:
            return Outcome(changed=False, data={"removed": False})
        if why := self._needed(ctx, params, worker):
            ctx.log(f"worker {worker.name} is kept: {why}")
            if why == _FAILED and not worker.name.endswith(KEPT_NAME):
                docker.rename(worker.id, worker.name + KEPT_NAME)  # so that nobody clears it away
            return Outcome(changed=False, data={"removed": False, "kept": why})
        if worker.running:
            docker.stop(worker.id, None)
        docker.remove(worker.id)
        point("job.removed")
        return Outcome(changed=True, data={"removed": True})

    @staticmethod
    def _needed(ctx: Context, params: RemoveParams, worker: Container) -> str:
        ends = [ctx.results[name].status for name in ("start", "healthy") if name in ctx.results]
        if not all(status in STEP_GOOD for status in ends):
            return "the stack is not up again"
        failed = bool(worker.exit_code)
        if "work" in ctx.results:
            failed = ctx.results["work"].status not in STEP_GOOD
        return _FAILED if failed and worker.started_at is not None and params.keep_failed else ""

    def predict(self, ctx: Context, params: RemoveParams) -> Prediction:
        return Prediction("would remove the worker, once its result is recorded")

"""`job.worker`, `work` and `remove`: creation, execution and removal of a job container."""

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
from longshore.tasks.implementation import Change, Context, NoUndo, Outcome, Prediction, implements, would_fail
from longshore.tasks.operations.compose.reconstruction import Description
from longshore.tasks.operations.docker import spec
from longshore.tasks.operations.docker.run import captured_output, data_of
from longshore.tasks.operations.jobs import way_back
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

#: Seconds between two polls, at first and at most.
_POLL = (0.05, 0.5)
#: Seconds between two polls for a worker of another installation; and how long an unstarted one blocks this run.
_OTHERS_POLL, _UNSTARTED_BLOCKS = 2.0, 600.0
#: The reason to keep a worker for an inspection.
_FAILED = "the worker failed"
#: Tolerance in seconds of the comparison of a worker's run time with its timeout.
_CLOCK_TOLERANCE = 0.5


@implements(WORKER)
class Worker(NoUndo[WorkerParams]):
    """Creates the worker before any stop, so that an invalid job causes no downtime."""

    def before(self, ctx: Context, params: WorkerParams) -> dict[str, Any]:
        docker = engine()
        there = worker_of(docker, ctx, params)
        if there is not None:
            return {"image_id": there.image_id}
        if not params.make:
            raise OperationError("the job container was removed outside of this run")
        self._check(docker, params)
        return {"image_id": spec.need(docker, params.image).id}

    def act(self, ctx: Context, params: WorkerParams, before: dict[str, Any]) -> Outcome:
        docker = engine()
        with exclusive(f"job {docker.url} {ctx.run_id}", ctx.check):
            worker, made = worker_of(docker, ctx, params), False
            if worker is None:
                _wait_for_others(docker, ctx, params)
                snapshot, described = self._prepared(docker, params)
                way_back.keep(ctx, docker, params, described)
                point("job.snapped")
                container = self._container(ctx, params, snapshot)
                ours = get_settings().installation()
                marks = {JOB: params.job, SNAPSHOT: snapshot.text(), RECIPE: params.plan_record, OF: ours}
                worker, _ = spec.make(docker, ctx, container, before["image_id"], kind=KIND, marks=marks)
                made = True
                try:
                    _wait_for_others(docker, ctx, params, mine=worker.id)
                except OperationError:
                    docker.remove(worker.id)  # of two simultaneous workers, the first one continues
                    raise
        known = json.loads(worker.labels[SNAPSHOT])
        for volume, others in in_use(docker, params, Snapshot.of(known)).items():
            ctx.log(f"volume {volume} is also used by {others}, outside of the job")
        point("job.created")
        return Outcome(changed=made, data={"id": worker.id, "name": worker.name, "snapshot": known})

    def predict(self, ctx: Context, params: WorkerParams) -> Prediction:
        # Apart from `act`, which decides under a lock of the host, with the image that an earlier step pulls.
        docker = engine()
        try:
            snapshot, _ = self._prepared(docker, params)
        except Preflight as error:
            return would_fail(str(error))
        mounts = "".join(f", with {mount.volume} at {mount.path} ({mount.mode})" for mount in params.mounts)
        what = f"would create the worker from {params.image}{mounts}, with a snapshot of {names(snapshot.kept)}"
        for volume, others in in_use(docker, params, snapshot).items():
            what += f"; volume {volume} is also used by {others}, which would keep running"
        return Prediction(what)

    def _prepared(self, docker: Engine, params: WorkerParams) -> tuple[Snapshot, list[Description]]:
        """The running containers, and their descriptions. Raises Preflight where the job could not bring them back."""
        self._check(docker, params)
        snapshot = take(docker, params.stacks, params.containers)
        return snapshot, way_back.require(docker, params, snapshot.kept)

    @staticmethod
    def _check(docker: Engine, params: WorkerParams) -> None:
        """Raise Preflight for a missing volume, which the engine would create, and the job would back up empty."""
        for mount in params.mounts:
            if docker.volume(mount.volume) is None:
                raise Preflight(
                    f"volume {mount.volume!r} does not exist", remedy="correct the name of the volume or the host"
                )

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
    """Raise if another worker runs, or is about to run, on one of these stacks.

    Raises Delayed for a worker of another installation, which does not share our locks. Raises Transient for a worker
    of this installation: its run was lost in Redis and needs the locks that this run holds.
    """
    ours, now = get_settings().installation(), _engine_time(docker)
    here = {*params.stacks, *params.beside, *params.containers}
    found = workers(docker)
    own = next((left for left in found if left.id == mine), None)
    for left in found:
        if left.id == mine or left.run_id == (params.run or ctx.run_id) or left.is_kept:
            continue
        waits = left.state == "created" and (left.of == ours or now - left.made < _UNSTARTED_BLOCKS)
        if not (left.running or waits) or not here & _stacks_of(left):
            continue
        if own is not None and not left.running and (own.made, own.id) < (left.made, left.id):
            continue
        if left.of == ours:
            raise Transient(f"run {left.run_id} still uses these stacks: its worker {left.name} is {left.state}")
        what = f"another installation uses these stacks: worker {left.name} of run {left.run_id}"
        raise Delayed(what, after=_OTHERS_POLL)


def _stacks_of(left: LeftWorker) -> set[str]:
    try:
        job, _ = plan_from_record(left.plan_record)
    except ValueError:
        return set()  # the job is unknown
    return {*job.stacks, *job.projects, *job.standalone}


def in_use(docker: Engine, params: WorkerParams, snapshot: Snapshot) -> dict[str, str]:
    """The volumes of the worker that containers outside of the snapshot use, with the names of these containers."""
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
    """Runs the worker once: a later attempt waits for a started container and never starts it again."""

    def change(self, ctx: Context, params: WorkParams, before: dict[str, Any]) -> Change:
        yield Prediction(f"would run the worker of job {params.job}, for at most {params.timeout:g} s")
        docker = engine()
        worker, snapshot = recall(docker, ctx, params)
        if worker is None:
            raise OperationError("the job container was removed outside of this run")
        with lock_projects(ctx, docker, params, snapshot):
            if worker.started_at is None and not params.begin:
                raise Preflight("the job was requested too long ago and is not started", remedy="start the job again")
            if worker.started_at is None:
                worker = self._start(ctx, docker, params, worker, snapshot)
            point("job.running")
            clock = _engine_time(docker)
            with followed(ctx, worker.id, clock) as forwarder:
                ended, timed_out = self._wait(ctx, docker, params, worker, clock - time.time(), forwarder)
        point("job.waited")
        data = data_of(ctx, docker, ended) | {"timed_out": timed_out}
        if ended.exit_code == 0 and not timed_out:
            return data
        why = f"was stopped after {params.timeout:g} s" if timed_out else f"exited with code {ended.exit_code}"
        why = "ran out of memory" if ended.oom_killed else why
        last = (data["stderr"] or data["stdout"]).strip().splitlines()[-1:]
        raise Unsuccessful(f"worker {ended.name} {why}" + (f": {last[0]}" if last else ""), data=data)

    def _start(
        self, ctx: Context, docker: Engine, params: WorkParams, worker: Container, snapshot: Snapshot
    ) -> Container:
        with exclusive(f"job {docker.url} {ctx.run_id}", ctx.check):
            now = docker.inspect(worker.id)
            if now is None:
                raise OperationError("the job container was removed outside of this run")
            if now.started_at is not None:
                return now
            # Containers that started meanwhile, by the engine's restart or by an operator, would write to the volumes.
            if again := stop_all(docker, snapshot.kept, params.stop_timeout):
                ctx.log(f"stopped again: {', '.join(again)}")
            if not ctx.renew():
                raise StepCancelled("another attempt has claimed the step")
            docker.start(worker.id)
            point("job.started")
        return docker.inspect(worker.id) or now

    def _wait(
        self, ctx: Context, docker: Engine, params: WorkParams, worker: Container, skew: float, forwarder: LogForwarder
    ) -> tuple[Container, bool]:
        """The exited container, and whether it exceeded its timeout. `skew`: seconds by which the engine's clock is
        ahead.
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
            forwarder.check()
            try:
                ctx.sleep(pause)
            except (StepCancelled, StepTimeout) as end:
                docker.stop(now.id, params.grace)
                data = data_of(ctx, docker, docker.inspect(now.id) or now) | {"timed_out": False}
                raise type(end)(f"worker {worker.name} {end.message}", data=data) from end
            pause = min(pause * 1.5, longest)


def _engine_time(docker: Engine) -> float:
    """The time on the engine's clock, which dates the starts of containers."""
    now = docker.info().get("SystemTime")
    return seconds_of(str(now)) if now else time.time()


def _ran_for(container: Container, now: float) -> float:
    began = seconds_of(container.started_at) if container.started_at else now
    ended = seconds_of(container.finished_at) if container.finished_at and not container.running else now
    # By this clock, a stop at the timeout may come a moment before the timeout.
    return ended - began + _CLOCK_TOLERANCE * bool(not container.running and container.exit_code)


@implements(REMOVE)
class Remove(NoUndo[RemoveParams]):
    """Removes the worker, unless the stack is not up: its label holds the snapshot."""

    def change(self, ctx: Context, params: RemoveParams, before: dict[str, Any]) -> Change:
        yield Prediction("would remove the worker, once its result is recorded")
        docker = engine()
        point("job.recorded")
        worker = worker_of(docker, ctx, params)
        if worker is None:
            return Outcome(changed=False, data={"removed": False})
        if why := self._needed(ctx, params, worker):
            ctx.log(f"worker {worker.name} is kept: {why}")
            if why == _FAILED and not worker.name.endswith(KEPT_NAME):
                docker.rename(worker.id, worker.name + KEPT_NAME)  # the suffix protects it from later clean-ups
            return Outcome(changed=False, data={"removed": False, "kept": why})
        if worker.running:
            docker.stop(worker.id, None)
        docker.remove(worker.id)
        way_back.forget(ctx, docker, params)
        point("job.removed")
        return {"removed": True}

    @staticmethod
    def _needed(ctx: Context, params: RemoveParams, worker: Container) -> str:
        ends = [ctx.results[name].status for name in ("start", "healthy") if name in ctx.results]
        if not all(status in STEP_GOOD for status in ends):
            return "the stack is not up"
        failed = bool(worker.exit_code)
        if "work" in ctx.results:
            failed = ctx.results["work"].status not in STEP_GOOD
        return _FAILED if failed and worker.started_at is not None and params.keep_failed else ""

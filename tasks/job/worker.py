"""`job.worker`, `work` and `remove`: the container that does the work, from its making to its end."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
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
from longshore.orchestration.jobs.plan import from_recipe
from longshore.orchestration.operations.docker.containers import CreateParams, Mount
from longshore.orchestration.operations.job import (
    REMOVE,
    WORK,
    WORKER,
    JobParams,
    RemoveParams,
    WorkerParams,
    WorkParams,
)
from longshore.orchestration.settings import get_settings
from longshore.orchestration.states import STEP_GOOD
from longshore.tasks.crash import point
from longshore.tasks.docker import spec
from longshore.tasks.engine import Container, Engine, close_engine, engine
from longshore.tasks.hostlock import exclusive
from longshore.tasks.job.found import workers
from longshore.tasks.job.snapshot import (
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
from longshore.tasks.job.stack import alone_with, stop_all
from longshore.tasks.machine.live import Live
from longshore.tasks.operation import Context, Implementation, Outcome, Prediction, implements

#: Bytes kept of each stream of its output: the end.
_OUTPUT = 64 * 1024
#: Seconds between two looks, at first and at most.
_POLL = (0.05, 0.5)
#: Seconds for the follower of its output to read the last of it.
_LAST_WORDS = 5.0
#: Seconds between two looks for the worker of another installation; and how long one counts that does not run.
_STRANGERS_LOOK, _YOUNG = 2.0, 600.0
#: Why a worker is kept that somebody wants to look at.
_FAILED = "it failed"
#: Seconds by which a worker's clock may be behind when it is asked whether it has run for all its time.
_CLOSE = 0.5


@implements(WORKER)
class Worker(Implementation[WorkerParams]):
    """Whatever is wrong with the job costs no downtime: nothing has been stopped yet."""

    def before(self, ctx: Context, params: WorkerParams) -> dict[str, Any]:
        docker = engine()
        there = worker_of(docker, ctx, params)
        if there is not None:
            return {"image_id": there.image_id}
        self._check(docker, params)
        return {"image_id": spec.need(docker, params.image).id}

    def act(self, ctx: Context, params: WorkerParams, before: dict[str, Any]) -> Outcome:
        docker = engine()
        with exclusive(f"job {docker.url} {ctx.run_id}", ctx.check):
            worker, made = worker_of(docker, ctx, params), False
            if worker is None:
                self._check(docker, params)
                ours = get_settings().installation()
                if other := _strangers(docker, params, ours):
                    raise Delayed(f"another installation is at work on it: {other}", after=_STRANGERS_LOOK)
                snapshot = take(docker, params.stacks, params.containers)
                point("job.snapped")
                said = self._container(ctx, params, snapshot)
                marks = {JOB: params.job, SNAPSHOT: snapshot.text(), RECIPE: params.recipe, OF: ours}
                worker, _ = spec.make(docker, ctx, said, before["image_id"], kind=KIND, marks=marks)
                made = True
        for volume, others in in_use(docker, params, Snapshot.read(worker.labels[SNAPSHOT])).items():
            ctx.log(f"volume {volume} is also used by {others}, which is not stopped")
        point("job.created")
        snapshot_data = json.loads(worker.labels[SNAPSHOT])
        return Outcome(changed=made, data={"id": worker.id, "name": worker.name, "snapshot": snapshot_data})

    def undo(self, ctx: Context, params: WorkerParams, before: dict[str, Any], data: dict[str, Any] | None) -> Outcome:
        return Outcome(changed=False)

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


def _strangers(docker: Engine, params: WorkerParams, ours: str) -> str:
    """The worker of another installation that is at work on one of these stacks, and knows nothing of our locks."""
    now = _engine_time(docker)
    for left in workers(docker):
        if left.of == ours or not (left.running or now - left.made < _YOUNG):
            continue
        try:
            job, _ = from_recipe(left.recipe)
        except ValueError:
            continue  # of another version: nothing can be told of it
        if {*job.stacks, *job.alone} & {*params.stacks, *params.containers}:
            return f"{left.name} of run {left.run_id}"
    return ""


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
class Work(Implementation[WorkParams]):
    """Once: whoever finds the container started waits for it, and never starts it a second time."""

    def act(self, ctx: Context, params: WorkParams, before: dict[str, Any]) -> Outcome:
        docker = engine()
        worker, snapshot = recall(docker, ctx, params)
        if worker is None:
            raise OperationError("the job's worker container was removed by somebody else")
        with alone_with(ctx, docker, params, snapshot):
            if worker.started_at is None and not params.begin:
                raise Preflight("too much time has passed since the job was asked for: it is not begun any more")
            if worker.started_at is None:
                worker = self._start(ctx, docker, params, worker, snapshot)
            point("job.running")
            with self._followed(ctx, worker):
                ended, timed_out = self._wait(ctx, docker, params, worker)
        point("job.waited")
        data = self._data(ctx, docker, ended) | {"timed_out": timed_out}
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
            if again := stop_all(docker, snapshot.kept, params.grace):
                ctx.log(f"stopped once more: {', '.join(again)}")
            if not ctx.renew():
                raise StepCancelled("the step is another attempt's now")
            docker.start(worker.id)
            point("job.started")
        return docker.inspect(worker.id) or now

    def _wait(self, ctx: Context, docker: Engine, params: WorkParams, worker: Container) -> tuple[Container, bool]:
        """The container as it ended, and whether it had run out of its time."""
        pause, longest = _POLL
        skew = _engine_time(docker) - time.time()
        while True:
            now = docker.inspect(worker.id)
            if now is None:
                raise OperationError(f"worker {worker.name} was removed while it ran")
            if not now.running:
                if now.started_at is None:
                    raise Transient(f"worker {now.name} has not started: {now.error}")
                return now, _ran_for(now, time.time() + skew) >= params.timeout
            if _ran_for(now, time.time() + skew) >= params.timeout:
                docker.stop(now.id, params.grace)
                return docker.inspect(now.id) or now, True
            try:
                ctx.sleep(pause)
            except (StepCancelled, StepTimeout) as end:
                docker.stop(now.id, params.grace)
                data = self._data(ctx, docker, docker.inspect(now.id) or now) | {"timed_out": False}
                raise type(end)(f"worker {worker.name} {end.message}", data=data) from end
            pause = min(pause * 1.5, longest)

    @staticmethod
    @contextlib.contextmanager
    def _followed(ctx: Context, worker: Container) -> Iterator[None]:
        """What it says is told as it comes, from a thread of its own; nothing depends on that."""
        live, ended = Live(ctx), threading.Event()
        since = None if ctx.attempt == 1 else time.time()

        def follow() -> None:
            try:
                engine().follow(worker.id, live, ended.is_set, since=since)
            except OperationError as error:
                ctx.log(f"its output is not followed any more: {error.message}")
            finally:
                live.flush()
                close_engine()

        follower = threading.Thread(target=follow, name="longshore-follow", daemon=True)
        follower.start()
        try:
            yield
        finally:
            follower.join(_LAST_WORDS)
            ended.set()

    @staticmethod
    def _data(ctx: Context, docker: Engine, worker: Container) -> dict[str, Any]:
        output = docker.logs(worker.id, _OUTPUT, redact=ctx.redact)
        return {
            "id": worker.id,
            "name": worker.name,
            "exit_code": worker.exit_code,
            "oom_killed": worker.oom_killed,
            "stdout": output.stdout,
            "stderr": output.stderr,
            "truncated": output.truncated,
            "started_at": worker.started_at,
            "finished_at": worker.finished_at,
        }

    def undo(self, ctx: Context, params: WorkParams, before: dict[str, Any], data: dict[str, Any] | None) -> Outcome:
        return Outcome(changed=False)

    def predict(self, ctx: Context, params: WorkParams) -> Prediction:
        return Prediction(f"would run the worker of job {params.job}, for at most {params.timeout:g} s")


def _engine_time(docker: Engine) -> float:
    """The engine's clock, by which it says when a container was started."""
    told = docker.info().get("SystemTime")
    return _seconds(str(told)) if told else time.time()


def _seconds(text: str) -> float:
    return (
        datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()
        if text.endswith("Z")
        else (datetime.fromisoformat(text).timestamp())
    )


def _ran_for(container: Container, now: float) -> float:
    began = _seconds(container.started_at) if container.started_at else now
    ended = _seconds(container.finished_at) if container.finished_at and not container.running else now
    return ended - began + _CLOSE * (not container.running)


@implements(REMOVE)
class Remove(Implementation[RemoveParams]):
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
        failed = worker.started_at is not None and ctx.results["work"].status not in STEP_GOOD
        return _FAILED if failed and params.keep_failed else ""

    def undo(self, ctx: Context, params: RemoveParams, before: dict[str, Any], data: dict[str, Any] | None) -> Outcome:
        return Outcome(changed=False)

    def predict(self, ctx: Context, params: RemoveParams) -> Prediction:
        return Prediction("would remove the worker, once its result is recorded")


__all__ = ["JobParams", "in_use"]

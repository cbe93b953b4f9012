"""`job.stop`, `start` and `healthy`: stop the containers of a job's stacks, start them again, and await health."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from longshore.orchestration.errors import OperationError, StepCancelled, StepTimeout, Transient, Unsuccessful
from longshore.orchestration.operations.jobs import (
    HEALTHY,
    START,
    STOP,
    HealthyParams,
    JobParams,
    StartParams,
    StopParams,
)
from longshore.orchestration.states import STEP_GOOD, StepState
from longshore.tasks.crash_points import point
from longshore.tasks.host.engine.factory import engine
from longshore.tasks.host.engine.port import Container, Engine, NotThere
from longshore.tasks.implementation import Change, Context, NoUndo, Outcome, Prediction, implements
from longshore.tasks.operations.compose.cli import PROJECT, Compose
from longshore.tasks.operations.compose.project import project_lock
from longshore.tasks.operations.compose.reconstruction import Description, create_all
from longshore.tasks.operations.compose.standing import standing
from longshore.tasks.operations.compose.state import Member, members
from longshore.tasks.operations.docker.evidence import collect, reason_of
from longshore.tasks.operations.docker.levels import HealthCheck, stop_levels
from longshore.tasks.operations.jobs import way_back
from longshore.tasks.operations.jobs.snapshot import (
    ContainerSnapshot,
    Snapshot,
    in_order,
    names,
    recall,
    worker_of,
)

_POLL = 0.2
#: Seconds without a restart after which a container without a health check counts as healthy.
_SETTLE = 1.0
#: States of a stop step whose requests the engine may still execute.
_INTERRUPTED = frozenset({StepState.CANCELLED, StepState.UNKNOWN})


@contextlib.contextmanager
def lock_projects(ctx: Context, docker: Engine, params: JobParams, snapshot: Snapshot) -> Iterator[None]:
    """Hold the locks of all projects of the job. Sorted acquisition prevents deadlocks."""
    with contextlib.ExitStack() as held:
        for project in sorted({*params.stacks, *params.beside, *snapshot.projects}):
            held.enter_context(project_lock(ctx, docker, project))
        yield


def stop_all(docker: Engine, kept: tuple[ContainerSnapshot, ...], timeout: float) -> list[str]:
    """Stop running containers, dependents first, each with `timeout` or its own longer stop timeout.

    Raises OperationError with the containers that did not stop, after all stops of a level.
    """

    def stop(mine: Engine, one: ContainerSnapshot) -> tuple[ContainerSnapshot, bool, OperationError | None]:
        try:
            container = now_of(mine, one)
            stopped = container is not None and mine.stop(container.id, max(timeout, one.grace))
            return one, stopped, None
        except NotThere:
            return one, False, None  # a removed container counts as stopped
        except OperationError as error:
            return one, False, error

    stopped: list[str] = []

    def is_running(one: ContainerSnapshot) -> bool:
        now = now_of(docker, one)
        return now is not None and now.running

    for done in stop_levels(in_order(kept), stop):
        stopped += [one.name for one, was_stopped, _ in done if was_stopped]
        errors = [error for _, _, error in done if error is not None]
        failed = [f"{one.name}: {error.message}" for one, _, error in done if error is not None]
        failed += [f"{one.name} still runs" for one, _, _ in done if is_running(one)]
        if failed:
            transient = bool(errors) and all(isinstance(error, Transient) for error in errors)
            kind = Transient if transient else OperationError
            raise kind(f"not stopped: {'; '.join(failed)}", data={"stopped": stopped})
        point("job.half_stopped")
    return stopped


def _order_text(levels: Iterable[list[ContainerSnapshot]]) -> str:
    return ", then ".join(names(level) for level in levels)


@implements(STOP)
class Stop(NoUndo[StopParams]):
    """Stops the containers. The job's start step repairs a partial stop."""

    def change(self, ctx: Context, params: StopParams, before: dict[str, Any]) -> Change:
        docker = engine()
        worker, snapshot = recall(docker, ctx, params)
        order = _order_text(reversed(in_order(snapshot.kept)))
        yield Prediction(f"would stop {order}" if order else "none of these containers runs", changed=bool(order))
        if worker is None:
            raise OperationError("the job container was removed outside of this run: no container was stopped")
        if worker.started_at is not None and not worker.running:
            # A run that Redis lost after this step: its stack may be running again.
            return Outcome(changed=False, data={"stopped": []})
        with lock_projects(ctx, docker, params, snapshot):
            stopped = stop_all(docker, snapshot.kept, params.timeout)
        point("job.stopped")
        return Outcome(changed=bool(stopped), data={"stopped": stopped})


@implements(START)
class Start(NoUndo[StartParams]):
    """Starts the containers of the snapshot. A failed start is reported and does not prevent the others."""

    def change(self, ctx: Context, params: StartParams, before: dict[str, Any]) -> Change:
        docker = engine()
        _, snapshot = recall(docker, ctx, params)
        order = _order_text(in_order(snapshot.kept))
        yield Prediction(f"would start {order}" if order else "nothing to start", changed=bool(order))
        with lock_projects(ctx, docker, params, snapshot):
            worker = worker_of(docker, ctx, params)
            if worker is not None and worker.running:
                ctx.log(f"worker {worker.name} still runs and is stopped")
                docker.stop(worker.id, params.grace)
            stack = _StackStart(ctx, docker, snapshot, params.timeout, way_back.stored(ctx, params))
            stack.start()
            if "stop" in ctx.results and ctx.results["stop"].status in _INTERRUPTED:
                stack.keep_started(params.stop_timeout)
        point("job.restarted")
        data = {"started": stack.started, "down": list(stack.failed)}
        if stack.failed:
            why = "; ".join(f"{name}: {error.message}" for name, error in stack.failed.items())
            if all(isinstance(error, Transient) for error in stack.failed.values()):
                raise Transient(why, data=data)
            raise Unsuccessful(f"{len(stack.failed)} of {len(snapshot.kept)} containers not started: {why}", data=data)
        return Outcome(changed=bool(stack.started), data=data)


@dataclass
class _StackStart:
    """The start of all containers of a snapshot."""

    ctx: Context
    docker: Engine
    snapshot: Snapshot
    timeout: float
    #: By container id.
    described: dict[str, Description] = field(default_factory=dict)

    def start(self) -> None:
        self.started: list[str] = []
        self.failed: dict[str, OperationError] = {}
        conditions: dict[tuple[str, str], set[str]] = {}
        for one in self.snapshot.kept:
            for service, condition in one.depends_on.items():
                conditions.setdefault((one.project, service), set()).add(condition)
        for level in in_order(self.snapshot.kept):
            for one in level:
                try:
                    self._start(one)
                except (StepCancelled, StepTimeout):
                    raise
                except OperationError as error:
                    self.failed[one.name] = error
            point("job.half_started")
            awaited = [
                one
                for one in level
                if "service_healthy" in conditions.get((one.project, one.service), ()) and not one.paused
            ]
            late = wait_until_well(self.ctx, self.docker, awaited, self.timeout, settle=0.0)
            for name, why in late.items():
                self.ctx.log(f"{name} {why} after {self.timeout:g} s; its dependents are started anyway")

    def keep_started(self, seconds: float) -> None:
        """Restart containers that exit within this time, since the engine may still execute requested stops."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self.ctx.sleep(min(1.0, seconds))
            for one in self.snapshot.kept:
                with contextlib.suppress(OperationError):  # reported already, or by the following step
                    self._start(one)

    def _start(self, one: ContainerSnapshot) -> None:
        container = now_of(self.docker, one) or self._recreated(one)
        if self.docker.start(container.id):
            self.started.append(one.name)
        if one.paused:
            with contextlib.suppress(OperationError):  # paused by another program meanwhile
                self.docker.pause(container.id)

    def _present(self) -> dict[str, str]:
        """The present ids of the other containers, by their ids before the job."""
        there = {one.id: now_of(self.docker, one) for one in self.snapshot.kept}
        return {key: container.id for key, container in there.items() if container is not None}

    def _recreated(self, one: ContainerSnapshot) -> Container:
        """Create a container again that was removed meanwhile: as it was described, else with Compose."""
        if one.id in self.described:
            self.ctx.log(f"{one.name} was removed during the job: it is created again as it was")
            create_all(self.docker, [self.described[one.id]], self._present())
            made = self.docker.inspect(one.name)
            if made is not None:
                return made
        source = self.snapshot.source(one.project)
        if source is None or not one.service:
            raise OperationError("removed during the job, and its Compose files are unknown")
        self.ctx.log(f"{one.name} was removed during the job: Compose creates it again")
        kept = {(other.project, other.service, other.number) for other in self.snapshot.kept}
        ran = {member.id for member in members(self.docker, one.project) if member.running}
        Compose(self.ctx, self.docker).up(source, [one.service], ["--no-recreate", "--no-deps"])
        for member in members(self.docker, one.project):
            # Compose starts all containers of the service, including those that did not run before.
            if member.service == one.service and member.id not in ran and (one.project, *member.key) not in kept:
                self.docker.stop(member.id)
        made = now_of(self.docker, one)
        if made is None:
            raise OperationError("removed during the job, and Compose did not create it again")
        return made


def now_of(docker: Engine, one: ContainerSnapshot) -> Container | None:
    """The container, or its present replacement in the project."""
    container = docker.inspect(one.id)
    if container is not None or not one.service:
        return container
    same = docker.containers({PROJECT: one.project})
    return next((c for c in same if Member.of(c).key == (one.service, one.number)), None)


def wait_until_well(
    ctx: Context, docker: Engine, kept: list[ContainerSnapshot], timeout: float, *, settle: float = _SETTLE
) -> dict[str, str]:
    """Wait until all are healthy, and return the others with the reasons. A container that was unhealthy before the job
    only has to run.
    """
    end, check = time.monotonic() + timeout, HealthCheck(min(settle, timeout / 2))
    while True:
        now = time.monotonic()
        waiting: dict[str, str] = {}
        hopeless = True
        for one in kept:
            container = now_of(docker, one)
            why = "was removed" if container is None else _not_yet(one, container, check)
            if container is not None and not container.running and not container.exit_code and one.ends:
                why = ""
            if why:
                waiting[one.name] = why
                over = container is None or (not container.running and container.restart_policy.get("Name") == "no")
                hopeless = hopeless and over
        if not waiting or hopeless or now >= end:
            return waiting
        ctx.sleep(min(_POLL, max(0.01, end - now)))


def _not_yet(one: ContainerSnapshot, container: Container, check: HealthCheck) -> str:
    if one.ill == "restarting" or (one.paused and container.running):
        return ""
    runs_ill = one.ill and container.running and not container.restarting and container.health is not None
    return "" if runs_ill else check.problem(container)


def _colon(reason: str | None) -> str:
    return f": {reason}" if reason else ""


def _standings(ctx: Context, docker: Engine, snapshot: Snapshot) -> list[dict[str, Any]]:
    return [standing(ctx, docker, project, back=True) for project in snapshot.projects]


@implements(HEALTHY)
class Healthy(NoUndo[HealthyParams]):
    """Awaits the health of all containers, and reports the unhealthy ones."""

    def change(self, ctx: Context, params: HealthyParams, before: dict[str, Any]) -> Change:
        docker = engine()
        _, snapshot = recall(docker, ctx, params)
        yield Prediction(f"would wait until these are healthy: {names(snapshot.kept)}", changed=False)
        down = wait_until_well(ctx, docker, list(snapshot.kept), params.timeout)
        data: dict[str, Any] = {
            "healthy": [one.name for one in snapshot.kept if one.name not in down and not one.ill],
            "down": list(down),
            "as_before": [f"{one.name} ({one.ill})" for one in snapshot.kept if one.ill and one.name not in down],
        }
        if down:
            there = {one.name: found.id for one in snapshot.kept if (found := now_of(docker, one)) is not None}
            evidence = collect(ctx, docker, [there[name] for name in down if name in there])
            reasons = {one["container"]: reason_of(one) for one in evidence}
            why = "; ".join(f"{name} {how}" + _colon(reasons.get(name)) for name, how in down.items())
            data |= {"evidence": evidence, "standing": _standings(ctx, docker, snapshot)}
            raise Unsuccessful(f"{len(down)} of {len(snapshot.kept)} containers not healthy: {why}", data=data)
        # After a success the report needs no word about production.
        work = ctx.results["work"].status if "work" in ctx.results else StepState.CHANGED
        if work not in STEP_GOOD:
            data["standing"] = _standings(ctx, docker, snapshot)
        return data

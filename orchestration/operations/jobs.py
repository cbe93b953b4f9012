"""The steps of a job: a stack is stopped while a job container processes its volumes."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import Field

from longshore.orchestration.language.durations import Duration
from longshore.orchestration.operations.base import (
    BACKOFF,
    READ_ONLY,
    About,
    Kind,
    Operation,
    Params,
    Result,
    Retry,
    Undo,
    register,
)
from longshore.orchestration.operations.compose import NO_WAY_BACK, NoWayBack
from longshore.orchestration.operations.docker.fields import Text
from longshore.orchestration.operations.docker.programs import RunResult

Seconds = Annotated[Duration, Field(gt=0)]


class JobParams(Params):
    """A step of a job. A label of the job container records the containers that ran before."""

    job: str = Field(min_length=1, description="Name of the job")
    stacks: list[str] = Field([], description="Stacks to stop as a whole")
    containers: list[str] = Field([], description="Further containers to stop")
    beside: list[str] = Field([], description="Further stacks to lock")
    run: str = Field("", description="The run that created the job container; by default this run")


class JobMount(Params):
    """An existing volume and its path in the job container."""

    volume: str
    path: str
    mode: Literal["ro", "rw"] = "ro"


class WorkerParams(JobParams):
    """The job container is not started. A label of the job container lists the containers that run now."""

    image: str = Field(min_length=1, description="An image on the host")
    command: list[Text] = Field([], description="Replaces the command of the image")
    env: dict[str, Text] = Field(
        {},
        description="Environment variables, in addition to LONGSHORE_JOB_NAME, LONGSHORE_RUN_ID and LONGSHORE_STACK",
    )
    mounts: list[JobMount] = Field([], description="Volumes of the job container")
    no_way_back: NoWayBack = NO_WAY_BACK
    make: bool = Field(default=True, description="false: fail if the job container does not exist")
    plan_record: str = Field("{}", description="Record from which Longshore rebuilds the run if Redis loses it")


class StopParams(JobParams):
    """Each container stops before the containers that it depends on. Independent containers stop in parallel."""

    timeout: Seconds = Field(30.0, description="Time between TERM and KILL; a longer time of a container applies")


class WorkParams(JobParams):
    """The step waits for the end of the job container."""

    timeout: Seconds = Field(3600.0, description="Time limit of the job container, before TERM")
    grace: Duration = Field(10.0, description="Time between TERM and KILL")
    stop_timeout: Seconds = Field(30.0, description="Time to stop containers that were restarted meanwhile")
    env: dict[str, Text] = Field({}, description="Secret variables; the output has *** in place of their values")
    begin: bool = Field(default=True, description="false: fail if the job container has not been started before")


class StartParams(JobParams):
    """Containers start after the containers that they depend on. The step creates containers again that were removed
    since. A job container that still runs is stopped first.
    """

    timeout: Seconds = Field(30.0, description="Time for each dependency to become healthy")
    stop_timeout: Seconds = Field(
        30.0, description="After an interrupted stop: time in which containers that still stop are restarted"
    )
    grace: Duration = Field(10.0, description="Time between TERM and KILL for a job container that still runs")


class HealthyParams(JobParams):
    """A container that was unhealthy before the job only has to run."""

    timeout: Seconds = Field(30.0, description="Time for the containers to become healthy")


class RemoveParams(JobParams):
    """The step keeps the job container if the stack was not started again."""

    keep_failed: bool = Field(default=False, description="Also keep a failed job container")


class WorkerResult(Result):
    """`snapshot.kept` lists the running containers, and `snapshot.sources` the Compose files of their projects."""

    id: str
    name: str
    snapshot: dict[str, Any] = {}


class StopResult(Result):
    """The stopped containers, in order."""

    stopped: list[str] = []


class WorkResult(RunResult):
    """The exit of the job container, and the last 64 KiB of each output stream."""

    timed_out: bool = False


class StartResult(Result):
    """The started containers, in order; `down` lists those that did not start."""

    started: list[str] = []
    down: list[str] = []


class HealthyResult(Result):
    """`down` lists the containers that do not run or are not healthy. `as_before` lists the other containers that were
    unhealthy before the job. If the job container did not succeed, `standing` describes the running version of each
    stack.
    """

    healthy: list[str] = []
    down: list[str] = []
    as_before: list[str] = []
    standing: list[dict[str, Any]] = []


class RemoveResult(Result):
    """If the container was not removed, `kept` is the reason."""

    removed: bool
    kept: str = ""


#: After a stack was stopped, the steps retry an unreachable engine for some minutes.
_PATIENT = Retry(attempts=10, initial=1.0, maximum=30.0)


def _job(
    verb: str,
    params: type[Params],
    result: type[Result],
    summary: str,
    about: About,
    kind: Kind,
    *,
    retry: Retry = _PATIENT,
) -> Operation:
    secrets = frozenset({"env"}) if "env" in params.model_fields else frozenset()
    return register(
        name=f"job.{verb}", params=params, result=result, queue="docker", summary=summary, about=about, kind=kind,
        undo=Undo.NONE, secrets=secrets, retry=retry,
    )  # fmt: skip


WORKER = _job(
    "worker.execute",
    WorkerParams,
    WorkerResult,
    "Create a job container, and record the running containers",
    About(
        changed="the container was created",
        undo="none: the step `remove` of the job removes the container",
        duplicate="finds the container by its label",
        fails="if a stack, a container, a volume or the image does not exist; if a container to stop was created with "
        "--rm; if one could not be created again (`no_way_back`)",
        dry_run="checks stacks, containers and volumes, and lists the containers to stop",
    ),
    Kind.CONVERGES,
    retry=BACKOFF,
)
STOP = _job(
    "stop.execute",
    StopParams,
    StopResult,
    "Stop the stacks and containers of a job",
    About(
        changed="a container ran",
        undo="none: the step `start` of the job always runs",
        duplicate="stops the containers that still run",
        fails="if a container does not stop, or the job container was removed",
        dry_run="lists the containers to stop, in order",
    ),
    Kind.CONVERGES,
    retry=BACKOFF,  # a failing stop must not leave the stack partly down for long
)
WORK = _job(
    "work.execute",
    WorkParams,
    WorkResult,
    "Run a job container to completion, once",
    About(
        changed="the job container ran",
        undo="none",
        duplicate="waits for the started container, or reads its exit code",
        fails="if the job container exits with a code other than 0, or exceeds `timeout`",
        dry_run="names the container that would run",
    ),
    Kind.ACTS,
)
START = _job(
    "start.execute",
    StartParams,
    StartResult,
    "Restart exactly the containers that ran before a job",
    About(
        changed="a container did not run",
        undo="none",
        duplicate="starts the containers that do not run",
        fails="if a container does not start; the step still starts all others",
        dry_run="lists the containers to start, in order",
    ),
    Kind.CONVERGES,
)
HEALTHY = _job(
    "healthy.get",
    HealthyParams,
    HealthyResult,
    "Wait until the containers that ran before a job are healthy again",
    replace(
        READ_ONLY,
        duplicate="waits again",
        fails="if a container does not run, or is not healthy within `timeout`",
        dry_run="lists the containers to wait for",
    ),
    Kind.READ_ONLY,
)
REMOVE = _job(
    "remove.execute",
    RemoveParams,
    RemoveResult,
    "Remove a job container",
    About(
        changed="the container was removed",
        undo="none",
        duplicate="finds the container removed, or removes it",
        dry_run="predicts the removal",
    ),
    Kind.CONVERGES,
)

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
from longshore.orchestration.operations.compose_params import NO_WAY_BACK, NoWayBack
from longshore.orchestration.operations.docker.fields import Text
from longshore.orchestration.operations.docker.programs import RunResult

Seconds = Annotated[Duration, Field(gt=0)]


#: Descriptions that several steps share.
_STACKS = "Stacks that the job stops as a whole"
_CONTAINERS = "Further containers that the job stops"


class JobParams(Params):
    """A step of a job. A label of the job container records the containers that ran before."""

    job: str = Field(min_length=1, description="Name of the job")
    stacks: list[str] = Field([], description=_STACKS)
    containers: list[str] = Field([], description=_CONTAINERS)
    beside: list[str] = Field([], description="Further stacks that the job locks")
    run: str = Field("", description="The run that created the job container; by default this run")


class _LockingParams(JobParams):
    """A step that holds the locks of the stacks."""

    stacks: list[str] = Field([], description=f"{_STACKS}; the step locks these stacks")
    beside: list[str] = Field([], description="Further stacks that the step locks")


class _OutsideParams(JobParams):
    """A step that neither locks nor changes the stacks."""

    stacks: list[str] = Field([], description=f"{_STACKS}; the step does not change these stacks")
    containers: list[str] = Field([], description=f"{_CONTAINERS}; the step does not change these containers")


class JobMount(Params):
    """An existing volume and its path in the job container."""

    volume: str
    path: str
    mode: Literal["ro", "rw"] = "ro"


class WorkerParams(JobParams):
    """The job container is not started. A label of the job container lists the running containers of `stacks` and
    `containers`, which the later steps of the job stop and start.
    """

    image: str = Field(min_length=1, description="An image on the host")
    command: list[Text] = Field([], description="Replaces the command of the image")
    env: dict[str, Text] = Field(
        {},
        description="Environment variables, in addition to LONGSHORE_JOB_NAME, LONGSHORE_RUN_ID and LONGSHORE_STACK",
    )
    mounts: list[JobMount] = Field([], description="Volumes of the job container")
    no_way_back: NoWayBack = NO_WAY_BACK
    make: bool = Field(default=True, description="false: fail if the job container does not exist")
    plan_record: str = Field(
        "{}", description="The job as JSON; if Redis loses the run, Longshore creates the run again from this text"
    )


class StopParams(_LockingParams):
    """The step stops the containers that `job.worker.execute` has recorded. Each container stops before the containers
    that it depends on. Independent containers stop in parallel.
    """

    timeout: Seconds = Field(
        30.0, description="Time between TERM and KILL; a longer `stop_grace_period` of a container applies instead"
    )


class WorkParams(_LockingParams):
    """If containers that `job.stop.execute` has stopped run again, the step first stops these containers."""

    timeout: Seconds = Field(3600.0, description="Time limit of the job container, after which the container gets TERM")
    grace: Duration = Field(10.0, description="Time between TERM and KILL for the job container")
    stop_timeout: Seconds = Field(
        30.0, description="Time between TERM and KILL for containers that run again after `job.stop.execute`"
    )
    env: dict[str, Text] = Field({}, description="Variables with secrets; the output has *** in place of their values")
    begin: bool = Field(default=True, description="false: fail if the job container has not been started before")


class StartParams(_LockingParams):
    """The step starts the containers that `job.worker.execute` has recorded, dependencies first, and creates removed
    ones again. If the job container still runs, the step stops the job container first.
    """

    timeout: Seconds = Field(
        30.0, description="Time for dependencies to become healthy; afterwards, their dependents start anyway"
    )
    stop_timeout: Seconds = Field(
        30.0,
        description="After an interrupted `job.stop.execute`: the step restarts containers that stop within this time",
    )
    grace: Duration = Field(10.0, description="Time between TERM and KILL for the job container")


class HealthyParams(_OutsideParams):
    """A container that was unhealthy before the job only has to run."""

    timeout: Seconds = Field(30.0, description="Time for the containers to become healthy")


class RemoveParams(_OutsideParams):
    """The step keeps the job container if the step `start` or `healthy` of the job did not succeed."""

    keep_failed: bool = Field(default=False, description="Also keep a failed job container")


class WorkerResult(Result):
    """`snapshot.kept` lists the recorded containers, and `snapshot.sources` the Compose files of their projects."""

    id: str
    name: str
    snapshot: dict[str, Any] = {}


class StopResult(Result):
    """`stopped` lists the stopped containers, in order."""

    stopped: list[str] = []


class WorkResult(RunResult):
    """`stdout` and `stderr` have the last 64 KiB. `timed_out` is true if the job container exceeded `timeout`."""

    timed_out: bool = False


class StartResult(Result):
    """`started` lists the started containers, in order, and `down` the containers that did not start."""

    started: list[str] = []
    down: list[str] = []


class HealthyResult(Result):
    """`down` lists the containers that do not run or are not healthy. `as_before` lists the other containers that were
    unhealthy before the job. If the job did not succeed, `standing` has the images, revision and health of each
    project.
    """

    healthy: list[str] = []
    down: list[str] = []
    as_before: list[str] = []
    standing: list[dict[str, Any]] = []


class RemoveResult(Result):
    """If the step has kept the job container, `kept` is the reason."""

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
        changed="the step created the job container",
        undo="none: the step `remove` of the job removes the container",
        duplicate="finds the container by its label",
        fails="if a stack, a container, a volume or the image does not exist; if a container to stop was created with "
        "--rm; if its image is not on the host (unless `no_way_back: accept`)",
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
        changed="a container was running",
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
        changed="the job container was started",
        undo="none",
        duplicate="waits for the started container, or reads its exit code",
        fails="if the job container exits with a code other than 0, or exceeds `timeout`",
        dry_run="names the job and its time limit",
    ),
    Kind.ACTS,
)
START = _job(
    "start.execute",
    StartParams,
    StartResult,
    "Restart exactly the containers that ran before a job",
    About(
        changed="a container was not running",
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
        changed="the job container was removed",
        undo="none",
        duplicate="finds the container removed, or removes it",
        dry_run="predicts the removal",
    ),
    Kind.CONVERGES,
)

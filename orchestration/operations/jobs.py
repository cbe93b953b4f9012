"""The steps of a job: a stack is stopped while a job container processes its volumes."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from longshore.orchestration.language.durations import Duration
from longshore.orchestration.operations.base import (
    BACKOFF,
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
    """The job container is not started. Its label lists the containers that run at this time."""

    image: str = Field(min_length=1, description="An image on the host")
    command: list[Text] = Field([], description="By default the image's own")
    env: dict[str, Text] = Field(
        {}, description="In addition to LONGSHORE_JOB_NAME, LONGSHORE_RUN_ID and LONGSHORE_STACK"
    )
    mounts: list[JobMount] = Field([], description="Volumes of the job container")
    no_way_back: NoWayBack = NO_WAY_BACK
    make: bool = Field(default=True, description="false: the container exists and cannot be created again")
    plan_record: str = Field("{}", description="Record to rebuild the run if Redis loses the run")


class StopParams(JobParams):
    """Dependents stop first. Independent containers stop in parallel."""

    timeout: Seconds = Field(30.0, description="Time for each container to stop, before KILL")


class WorkParams(JobParams):
    """The step waits for the end of the job container."""

    timeout: Seconds = Field(3600.0, description="Time limit of the job container, before TERM")
    grace: Duration = Field(10.0, description="Time between TERM and KILL")
    stop_timeout: Seconds = Field(30.0, description="Time to stop containers that were restarted meanwhile")
    env: dict[str, Text] = Field({}, description="Secret variables, which the output does not show")
    begin: bool = Field(default=True, description="false: start no job container that was not started before")


class StartParams(JobParams):
    """Containers start after their dependencies."""

    timeout: Seconds = Field(30.0, description="Time for each dependency to become healthy")
    stop_timeout: Seconds = Field(30.0, description="Time to complete an interrupted stop")
    grace: Duration = Field(10.0, description="Time between TERM and KILL for a job container that still runs")


class HealthyParams(JobParams):
    """A container that was unhealthy before the job may be unhealthy afterwards."""

    timeout: Seconds = Field(30.0, description="Time for the containers to become healthy")


class RemoveParams(JobParams):
    """The job container is kept if the stack was not started again."""

    keep_failed: bool = Field(default=False, description="Keep a failed job container")


class WorkerResult(Result):
    """`snapshot.kept` has an entry for each running container, and `snapshot.sources` the files of their projects."""

    id: str
    name: str
    snapshot: dict[str, Any] = {}


class StopResult(Result):
    """The stopped containers, in order."""

    stopped: list[str] = []


class WorkResult(RunResult):
    """The result of the job container; `timed_out` if it exceeded its timeout."""

    timed_out: bool = False


class StartResult(Result):
    """The started containers, in order; `down` lists those that did not start."""

    started: list[str] = []
    down: list[str] = []


class HealthyResult(Result):
    """`down`: not running, or not healthy. `as_before`: unhealthy now and before the job."""

    healthy: list[str] = []
    down: list[str] = []
    as_before: list[str] = []
    standing: list[dict[str, Any]] = Field(
        [], description="The version of each stack that runs now: images, revision and health"
    )


class RemoveResult(Result):
    """`kept`: the reason why the container was not removed."""

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
        undo="none: the job's last step removes the container",
        duplicate="finds the container by the run in its label",
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
        undo="none: the job's start step always runs",
        duplicate="stops the containers that still run",
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
        undo="none: the effects of the job container remain",
        duplicate="waits for the started container, or reads its exit code",
        dry_run="names the container that would run",
        retried="temporary errors; a failed job container is not started again",
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
        dry_run="lists the containers to start, in order",
    ),
    Kind.CONVERGES,
)
HEALTHY = _job(
    "healthy.get",
    HealthyParams,
    HealthyResult,
    "Wait until the containers that ran before a job are healthy again",
    About(
        changed="never: the operation only reads",
        undo="none needed",
        duplicate="waits again",
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
        changed="the container existed",
        undo="none",
        duplicate="finds the container removed",
        dry_run="predicts the removal",
    ),
    Kind.CONVERGES,
)

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

    job: str = Field(min_length=1, description="The job's name")
    stacks: list[str] = Field([], description="Compose projects to stop as a whole")
    containers: list[str] = Field([], description="Further containers to stop")
    beside: list[str] = Field([], description="Stacks of which only a part is stopped; locked against other changes")
    run: str = Field("", description="The run that owns the worker, if it is another one")


class JobMount(Params):
    """An existing volume and its path in the job container."""

    volume: str
    path: str
    mode: Literal["ro", "rw"] = "ro"


class WorkerParams(JobParams):
    """The job container is created, not started; its label records the running containers."""

    image: str = Field(min_length=1, description="An image on the host")
    command: list[Text] = Field([], description="By default the image's own")
    env: dict[str, Text] = Field(
        {}, description="In addition to LONGSHORE_JOB_NAME, LONGSHORE_RUN_ID and LONGSHORE_STACK"
    )
    mounts: list[JobMount] = []
    no_way_back: NoWayBack = NO_WAY_BACK
    make: bool = Field(default=True, description="false: the container exists and cannot be created again")
    plan_record: str = Field("{}", description="The record from which the run is rebuilt if Redis loses it")


class StopParams(JobParams):
    """Dependents stop first; containers of one level stop in parallel."""

    timeout: Seconds = Field(30.0, description="Time for each container to stop before it is killed")


class WorkParams(JobParams):
    """The job container is started once; later attempts wait for it or read its exit code."""

    timeout: Seconds = Field(3600.0, description="From start to TERM")
    grace: Duration = Field(10.0, description="From TERM to KILL")
    stop_timeout: Seconds = Field(30.0, description="Time to stop containers that were restarted meanwhile")
    env: dict[str, Text] = Field({}, description="Secret variables of the worker, redacted from its output")
    begin: bool = Field(default=True, description="Start a worker that was not started yet")


class StartParams(JobParams):
    """Start exactly the containers that ran before, in dependency order."""

    timeout: Seconds = Field(30.0, description="Time for each dependency to become healthy")
    stop_timeout: Seconds = Field(30.0, description="Time to complete an interrupted stop")
    grace: Duration = Field(10.0, description="Between TERM and KILL for a worker that is still running")


class HealthyParams(JobParams):
    """Check that each container that ran before runs again, and is healthy if it was healthy before."""

    timeout: Seconds = 30.0


class RemoveParams(JobParams):
    """Remove the job container after its result is recorded; kept if the stack was not restarted."""

    keep_failed: bool = Field(default=False, description="Keep a failed worker")


class WorkerResult(Result):
    """`snapshot.kept` has one entry for each container that ran, `snapshot.sources` the files of their projects."""

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
    """`healthy`: healthy; `down`: unhealthy; `as_before`: unhealthy now and before the job."""

    healthy: list[str] = []
    down: list[str] = []
    as_before: list[str] = []
    standing: list[dict[str, Any]] = Field(
        [], description="The running version of each stack: images, revision and health"
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
        Operation(
            name=f"job.{verb}", params=params, result=result, queue="docker", summary=summary, about=about, kind=kind,
            undo=Undo.NONE, secrets=secrets, retry=retry,
        )
    )  # fmt: skip


WORKER = _job(
    "worker.execute",
    WorkerParams,
    WorkerResult,
    "Create a job container, which records the running containers",
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
        changed="the worker ran",
        undo="none: the effects of the worker stay",
        duplicate="waits for the started container, or reads its exit code",
        dry_run="names the container that would run",
        retried="an unreachable or busy engine; a failed worker is not started again",
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

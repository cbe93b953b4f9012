"""The steps of a job: a stack stands still while a worker container is at work on its volumes."""

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
from longshore.orchestration.operations.docker.fields import Text
from longshore.orchestration.operations.docker.programs import RunResult

Seconds = Annotated[Duration, Field(gt=0)]


class JobParams(Params):
    """A step of a job. What ran is known by the label of the run's worker container."""

    job: str = Field(min_length=1, description="The job's name")
    stacks: list[str] = Field([], description="Compose projects, all that runs of which stands still")
    containers: list[str] = Field([], description="Further containers that stand still")
    beside: list[str] = Field(
        [], description="Stacks that only a part of stands still for it: nobody else changes them"
    )
    run: str = Field("", description="The run whose worker it is, where that is another one")


class JobMount(Params):
    """A volume that is there, and where the work finds it."""

    volume: str
    path: str
    mode: Literal["ro", "rw"] = "ro"


class WorkerParams(JobParams):
    """The worker container is made, not started, and carries the list of what runs."""

    image: str = Field(min_length=1, description="On the host already")
    command: list[Text] = Field([], description="The image's own, if left out")
    env: dict[str, Text] = Field({}, description="Beside LONGSHORE_JOB_NAME, LONGSHORE_RUN_ID and LONGSHORE_STACK")
    mounts: list[JobMount] = []
    make: bool = Field(default=True, description="false: it has been made, and nobody can make it again")
    plan_record: str = Field("{}", description="What the run is made again by, should Redis lose it")


class StopParams(JobParams):
    """Dependents stop first, those of one level at once."""

    timeout: Seconds = Field(30.0, description="Of each container, until it is killed")


class WorkParams(JobParams):
    """Started once; who comes later waits for it, or reads how it ended."""

    timeout: Seconds = Field(3600.0, description="From its start to its TERM")
    grace: Duration = Field(10.0, description="From its TERM to its KILL")
    stop_timeout: Seconds = Field(30.0, description="Of what came up again since it was stopped")
    env: dict[str, Text] = Field({}, description="Of the worker's environment, what must not be told if it says it")
    begin: bool = Field(default=True, description="Whether one that was never started is started still")


class StartParams(JobParams):
    """Exactly what ran before, in the order of its dependencies."""

    timeout: Seconds = Field(30.0, description="That what others depend on has to be well")
    stop_timeout: Seconds = Field(30.0, description="How long a stop that was interrupted may still be carried out")
    grace: Duration = Field(10.0, description="For a worker that is still at work, because nobody could stop it")


class HealthyParams(JobParams):
    """That all that ran before runs, and is healthy where it has a health check and was healthy."""

    timeout: Seconds = 30.0


class RemoveParams(JobParams):
    """The worker container, once its result is recorded; it stays where the stack is not up again."""

    keep_failed: bool = Field(default=False, description="A worker that failed stays, too")


class WorkerResult(Result):
    """`snapshot.kept` is what ran, one entry a container; `snapshot.sources` the files of their projects."""

    id: str
    name: str
    snapshot: dict[str, Any] = {}


class StopResult(Result):
    """In the order in which they were stopped."""

    stopped: list[str] = []


class WorkResult(RunResult):
    """As of a container that runs once; and whether it had run out of its time."""

    timed_out: bool = False


class StartResult(Result):
    """In the order in which they were started; `down` could not be."""

    started: list[str] = []
    down: list[str] = []


class HealthyResult(Result):
    """`down` is not well, `as_before` was not well before either."""

    well: list[str] = []
    down: list[str] = []
    as_before: list[str] = []


class RemoveResult(Result):
    """`kept`: why it was not removed."""

    removed: bool
    kept: str = ""


#: Once a stack has been stopped, an engine that is away is waited for, for some minutes.
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
    "Make a job's worker container, which remembers what runs",
    About(
        changed="it was made",
        undo="none: the job's last step removes it",
        duplicate="finds the container by the run in its label",
        dry_run="checks stacks, containers and volumes, and says what would be stopped",
    ),
    Kind.CONVERGES,
    retry=BACKOFF,
)
STOP = _job(
    "stop.execute",
    StopParams,
    StopResult,
    "Stop what a job needs to stand still",
    About(
        changed="something ran",
        undo="none of its own: the job's start step always comes",
        duplicate="stops what still runs",
        dry_run="says what would be stopped, in order",
    ),
    Kind.CONVERGES,
    retry=BACKOFF,  # a stop that does not succeed must not keep the stack half down for long
)
WORK = _job(
    "work.execute",
    WorkParams,
    WorkResult,
    "Run a job's worker to its end, once",
    About(
        changed="it ran",
        undo="none: what it did stays done",
        duplicate="waits for the container that was started, or reads how it ended",
        dry_run="says what would be run",
        retried="an engine that does not answer or is busy; a worker that failed is not started again",
    ),
    Kind.ACTS,
)
START = _job(
    "start.execute",
    StartParams,
    StartResult,
    "Start again exactly what ran before a job",
    About(
        changed="something did not run",
        undo="none",
        duplicate="starts what does not run",
        dry_run="says what would be started, in order",
    ),
    Kind.CONVERGES,
)
HEALTHY = _job(
    "healthy.get",
    HealthyParams,
    HealthyResult,
    "Wait until what ran before a job is well again",
    About(
        changed="never: it only looks",
        undo="nothing to take back",
        duplicate="looks again",
        dry_run="says what would be waited for",
    ),
    Kind.READ_ONLY,
)
REMOVE = _job(
    "remove.execute",
    RemoveParams,
    RemoveResult,
    "Remove a job's worker container",
    About(
        changed="it was there",
        undo="none",
        duplicate="finds nothing to remove",
        dry_run="says that it would be removed",
    ),
    Kind.CONVERGES,
)

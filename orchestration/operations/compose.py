"""Compose projects, as a whole or by service."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from longshore.orchestration.operations.base import (
    NO_RETRY,
    READ_ONLY,
    About,
    Kind,
    Operation,
    Params,
    Result,
    Undo,
    register,
)
from longshore.orchestration.operations.command import (
    COMMAND_ABOUT,
    CommandResult,
    is_read_only_command,
    repeatable,
)
from longshore.orchestration.operations.compose_params import (
    BuildParams,
    ConfigParams,
    DownParams,
    PsParams,
    PullParams,
    RestartParams,
    RollbackParams,
    ServiceExecParams,
    ServiceRunParams,
    StartParams,
    StopParams,
    UpParams,
)
from longshore.orchestration.operations.docker.programs import FAILED_RUN, RUN_ABOUT, RunResult


class ContainerState(Result):
    """One container of a project."""

    id: str
    name: str
    service: str
    status: str
    health: str | None = None
    image_id: str
    config_hash: str


class UpResult(Result):
    """Each list of text has names of containers. `containers` has the containers after the step. `revision` is the path
    of the applied configuration. `standing` has the images, revision and health of the project after the step.
    """

    project: str
    created: list[str] = []
    recreated: list[str] = []
    started: list[str] = []
    removed: list[str] = []
    unchanged: list[str] = []
    containers: list[ContainerState] = []
    revision: str | None = None
    standing: list[dict[str, Any]] = []


class RollbackResult(UpResult):
    """The result of `compose.up.execute`, and `to`, the number of the revision that runs after the step."""

    to: int


class ConfigResult(Result):
    """Each service has `image`, `hash` (of its configuration), `replicas`, `depends_on` and `build` (true or false).
    `sha256` is the digest of the resolved configuration.
    """

    project: str
    services: dict[str, dict[str, Any]] = {}
    #: Hash of the resolved files as a whole.
    sha256: str = ""


class PsResult(Result):
    """Each container has `id`, `name`, `service`, `number`, `status`, `health`, `image_id`, `config_hash`, `exit_code`,
    `restart_count` and `one_off`. `revisions` lists the revisions for `compose.rollback.execute`, the latest last. Each
    has `number`, `at` (seconds since 1970), `run` and `services` (with image ids).
    """

    project: str
    exists: bool = False
    containers: list[dict[str, Any]] = []
    revisions: list[dict[str, Any]] = []


class ImagesResult(Result):
    """`images` has for each tag the image ids `before` and `after` the step; null for none."""

    project: str
    images: dict[str, dict[str, str | None]] = {}


class DownResult(Result):
    """`removed` has the names of the removed containers."""

    project: str
    removed: list[str] = []


class StopResult(Result):
    """`stopped` has the names of the stopped containers."""

    project: str
    stopped: list[str] = []


class StartResult(Result):
    """`started` has the names of the started containers."""

    project: str
    started: list[str] = []


class RestartResult(Result):
    """`restarted` has the names of the restarted containers."""

    project: str
    restarted: list[str] = []


def _compose(
    verb: str, params: type[Params], result: type[Result], summary: str, about: About | None, **more: Any
) -> Operation:
    said: dict[str, Any] = {"kind": Kind.CONVERGES, "undo": Undo.FULL} | more
    name = f"compose.{verb}"
    return register(name=name, params=params, result=result, queue="compose", summary=summary, about=about, **said)


_LOOKS: dict[str, Any] = {"kind": Kind.READ_ONLY, "undo": Undo.NONE, "about": READ_ONLY}
_FILES = "if the files are invalid or use an unset variable"
UNHEALTHY = "a service is not healthy within `healthy_deadline`"
NO_WAY = "the image of an existing container is not on the host (unless `no_way_back: accept`)"
_MOVED_TAGS = "restores the former tags, or removes new ones; fails if a tag was moved since"

UP = _compose(
    "up.execute",
    UpParams,
    UpResult,
    "Create or update the containers of a project, and wait until they are healthy",
    About(
        changed="a container was created, replaced, started or removed, or a pull fetched another image",
        undo="restores the former configuration, images and running containers; of a new project, removes the "
        "containers and networks. Fails if the project was changed since",
        duplicate="waits for the lock of the project, and completes the changes of the first attempt",
        fails=f"{_FILES}; if an image is neither on the host nor pulled; if {NO_WAY}; if {UNHEALTHY}",
        dry_run="lists the services that would change, with reasons",
    ),
    secrets=frozenset({"auth"}),
)
DOWN = _compose(
    "down.execute",
    DownParams,
    DownResult,
    "Remove the containers and networks of a project",
    About(
        changed="a container or network was removed",
        undo="creates the containers again, and starts those that ran. Anonymous volumes, and data written inside of "
        "the containers, are lost",
        duplicate="removes the remaining containers and networks",
        fails=f"if {NO_WAY}; if Compose reports an error",
    ),
    undo=Undo.PARTIAL,
)
STOP = _compose(
    "stop.execute",
    StopParams,
    StopResult,
    "Stop running containers of a project",
    About(
        changed="a container was running",
        undo="starts the containers that ran before the step, and pauses those that were paused; fails if one was "
        "removed since",
        duplicate="stops the containers that still run",
        fails="if another program starts a container during the step; if only `project` is given, and this project has "
        "no containers",
    ),
)
START = _compose(
    "start.execute",
    StartParams,
    StartResult,
    "Start stopped containers of a project",
    About(
        changed="a container was not running",
        undo="stops the containers that did not run before the step",
        duplicate="starts the containers that do not run",
        fails=f"if a service has no container; if {UNHEALTHY}",
    ),
)
RESTART = _compose(
    "restart.execute",
    RestartParams,
    RestartResult,
    "Restart running containers of a project",
    About(
        changed="a container was running",
        undo="starts containers that ran before the step and do not run now",
        duplicate="skips containers that were started since the step began",
        fails=f"if a service has no container; if {UNHEALTHY}",
        dry_run="lists the containers to restart",
    ),
    kind=Kind.ACTS,
)
PULL = _compose(
    "pull.execute",
    PullParams,
    ImagesResult,
    "Pull the images of a project",
    About(
        changed="a tag refers to another image than before",
        undo=f"{_MOVED_TAGS}. Layers stay on disk",
        duplicate="pulls again; complete layers are not downloaded again",
        fails=f"{_FILES}, or a registry has no such image or refuses the access",
        dry_run="compares the digests on the host with those of the registries",
    ),
    undo=Undo.PARTIAL,
    secrets=frozenset({"auth"}),
)
BUILD = _compose(
    "build.execute",
    BuildParams,
    ImagesResult,
    "Build the images of a project",
    About(
        changed="a tag refers to another image than before",
        undo=f"{_MOVED_TAGS}. Layers and build cache stay on disk",
        duplicate="builds again, with the cache of the engine",
        fails=f"{_FILES}, no service has a `build` section, or a build fails",
        dry_run="lists the services to build",
    ),
    undo=Undo.PARTIAL,
)
ROLLBACK = _compose(
    "rollback.execute",
    RollbackParams,
    RollbackResult,
    "Roll a project back to an earlier revision",
    About(
        changed="a container was created, replaced, started or removed",
        undo="restores the former configuration, images and running containers; fails if the project was changed since",
        duplicate="waits for the lock of the project, and completes the changes of the first attempt",
        fails=f"if the revision or one of its images does not exist; if {NO_WAY}; if {UNHEALTHY}",
        dry_run="lists the services that would change, with reasons",
    ),
)
CONFIG = _compose(
    "config.get",
    ConfigParams,
    ConfigResult,
    "Get the resolved configuration of a project",
    **_LOOKS | {"about": replace(READ_ONLY, fails=_FILES)},
)
PS = _compose("ps.get", PsParams, PsResult, "List the containers and revisions of a project", **_LOOKS)
EXEC = _compose(
    "exec.execute",
    ServiceExecParams,
    CommandResult,
    "Run a program inside a container of a service",
    replace(COMMAND_ABOUT, fails=f"if the container does not run; {COMMAND_ABOUT.fails}"),
    kind=Kind.ACTS,
    undo=Undo.NONE,
    retry=NO_RETRY,
    repeatable=repeatable,
    is_read_only_command=is_read_only_command,
    secrets=frozenset({"env", "stdin"}),
)
RUN = _compose(
    "run.execute",
    ServiceRunParams,
    RunResult,
    "Run a one-off container of a service to completion",
    replace(
        RUN_ABOUT,
        fails=f"{_FILES}, the image is not on the host, {FAILED_RUN}",
        dry_run="shows the command, and whether the image is on the host",
    ),
    kind=Kind.ACTS,
    undo=Undo.PARTIAL,
    secrets=frozenset({"env"}),
)

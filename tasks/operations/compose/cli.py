"""Compose by its own program: what a project's files say, and the changes that only it can make."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from longshore.orchestration.errors import NotAllowed, OperationError, Preflight, Transient
from longshore.orchestration.operations.compose import ProjectParams
from longshore.orchestration.settings import get_settings
from longshore.tasks.host import addresses, paths, policy, secret_sources
from longshore.tasks.host.allow_lists import within
from longshore.tasks.host.engine.factory import own_project
from longshore.tasks.host.engine.port import Engine
from longshore.tasks.host.machine import process
from longshore.tasks.host.machine.live import Live
from longshore.tasks.implementation import Context, unfit
from longshore.tasks.operations.compose import reads

PROJECT = "com.docker.compose.project"
#: Where Docker itself looks for its plugins. Called directly, the plugin is twice as fast, and a killed
#: worker takes it along: through `docker` it would be a grandchild, and go on.
_PLUGIN_FOLDERS = (
    "/usr/local/lib/docker/cli-plugins",
    "/usr/local/libexec/docker/cli-plugins",
    "/usr/lib/docker/cli-plugins",
    "/usr/libexec/docker/cli-plugins",
)
#: Given to Compose out of the worker's environment. None of COMPOSE_*: they would change what a plan means.
_PASSED = (
    "PATH",
    "HOME",
    "LANG",
    "DOCKER_CONFIG",
    "DOCKER_CERT_PATH",
    "DOCKER_TLS_VERIFY",
    "XDG_RUNTIME_DIR",
    "SSH_AUTH_SOCK",
)
_PASSED_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy")
#: A file of a project includes files of this host only, and none of a repository or registry.
_NO_REMOTES = {"COMPOSE_EXPERIMENTAL_GIT_REMOTE": "false", "COMPOSE_EXPERIMENTAL_OCI_REMOTE": "false"}
#: Where no engine is.
_NOBODY = "unix:///nonexistent/docker.sock"
_LIMIT = 8 * 1024 * 1024
_GRACE = 1.0
_UNSET = re.compile(r'The \\?"([^"\\]+)\\?" variable is not set')
_PROGRESS = re.compile(r"\s*(Container|Network|Volume|Image) ")
#: These pass by waiting; the first because Compose races with its own cleaning up after a crash.
_PASSING = (
    "is already in use by container",
    "cannot connect to the docker daemon",
    "connection refused",
    "connection reset",
    "no such host",
    "i/o timeout",
    "tls handshake timeout",
    "toomanyrequests",
    "unexpected eof",
    "already in progress",
)


@dataclass(frozen=True)
class Source:
    """The files that make a project."""

    project: str | None = None
    directory: str | None = None
    files: tuple[str, ...] = ()
    env_files: tuple[str, ...] = ()
    profiles: tuple[str, ...] = ()

    def is_kept(self) -> bool:
        """Reports whether the source is a resolved configuration that a worker has kept, and no folder's project."""
        kept = os.path.join(os.path.realpath(get_settings().state_dir), "revisions")
        whole = all(file == "-" or within(os.path.realpath(file), kept) for file in self.files)
        return whole and (bool(self.files) or self.directory is None) and not self.env_files

    def options(self) -> list[str]:
        said = ["--project-name", self.project] if self.project else []
        said += ["--project-directory", self.directory] if self.directory else []
        for option, values in (
            ("--file", self.files),
            ("--env-file", self.env_files),
            ("--profile", self.profiles),
        ):
            said += [word for value in values for word in (option, value)]
        return said


@dataclass(frozen=True)
class Resolved:
    """A project's configuration with nothing left open. `text` may hold secrets."""

    project: str
    text: str
    services: dict[str, dict[str, Any]]
    hashes: dict[str, str]
    source: Source = field(default_factory=Source)
    #: Where there are to be others than the files say.
    counts: Mapping[str, int] = field(default_factory=dict)

    def image(self, service: str) -> str:
        return str(self.services[service].get("image") or f"{self.project}-{service}")

    def replicas(self, service: str) -> int:
        if service in self.counts:
            return self.counts[service]
        said = self.services[service]
        deploy = said.get("deploy") or {}
        return int(deploy.get("replicas", said.get("scale", 1)))

    def with_dependencies(self, names: list[str]) -> list[str]:
        """The services and, before them, what they depend on; all if none is named."""
        found: dict[str, None] = {}

        def add(name: str) -> None:
            if name not in found and name in self.services:
                for other in self.services[name].get("depends_on") or {}:
                    add(other)
                found[name] = None

        for name in names or self.services:
            add(name)
        return list(found)

    def jobs(self) -> set[str]:
        """Services that are meant to end: another one waits for their end."""
        return {
            name
            for said in self.services.values()
            for name, how in (said.get("depends_on") or {}).items()
            if how.get("condition") == "service_completed_successfully"
        }


def source_of(params: ProjectParams, recorded: Source | None) -> Source:
    """The files that the parameters name, else those that the project's containers were made from."""
    if params.project_dir is None and not params.files:
        if recorded is None:
            raise Preflight(f"nothing is known of project {params.project!r}", remedy="give project_dir as well")
        return _admitted(recorded)
    directory = params.project_dir

    def absolute(named: list[str]) -> tuple[str, ...]:
        return tuple(os.path.join(directory or "/", path) for path in named)

    files, env_files = absolute(params.files), absolute(params.env_file)
    return _admitted(Source(params.project, directory, files, env_files, tuple(params.profiles)))


def _admitted(source: Source) -> Source:
    """NotAllowed where it leads to files that this worker may not read; labels of containers may name any."""
    for path in (*([source.directory] if source.directory else []), *source.files, *source.env_files):
        paths.require(path)
    return source


def check_build(build: Mapping[str, Any]) -> None:
    """What is read to build a service: folders that the worker may read, or hosts that it may talk to."""
    for context in (build.get("context"), *(build.get("additional_contexts") or {}).values()):
        if not context or str(context).startswith(("service:", "docker-image://")):
            continue
        if not os.path.isabs(str(context)):
            addresses.check(addresses.endpoint(str(context)).name)
            continue
        root = paths.require_tree(str(context))
        dockerfile = os.path.join(root, str(build.get("dockerfile") or "Dockerfile"))
        if context == build.get("context") and not within(os.path.realpath(dockerfile), root):
            paths.require(dockerfile)


class Compose:
    """Compose for one attempt: cancelled with it, on the same engine."""

    def __init__(self, ctx: Context, docker: Engine) -> None:
        self._ctx = ctx
        self._docker, self._url = docker, docker.url

    def resolve(self, source: Source, services: list[str] | None = None) -> Resolved:
        """What the files say. An error, if they are wrong or leave a variable open.

        A service that is named is there also if its profile is not asked for.
        """
        every = replace(source, profiles=("*",))
        done = self._run(every if services else source, "config", "--format", "json")
        said = json.loads(done.stdout)
        project, known = said["name"], said.get("services") or {}
        for name in services or []:
            if name not in known:
                remedy = f"it has {', '.join(sorted(known))}"
                raise unfit(self._ctx, f"project {project} has no service {name!r}", remedy)
        policy.check_project(project, said)
        for service in known.values():
            check_build(service.get("build") or {})
        if (own := own_project()) != project:
            names = [str((volume or {}).get("name") or key) for key, volume in (said.get("volumes") or {}).items()]
            for name in names:
                policy.check_existing_volume(self._docker.volume(name), own)
        # The hash of the files themselves leaves out what they include; that of the outcome is the label's.
        itself = Source(project, source.directory, ("-",), (), ("*",))
        listed = self._run(itself, "config", "--hash", "*", stdin=done.stdout).stdout
        hashes = dict(line.split() for line in listed.splitlines() if line.strip())
        return Resolved(project, done.stdout, known, hashes, source)

    def services(self, source: Source) -> set[str]:
        """All that the files tell of, those of profiles that are not asked for as well."""
        return set(self._run(replace(source, profiles=("*",)), "config", "--services").stdout.split())

    def up(self, source: Source, services: list[str], options: list[str]) -> None:
        words = ["up", "--detach", "--no-build", "--pull", "never", *options, *services]
        try:
            self._run(source, *words)
        except Transient as error:
            # After a crash in the middle of a replacement the first try clears up, and fails.
            if "already in use" not in error.message:
                raise
            self._ctx.sleep(0.5)
            self._run(source, *words)

    def create(self, source: Source, services: list[str], scale: dict[str, int]) -> None:
        """Make containers as the files say, replacing those that differ; start none."""
        words = [word for name, count in scale.items() for word in ("--scale", f"{name}={count}")]
        self._run(source, "create", "--no-build", "--pull", "never", *words, *services)

    def build(self, source: Source, services: list[str], options: list[str]) -> None:
        self._run(source, "build", *options, *services, said=Live(self._ctx))

    def run(self, source: Source, service: str, options: list[str], command: list[str]) -> None:
        """Make and start a container of a service that is on its own."""
        self._run(source, "run", "--detach", "--no-deps", "--no-TTY", *options, service, *command)

    def stop(self, project: str, services: list[str], grace: float | None) -> None:
        words = [] if grace is None else ["--timeout", str(round(grace))]
        self._run(Source(project), "stop", *words, *services)

    def down(self, source: Source, grace: float | None, *, orphans: bool) -> None:
        words = [] if grace is None else ["--timeout", str(round(grace))]
        self._run(source, "down", *words, *(["--remove-orphans"] if orphans else []))

    def _run(
        self,
        source: Source,
        *words: str,
        stdin: str | None = None,
        said: Callable[[int, bytes], None] = lambda _stream, _piece: None,
    ) -> process.Completed:
        if not source.is_kept():
            reads.check(source.directory, source.files, source.env_files)
        own = {name: os.environ[name] for name in _PASSED if name in os.environ}
        # To read files it asks the engine how it is, and needs no answer.
        own |= {"DOCKER_HOST": _NOBODY if words[0] == "config" else self._url, "COMPOSE_MENU": "false"} | _NO_REMOTES
        try:
            done = process.run(
                [*_program(), "--ansi", "never", *source.options(), *words],
                # Without files of its own Compose would take those that lie in the worker's folder.
                cwd=source.directory or "/",
                env=own,
                stdin=None if stdin is None else stdin.encode(),
                check=self._ctx.check,
                began=self._ctx.began,
                said=said,
                # Whoever cancels waits for it; what it leaves half done is healed all the same.
                grace=_GRACE,
                limit=_LIMIT,
            )
        except Preflight as error:
            raise unfit(self._ctx, error.message, error.remedy) from error
        if words[0] == "config" and secret_sources.holds_own(done.stdout):
            # Files of a project name others, of variables for instance.
            raise NotAllowed("the project's files lead to this worker's own keys or Redis URL")
        done = replace(done, stderr=secret_sources.own_access().text(done.stderr))
        unset = dict.fromkeys(_UNSET.findall(done.stderr))
        if unset and words[0] == "config":
            what = f"the project's files use what is not set: {', '.join(unset)}"
            raise unfit(self._ctx, what, "set it in .env or in the step's env_file")
        if done.exit_code:
            failure = _classified(words[0], done)
            is_read_only_command = words[0] == "config" and not isinstance(failure, Transient)
            raise unfit(self._ctx, failure.message, failure.remedy) if is_read_only_command else failure
        if done.truncated:
            raise OperationError(f"compose {words[0]} said more than {_LIMIT} bytes")
        return done


def _program() -> list[str]:
    own = Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker") / "cli-plugins"
    for folder in (str(own), *_PLUGIN_FOLDERS):
        plugin = os.path.join(folder, "docker-compose")
        if os.access(plugin, os.X_OK):
            return [plugin]
    return ["docker", "compose"]


def _classified(verb: str, done: process.Completed) -> OperationError:
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip() and not _PROGRESS.match(line)]
    lines = [line for line in lines if "level=warning" not in line]
    # "Error response from daemon:" and its like are said last.
    said = lines[-1] if lines else f"exit code {done.exit_code}"
    said = re.sub(r"^(Error response from daemon|Error|error):\s*", "", said)
    low = said.lower()
    what = f"compose {verb}: {said}"
    if any(text in low for text in _PASSING) or done.exit_code == 130:
        return Transient(what)
    if "is not a docker command" in low or "unknown command: docker compose" in low:
        return Preflight("Docker Compose is not installed", remedy="install the plugin docker-compose, 2.20 or newer")
    remedy = ""
    if "no such image" in low or "not found: manifest" in low or done.exit_code == 18:
        remedy = "pull or build the image in a step before"
    elif "ambiguous" in low:
        remedy = "two networks have that name (docker network ls): remove one"
    elif "port is already allocated" in low or "address already in use" in low:
        remedy = "stop what holds the port, or choose another"
    return OperationError(what, remedy=remedy)

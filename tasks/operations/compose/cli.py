"""Runs the Compose program: to resolve a project's files, and for the changes that only Compose can make."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from longshore.orchestration.errors import NotAllowed, OperationError, Preflight, Transient
from longshore.orchestration.operations.compose_params import ProjectParams
from longshore.orchestration.settings import get_settings
from longshore.tasks.host import addresses, paths, policy, secret_sources
from longshore.tasks.host.allow_lists import within
from longshore.tasks.host.engine.factory import own_project
from longshore.tasks.host.engine.port import Engine
from longshore.tasks.host.machine import process
from longshore.tasks.implementation import Context, unfit
from longshore.tasks.operations.compose import command_lines, reads
from longshore.tasks.operations.compose.injected import variables

PROJECT = "com.docker.compose.project"
#: Docker's plugin folders. A direct call of the plugin is twice as fast, and the plugin dies with a killed worker:
#: through `docker` it would be a grandchild and continue.
_PLUGIN_FOLDERS = (
    "/usr/local/lib/docker/cli-plugins",
    "/usr/local/libexec/docker/cli-plugins",
    "/usr/lib/docker/cli-plugins",
    "/usr/libexec/docker/cli-plugins",
)
#: Variables that Compose gets from the worker's environment. COMPOSE_* would change the meaning of a plan.
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
#: A project may include files of this host only, and none of a repository or registry.
_NO_REMOTES = {"COMPOSE_EXPERIMENTAL_GIT_REMOTE": "false", "COMPOSE_EXPERIMENTAL_OCI_REMOTE": "false"}
#: A URL without an engine.
_NO_ENGINE = "unix:///nonexistent/docker.sock"
_LIMIT = 8 * 1024 * 1024
_GRACE = 1.0
_UNSET = re.compile(r'The \\?"([^"\\]+)\\?" variable is not set')
_PROGRESS = re.compile(r"\s*(Container|Network|Volume|Image) ")
#: Transient errors; the first occurs because Compose races with its own clean-up after a crash.
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
    """The files of a project."""

    project: str | None = None
    directory: str | None = None
    files: tuple[str, ...] = ()
    env_files: tuple[str, ...] = ()
    profiles: tuple[str, ...] = ()

    def is_kept(self) -> bool:
        """Reports whether the source is a resolved configuration in a worker's state folder."""
        kept = os.path.join(os.path.realpath(get_settings().state_dir), "revisions")
        whole = all(file == "-" or within(os.path.realpath(file), kept) for file in self.files)
        return whole and (bool(self.files) or self.directory is None) and not self.env_files

    def options(self) -> list[str]:
        words = ["--project-name", self.project] if self.project else []
        words += ["--project-directory", self.directory] if self.directory else []
        for option, values in (
            ("--file", self.files),
            ("--env-file", self.env_files),
            ("--profile", self.profiles),
        ):
            words += [word for value in values for word in (option, value)]
        return words


@dataclass(frozen=True)
class Resolved:
    """A project's resolved configuration. `text` may contain secrets."""

    project: str
    text: str
    services: dict[str, dict[str, Any]]
    hashes: dict[str, str]
    source: Source = field(default_factory=Source)
    #: Replica counts that override the files.
    counts: Mapping[str, int] = field(default_factory=dict)
    #: Descriptions of containers, for a configuration without files, which Compose cannot apply.
    containers: tuple[Mapping[str, Any], ...] = ()

    @property
    def config(self) -> Mapping[str, Any]:
        """The whole configuration, parsed."""
        config: Mapping[str, Any] = json.loads(self.text)
        return config

    def image(self, service: str) -> str:
        return str(self.services[service].get("image") or f"{self.project}-{service}")

    def replicas(self, service: str) -> int:
        if service in self.counts:
            return self.counts[service]
        config = self.services[service]
        deploy = config.get("deploy") or {}
        return int(deploy.get("replicas", config.get("scale", 1)))

    def with_dependencies(self, names: list[str]) -> list[str]:
        """The named services, or all, each after its dependencies."""
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
        """One-shot services: another service depends on their successful end."""
        return {
            name
            for config in self.services.values()
            for name, dependency in (config.get("depends_on") or {}).items()
            if dependency.get("condition") == "service_completed_successfully"
        }


def source_of(params: ProjectParams, recorded: Source | None) -> Source:
    """The files that the parameters name, else the files that the project's containers were created from."""
    if params.project_dir is None and not params.files:
        if recorded is None:
            raise Preflight(f"the files of project {params.project!r} are unknown", remedy="set project_dir as well")
        return _admitted(recorded)
    directory = params.project_dir

    def absolute(named: list[str]) -> tuple[str, ...]:
        return tuple(os.path.join(directory or "/", path) for path in named)

    files, env_files = absolute(params.files), absolute(params.env_file)
    return _admitted(Source(params.project, directory, files, env_files, tuple(params.profiles)))


def _admitted(source: Source) -> Source:
    """Raise NotAllowed for files that this worker may not read; labels of containers may name any file."""
    for path in (*([source.directory] if source.directory else []), *source.files, *source.env_files):
        paths.require(path)
    return source


def check_build(build: Mapping[str, Any]) -> None:
    """Check the contexts of a build: folders that the worker may read, or hosts that it may connect to."""
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
    """The Compose program for one attempt: on the attempt's engine, and cancelled with the attempt."""

    def __init__(self, ctx: Context, docker: Engine) -> None:
        self._ctx = ctx
        self._docker, self._url = docker, docker.url

    def resolve(self, source: Source, services: list[str] | None = None) -> Resolved:
        """Resolve the files. Raises an error if they are invalid or use an unset variable.

        The result includes a named service also if its profile is not active.
        """
        every = replace(source, profiles=("*",))
        done = self.execute(every if services else source, command_lines.CONFIG)
        config = json.loads(done.stdout)
        project, known = config["name"], config.get("services") or {}
        for name in services or []:
            if name not in known:
                remedy = f"choose one of {', '.join(sorted(known))}"
                raise unfit(self._ctx, f"project {project} has no service {name!r}", remedy)
        self.require_variables(source, config)
        policy.check_project(project, config)
        for service in known.values():
            check_build(service.get("build") or {})
        if (own := own_project()) != project:
            names = [str((volume or {}).get("name") or key) for key, volume in (config.get("volumes") or {}).items()]
            for name in names:
                policy.check_existing_volume(self._docker.volume(name), own)
        # Compose labels containers with the hash of the resolved files; the hash of the files omits their includes.
        resolved = Source(project, source.directory, ("-",), (), ("*",))
        listed = self.execute(resolved, command_lines.HASHES, stdin=done.stdout).stdout
        hashes = dict(line.split() for line in listed.splitlines() if line.strip())
        return Resolved(project, done.stdout, known, hashes, source)

    def require_variables(self, source: Source, config: Mapping[str, Any]) -> None:
        """Raise an error for an unset variable of a secret or config: Compose misses it only at a container's creation,
        when the former container is stopped already.
        """
        names = variables(config)
        if not names:
            return
        text = json.dumps({"services": {"x": {"image": "x", "environment": {name: f"${{{name}}}" for name in names}}}})
        directory = source.directory or (os.path.dirname(source.files[0]) if source.files else None)
        asked = replace(source, directory=directory, files=("-",), profiles=("*",))
        self.execute(asked, command_lines.CHECK, stdin=text)

    def services(self, source: Source) -> set[str]:
        """All services in the files, including the services of inactive profiles."""
        return set(self.execute(replace(source, profiles=("*",)), command_lines.SERVICES).stdout.split())

    def up(self, source: Source, services: list[str], options: list[str]) -> None:
        command = command_lines.up(services, options)
        try:
            self.execute(source, command)
        except Transient as error:
            # After a crash during a replacement, the first call cleans up and fails.
            if "already in use" not in error.message:
                raise
            self._ctx.sleep(0.5)
            self.execute(source, command)

    def execute(
        self,
        source: Source,
        command: list[str],
        *,
        stdin: str | None = None,
        on_output: Callable[[int, bytes], None] = lambda _stream, _piece: None,
    ) -> process.Completed:
        """Run a command of `command_lines` on the files of a project."""
        if stdin is None and not source.is_kept():
            reads.check(source.directory, source.files, source.env_files)
        own = {name: os.environ[name] for name in _PASSED if name in os.environ}
        # `config` queries the engine and needs no response.
        own["DOCKER_HOST"] = _NO_ENGINE if command[0] == "config" else self._url
        own |= {"COMPOSE_MENU": "false"} | _NO_REMOTES
        try:
            done = process.run(
                [*_program(), "--ansi", "never", *source.options(), *command],
                # Without files, Compose would read the files in the worker's folder.
                cwd=source.directory or "/",
                env=own,
                stdin=None if stdin is None else stdin.encode(),
                check=self._ctx.check,
                began=self._ctx.began,
                on_output=on_output,
                # A cancelled run waits for this grace; later attempts and undos repair a partial change.
                grace=_GRACE,
                limit=_LIMIT,
            )
        except Preflight as error:
            raise unfit(self._ctx, error.message, error.remedy) from error
        if command[0] == "config" and secret_sources.holds_own(done.stdout):
            # The files of a project refer to other files, such as env files.
            raise NotAllowed(
                "the project's files refer to this worker's keys or Redis URL", remedy="remove these references"
            )
        done = replace(done, stderr=secret_sources.own_access().text(done.stderr))
        unset = dict.fromkeys(_UNSET.findall(done.stderr))
        if unset and command[0] == "config":
            what = f"the project's files use unset variables: {', '.join(unset)}"
            raise unfit(self._ctx, what, "set them in .env or in the step's env_file")
        if done.exit_code:
            failure = _classified(command[0], done)
            is_read_only_command = command[0] == "config" and not isinstance(failure, Transient)
            raise unfit(self._ctx, failure.message, failure.remedy) if is_read_only_command else failure
        if done.truncated:
            raise OperationError(f"the output of compose {command[0]} exceeds {_LIMIT} bytes")
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
    # The error, such as "Error response from daemon:", is the last line.
    why = lines[-1] if lines else f"exit code {done.exit_code}"
    why = re.sub(r"^(Error response from daemon|Error|error):\s*", "", why)
    low = why.lower()
    what = f"compose {verb}: {why}"
    if any(text in low for text in _PASSING) or done.exit_code == 130:
        return Transient(what)
    all_of_it = done.stderr.lower()  # the advice of docker's own command line is the last line
    if "is not a docker command" in all_of_it or "unknown command: docker compose" in all_of_it:
        return Preflight("Docker Compose is not installed", remedy="install the plugin docker-compose, 2.20 or newer")
    remedy = ""
    if "no such image" in low or "not found: manifest" in low or done.exit_code == 18:
        remedy = "pull or build the image in an earlier step"
    elif "ambiguous" in low:
        remedy = "remove one of the two networks of that name (docker network ls)"
    elif "port is already allocated" in low or "address already in use" in low:
        remedy = "stop the process that holds the port, or choose another port"
    return OperationError(what, remedy=remedy)

"""Inspection of a host: its running Compose projects, compared with their files, images and registries.

One call lists all containers and another all images. The resolved configuration of a project comes from the cache as
long as none of its files has changed.
"""

from __future__ import annotations

import glob
import os
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from longshore.orchestration.errors import BadIdentifier, OperationError, StepCancelled, StepTimeout, Transient
from longshore.orchestration.language import identifiers
from longshore.orchestration.operations.stacks import Demand, InspectParams, ServiceSpec, StackSpec
from longshore.orchestration.stacks.image_names import normal, registry_of
from longshore.orchestration.stacks.inventory import RATE_LIMITED, Inventory, Project, Remote, Replica, Service, Tracked
from longshore.orchestration.stacks.rules import AFTER, FILES, counts, parse_after, parse_files, required_action
from longshore.orchestration.store.caches import digest_of
from longshore.tasks.host.engine.port import Container, Engine, Image, Login, seconds_of
from longshore.tasks.implementation import Context
from longshore.tasks.operations.compose import revisions
from longshore.tasks.operations.compose.bad_versions import bad_versions
from longshore.tasks.operations.compose.cli import PROJECT, Compose, Resolved, Source
from longshore.tasks.operations.compose.config_hashes import aliases, hash_of_files
from longshore.tasks.operations.compose.config_inputs import changed_files, known_inputs, note_inputs
from longshore.tasks.operations.compose.inputs import digest_of_file, inputs_of
from longshore.tasks.operations.compose.project import identity
from longshore.tasks.operations.stacks.start_facts import Start, keep_starts, starts

_LABEL = "com.docker.compose."
#: Fields of a service that its files determine.
_OF_FILES = {"image", "hash", "replicas", "restart", "profiled", "depends_on", "declared"}
_EXITED = re.compile(r"(?:Exited|Restarting|Dead) \((-?\d+)\)")
_HEALTH = re.compile(r"\((healthy|unhealthy|health: starting)\)")
#: The maximum number of tracked files per service.
_FILES = 1000
#: Exit codes after SIGINT and SIGTERM.
_ASKED = {130, 143}
_KILLED = 137
_COMES_BACK = {"always", "unless-stopped"}
#: Seconds without queries to a registry after its rate limit.
_LIMITED = 900.0


@dataclass
class HostInspection:
    """One inspection of a host. `known`: a trusted earlier inventory. Without `read`, changed files are not read."""

    ctx: Context
    docker: Engine
    params: InspectParams
    known: Inventory | None = None
    read: bool = True
    #: Earlier responses of registries.
    remotes: Mapping[str, Remote] = field(default_factory=dict)
    #: Whether to store observed configurations and starts on the host, for undos after a change of the files.
    keep: bool = False
    _images: dict[str, Image] = field(default_factory=dict)
    _starts: dict[str, Start] = field(default_factory=dict)
    _events: dict[str, list[str]] = field(default_factory=dict)
    #: The aliases of the project under inspection.
    _aliases: dict[str, str] = field(default_factory=dict)

    def look(self, project: str | None = None) -> Inventory:
        """The inventory of all projects, or of one. Unreadable files are recorded as the error of their project."""
        engine = identity(self.docker)
        self._starts = starts(engine)
        rules = rules_of(self.params)
        if self.known is not None and (self.known.engine, self.known.rules) != (engine, rules):
            self.known = None
        label = PROJECT if project is None else f"{PROJECT}={project}"
        all_rows = self.docker.rows({"label": [label]}, all_of_them=True)
        rows = [row for row in all_rows if self._counts(row)]
        self._images = _index(self.docker.images())
        self._events = self._ends(rows)
        by_project: dict[str, list[dict[str, Any]]] = {}
        for row in rows:
            by_project.setdefault(row["Labels"][PROJECT], []).append(row)
        projects = {}
        for name, its_rows in sorted(by_project.items()):
            self.ctx.check()
            projects[name] = self._project(name, its_rows)
        seen = self._with_registries(Inventory(engine=engine, rules=rules, projects=projects))
        if self.keep:
            keep_starts(engine, seen, {row["Id"]: self._starts.get(row["Id"], Start()) for row in all_rows})
        return seen

    def _counts(self, row: Mapping[str, Any]) -> bool:
        """Reports whether a container counts: no one-off container, and of a selected project."""
        if not row["Names"] or row["Labels"].get(f"{_LABEL}oneoff", "False") == "True":
            return False
        return counts(row["Labels"][PROJECT], self.params.only)

    # --- one project ------------------------------------------------------------------------------

    def _project(self, name: str, rows: list[dict[str, Any]]) -> Project:
        try:
            self._aliases = aliases(identifiers.project(name))
        except BadIdentifier as error:  # a label may contain any text
            return self._filled(Project(error=error.message, unknown=True), rows, StackSpec())
        was = self.known.projects.get(name) if self.known else None
        source = _source(name, rows)
        spec = self.params.stacks.get(name, StackSpec())
        after = sorted({*spec.after, *(p for row in rows for p in parse_after(row["Labels"].get(AFTER, "")))} - {name})
        if source is None:
            why = "the labels of its containers name no Compose files"
            return self._filled(Project(after=after, error=why, unknown=True), rows, spec)
        paths, known = inputs_of(source)
        inputs = {path: digest_of_file(path) for path in sorted(paths)}
        same = was is not None and was.inputs == inputs and known and was.files == list(source.files)
        base = Project(
            directory=source.directory or "", files=list(source.files), inputs=inputs, known=known, after=after
        )
        # Files are read each time if their list is incomplete or the last read failed.
        settled = same and was is not None and not was.error
        if was is not None and (settled or (known and not self.read)):
            # The files are unchanged, or their digests show the change.
            services = {
                name: Service(**one.model_dump(include=_OF_FILES)) for name, one in was.services.items() if one.hash
            }
            base = base.model_copy(update={"services": services, "error": was.error})
        elif self.read or not known:
            base = self._resolved(base, source, {row["Labels"].get(f"{_LABEL}config-hash", "") for row in rows})
        return self._filled(base, rows, spec)

    def _resolved(self, base: Project, source: Source, running: set[str]) -> Project:
        try:
            resolved = Compose(self.ctx, self.docker).resolve(replace(source, profiles=("*",)))
        except (StepCancelled, StepTimeout, Transient):
            raise
        except OperationError as error:
            return base.model_copy(update={"error": f"its files are invalid: {error.message}"})
        if self.keep and running & set(resolved.hashes.values()):
            revisions.keep_seen(resolved)
        return base.model_copy(update={"services": {name: _service_of(resolved, name) for name in resolved.services}})

    def _filled(self, base: Project, rows: list[dict[str, Any]], spec: StackSpec) -> Project:
        """The project with its present containers, images and files."""
        by_service: dict[str, list[dict[str, Any]]] = {}
        for row in rows:
            by_service.setdefault(row["Labels"].get(f"{_LABEL}service", ""), []).append(row)
        services = {}
        for name in sorted({*base.services, *by_service}):
            service = base.services.get(name, Service())
            services[name] = self._service(service, by_service.get(name, []), base, spec, name)
        project = rows[0]["Labels"][PROJECT]
        found = {} if base.unknown else known_inputs(project)
        for name, service in services.items():
            differ = [one for one in service.containers if service.hash and one.hash != service.hash]
            if differ:
                changes = {one.id: changed_files(found, one.hash, base.inputs) for one in differ}
                containers = [one.model_copy(update={"changed": changes.get(one.id, [])}) for one in service.containers]
                services[name] = service.model_copy(update={"containers": containers})
        if self.keep and not base.unknown:
            running = {one.hash for service in services.values() for one in service.containers}
            note_inputs(project, running & {service.hash for service in services.values()}, base.inputs)
        return base.model_copy(update={"services": services})

    def _service(
        self, service: Service, rows: list[dict[str, Any]], base: Project, spec: StackSpec, name: str
    ) -> Service:
        labels: dict[str, str] = dict(rows[0]["Labels"]) if rows else {}
        wrong = ""
        try:
            of_label = parse_files(labels.get(FILES, ""))
        except ValueError as error:
            of_label, wrong = {}, f"label {FILES}: {error}"
        own = spec.services.get(name, ServiceSpec()).files
        # The most specific rule comes first.
        rules = [own, spec.files, of_label]
        paths = _files(rows, base.directory, [own, of_label], spec.files)
        files = {path: _tracked(path, base.directory, rules) for path in paths}
        image = self._images.get(normal(service.image)) if service.image else None
        containers = [self._replica(row, files, service) for row in rows]
        return service.model_copy(
            update={
                "image_id": image.id if image else None,
                "files": files,
                "containers": sorted(containers, key=lambda one: (one.number, one.name)),
                "labels": {key: value for key, value in sorted(labels.items()) if not key.startswith("com.docker.")},
                "label_error": wrong,
            }
        )

    # --- one container ----------------------------------------------------------------------------

    def _replica(self, row: Mapping[str, Any], files: Mapping[str, Tracked], service: Service) -> Replica:
        labels, state, status = row["Labels"], row["State"], row.get("Status") or ""
        hashed = labels.get(f"{_LABEL}config-hash", "")
        code = _EXITED.search(status)
        health = _HEALTH.search(status)
        exit_code = int(code[1]) if code and state in {"exited", "dead"} else None
        found = Replica(
            id=row["Id"],
            name=row["Names"][0].removeprefix("/"),
            number=int(labels.get(f"{_LABEL}container-number") or 0),
            image_id=row["ImageID"],
            hash=hash_of_files(self._aliases, labels.get(f"{_LABEL}service", ""), hashed),
            state=state,
            health=health[1].removeprefix("health: ") if health else None,
            exit_code=exit_code,
        )
        if state == "exited":
            return found.model_copy(update={"by_hand": self._by_hand(found, service)})
        if not found.runs or not files:
            return found
        start, was = _start_of(row), self._starts.get(found.id, Start())
        if start and was.start == start and files.keys() <= was.files.keys():
            return found.model_copy(update={"start": start, "files": {path: was.files[path] for path in files}})
        return self._with_files(found, row, files, was, start)

    def _with_files(
        self, found: Replica, row: Mapping[str, Any], files: Mapping[str, Tracked], was: Start, start: str
    ) -> Replica:
        """The replica with the digests of its files at its start, as far as the modification times determine these."""
        changed = {path: _changed_at(path) for path in files}
        # Files older than the container need no inspection of its start. `Created` is in whole seconds.
        started = float(row["Created"]) if max(changed.values()) < float(row["Created"]) else None
        if started is None or not start:
            inspected = self.docker.inspect(found.id)
            started = seconds_of(inspected.started_at) if inspected and inspected.started_at else time.time()
        start = start or str(started)
        kept = was.files if was.start == start else {}
        digests = {
            path: kept.get(path, tracked.digest if changed[path] <= started else "") for path, tracked in files.items()
        }
        return found.model_copy(update={"start": start, "files": digests})

    def _ends(self, rows: Iterable[Mapping[str, Any]]) -> dict[str, list[str]]:
        """The engine's events of exited containers, by container."""
        ended = {row["Id"] for row in rows if row["State"] == "exited"}
        found: dict[str, list[str]] = {}
        if ended:
            for event in self.docker.events(("start", "die", "stop"), 0.0, time.time()):
                if event["Actor"]["ID"] in ended:
                    found.setdefault(event["Actor"]["ID"], []).append(event["Action"])
        return found

    def _by_hand(self, found: Replica, service: Service) -> bool:
        """Reports whether a container was stopped on purpose, by the engine's events, else the stored start, else its
        exit code.
        """
        events = self._events.get(found.id, [])
        if "start" in events:
            events = events[len(events) - events[::-1].index("start") :]
        if "stop" in events:
            return True
        if "die" in events:
            return False
        known = self._starts.get(found.id, Start()).by_hand
        if known is not None:
            return known
        # A container with an always-restart policy that does not run was stopped.
        return found.exit_code in _ASKED or (found.exit_code == _KILLED and service.restart in _COMES_BACK)

    # --- registries -------------------------------------------------------------------------------

    def _with_registries(self, seen: Inventory) -> Inventory:
        """The inventory with the present or earlier responses of the registries."""
        known = self.remotes
        remotes: dict[str, Remote] = {}
        limited = {
            registry_of(ref)
            for ref, one in known.items()
            if one.error == RATE_LIMITED and time.time() - one.at < _LIMITED
        }
        projects = {}
        for name, project in seen.projects.items():
            services = {}
            failed = [] if project.unknown else bad_versions(name)
            for service_name, service in project.services.items():
                image, in_use = service.image, bool(service.hash and service.containers)
                if in_use and image and image not in remotes and "@" not in image:
                    self.ctx.check()
                    remote = self._remote(image, known.get(image), limited)
                    remotes |= {image: remote} if remote is not None else {}
                newer = self._newer(service, remotes)
                bad = [one for one in failed if one.is_of(service_name, service.hash, newer or service.image_id or "")]
                services[service_name] = service.model_copy(
                    update={"newer": newer, "failed": str(bad[-1]) if bad else ""}
                )
            projects[name] = project.model_copy(update={"services": services})
        return seen.model_copy(update={"projects": projects, "remotes": remotes})

    def _remote(self, ref: str, was: Remote | None, limited: set[str]) -> Remote | None:
        now, registry = time.time(), registry_of(ref)
        image = self._images.get(normal(ref))
        here = image.id if image else ""
        if was is not None and was.image_id != here:
            was = None  # the local image changed since
        if not self.params.registry or registry in limited:
            missing = Remote(at=now, error=RATE_LIMITED, image_id=here) if self.params.registry else None
            return was or missing
        if was is not None and not was.error and now - was.at < self.params.registry_every:
            return was
        login = self.params.registries.get(registry)
        try:
            credentials = Login(login.username, login.password) if login else None
            return Remote(digest=self.docker.remote_digest(ref, login=credentials), at=now, image_id=here)
        except OperationError as error:
            low = error.message.lower()
            if "toomanyrequests" in low or "too many requests" in low or "rate limit" in low:
                limited.add(registry)
                return Remote(digest=was.digest if was else "", at=now, error=RATE_LIMITED, image_id=here)
            # Without a digest, the service counts as up to date.
            return Remote(at=now, error=error.message[:200], image_id=here)

    def _newer(self, service: Service, remotes: Mapping[str, Remote]) -> str:
        remote = remotes.get(service.image)
        image = self._images.get(normal(service.image))
        if remote is None or not remote.digest or (image is not None and image.is_at(remote.digest)):
            return ""
        # A locally built image, without a registry digest, is never replaced from the registry.
        return remote.digest if image is None or image.digests else ""


def rules_of(params: InspectParams) -> str:
    """A digest of the parameters that influence an inspection's result."""
    return digest_of(params.model_dump(mode="json", include={"stacks", "only"}))[:16]


# --- container rows ---------------------------------------------------------------------------------


def _source(name: str, rows: Iterable[Mapping[str, Any]]) -> Source | None:
    found = [
        Container(row["Id"], "", "", "", labels=dict(row["Labels"]), started_at=f"{int(row['Created']):020}")
        for row in rows
    ]
    return revisions.recorded_source(name, found)


def _start_of(row: Mapping[str, Any]) -> str:
    """The identity of a container's start, from its network endpoints, which each start creates; '' if it has none."""
    networks = (row.get("NetworkSettings") or {}).get("Networks") or {}
    return (
        digest_of(sorted(one.get("EndpointID") or "" for one in networks.values()))[:16]
        if any(one.get("EndpointID") for one in networks.values())
        else ""
    )


def _files(
    rows: Iterable[Mapping[str, Any]], directory: str, own: Iterable[Mapping[str, Demand]], shared: Mapping[str, Demand]
) -> list[str]:
    """Bind-mounted files, files that the service's own rules name, and mounted files that shared rules name."""
    mounted = {str(mount["Source"]) for row in rows for mount in row.get("Mounts") or [] if mount.get("Type") == "bind"}
    found = dict.fromkeys(source for source in sorted(mounted) if os.path.isfile(source))
    for pattern in (pattern for rules in own for pattern in rules):
        found |= dict.fromkeys(_named(pattern, directory))
    for pattern in shared:
        mounted_files = (
            path for path in _named(pattern, directory) if any(path.startswith(f"{source}/") for source in mounted)
        )
        found |= dict.fromkeys(mounted_files)
    return list(found)[:_FILES]


def _named(pattern: str, directory: str) -> list[str]:
    whole = os.path.normpath(os.path.join(directory or "/", pattern))
    paths = glob.glob(whole, recursive=True) or ([whole] if not glob.has_magic(whole) else [])
    return [file for path in sorted(paths) for file in _below(path)]


def _below(path: str) -> list[str]:
    if not os.path.isdir(path):
        return [path]
    found = [os.path.join(folder, name) for folder, _, names in os.walk(path) for name in names]
    return sorted(found)[:_FILES]


def _tracked(path: str, directory: str, rules: Iterable[Mapping[str, Demand]]) -> Tracked:
    return Tracked(digest=digest_of_file(path), requires=required_action(path, directory, rules))


def _changed_at(path: str) -> float:
    """The time of the last change of a file's content, link or permissions; 0 if it is missing."""
    try:
        return max(os.stat(path).st_ctime, os.lstat(path).st_ctime)
    except OSError:
        return 0.0


# --- configurations ---------------------------------------------------------------------------------


def _service_of(resolved: Resolved, name: str) -> Service:
    config = resolved.services[name]
    return Service(
        image=resolved.image(name),
        hash=resolved.hashes.get(name, ""),
        replicas=resolved.replicas(name),
        declared={key: str(value) for key, value in sorted((config.get("labels") or {}).items())},
        restart=str(config.get("restart") or ""),
        profiled=bool(config.get("profiles")),
        depends_on=sorted(config.get("depends_on") or {}),
    )


def _index(images: Iterable[Image]) -> dict[str, Image]:
    """Images by id and by each name."""
    found = {image.id: image for image in images}
    for image in list(found.values()):
        found |= {normal(name): image for name in (*image.tags, *image.digests)}
    return found

"""Job descriptions in the labels of containers and volumes.

longshore.job.enabled          true: this container is a target of a job
longshore.job.name             the job's name; containers with the same one are targets of one job
longshore.job.scope            what a run stops: stack (default), the containers of the targets' stacks; or containers
longshore.job.schedule         when beat starts it: five fields of cron, or @daily and the like
longshore.job.timezone         time zone of the schedule, UTC by default
longshore.job.missed           skip, once or all: which missed times are made up for
longshore.job.overlap-policy   queue, skip or cancel_running: how a start while the job runs is handled
longshore.job.worker.image     image of the job container
longshore.job.worker.command   its command, as a shell would split it
longshore.job.worker.pull      missing, always or never
longshore.job.worker.env.NAME  a variable of its environment
longshore.job.stop-timeout     time limit of the stop of each container, before it is killed
longshore.job.start-timeout    time limit until the stopped containers are healthy again
longshore.job.timeout          time limit of the worker
longshore.job.grace            time from the worker's SIGTERM to its SIGKILL
longshore.job.no-way-back      accept: run although the image of an existing container is not on the host;
                               refuse by default
longshore.stack                name of the stack, by default the Compose project

longshore.job.attach           on a volume: the jobs whose worker mounts it
longshore.job.mount.path       mount path, /mnt/<volume> by default
longshore.job.mount.mode       ro (default) or rw
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from longshore.orchestration.language.durations import parse_duration
from longshore.orchestration.language.schedule import Missed, Overlap, parse_cron, parse_zone
from longshore.orchestration.operations.compose_params import NoWayBack
from longshore.orchestration.plans.steps import NAME

PREFIX = "longshore.job."
STACK = "longshore.stack"
PROJECT = "com.docker.compose.project"
_ENV = "worker.env."

Pull = Literal["missing", "always", "never"]
Scope = Literal["stack", "containers"]


@dataclass(frozen=True)
class Finding:
    """A problem in a job description: its entity, field and message. A warning does not change the job."""

    kind: Literal["container", "volume", "job", "file", "host"]
    name: str
    field: str
    message: str
    warning: bool = False
    #: The job concerned, if known.
    job: str = ""
    #: Whether the job cannot run until the problem is corrected.
    unusable: bool = False

    def __str__(self) -> str:
        where = f"{self.kind} {self.name}"
        return f"{where}: {self.field}: {self.message}" if self.field else f"{where}: {self.message}"


@dataclass(frozen=True)
class Mount:
    """A named volume, mounted into the job container."""

    volume: str
    path: str
    mode: Literal["ro", "rw"] = "ro"


@dataclass(frozen=True)
class Job:
    """One job. Times in seconds.

    `targets` are names of containers, `stacks` those of their stacks; `host` runs the job, '' while it is unknown.
    """

    name: str
    image: str
    stacks: tuple[str, ...] = ()
    #: Compose projects of the targets, whatever the names of their stacks.
    projects: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    #: Targets outside of any stack.
    loose: tuple[str, ...] = ()
    scope: Scope = "stack"
    host: str = ""
    mounts: tuple[Mount, ...] = ()
    command: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    #: Environment variables from a file: the only ones in which templates are rendered.
    templated: frozenset[str] = frozenset()
    schedule: str = ""
    timezone: str = "UTC"
    missed: Missed = "once"
    overlap: Overlap = "queue"
    pull: Pull = "missing"
    stop_timeout: float = 30.0
    start_timeout: float = 30.0
    timeout: float = 3600.0
    grace: float = 10.0
    no_way_back: NoWayBack = "refuse"

    @property
    def standalone(self) -> tuple[str, ...]:
        """The targets to stop individually: all with scope `containers`, else those outside of any stack."""
        return self.targets if self.scope == "containers" else self.loose


@dataclass(frozen=True)
class Entity:
    """A container or volume with its labels, as listed by the engine."""

    kind: Literal["container", "volume"]
    name: str
    labels: Mapping[str, str]
    #: For a volume: labels that its Compose file declares, and that it does not have.
    lacking: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Discovered:
    """The jobs sorted by name, and the findings; an invalid field keeps its default."""

    jobs: tuple[Job, ...]
    findings: tuple[Finding, ...]

    @property
    def errors(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if not finding.warning)


def _one_of(kind: Any) -> Callable[[str], str]:
    words = get_args(kind)

    def read(text: str) -> str:
        word = text.strip().lower().replace("-", "_")
        if word not in words:
            raise ValueError(f"{text!r}: expected one of {', '.join(words)}")
        return word

    return read


def _seconds(text: str) -> float:
    seconds = parse_duration(text)
    if seconds <= 0:
        raise ValueError(f"{text!r}: expected a positive duration")
    return seconds


#: Each label of a container, without its prefix: the field of a job, and its parser.
_READ: Mapping[str, tuple[str, Callable[[str], Any]]] = {
    "scope": ("scope", _one_of(Scope)),
    "schedule": ("schedule", parse_cron),
    "timezone": ("timezone", parse_zone),
    "missed": ("missed", _one_of(Missed)),
    "overlap-policy": ("overlap", _one_of(Overlap)),
    "worker.image": ("image", str.strip),
    "worker.command": ("command", lambda text: tuple(shlex.split(text))),
    "worker.pull": ("pull", _one_of(Pull)),
    "stop-timeout": ("stop_timeout", _seconds),
    "start-timeout": ("start_timeout", _seconds),
    "timeout": ("timeout", _seconds),
    "grace": ("grace", _seconds),
    "no-way-back": ("no_way_back", _one_of(NoWayBack)),
}
_OF_CONTAINERS = frozenset({"enabled", "name", *_READ})
_OF_VOLUMES = frozenset({"attach", "mount.path", "mount.mode"})


#: Fields of a job that are unions over its containers.
_SETS = ("stacks", "projects", "targets", "loose")


def discover(entities: Iterable[Entity], declared: Mapping[str, Mapping[str, Any]] | None = None) -> Discovered:
    """The jobs that labels and a file describe, independent of the order of the entities.

    `declared`: the jobs of a file, as fields of `Job`. The file overrides labels; targets, stacks, mounts and
    environment are merged.
    """
    ordered = sorted(entities, key=lambda entity: (entity.kind, entity.name))
    findings: list[Finding] = []
    fields: dict[str, dict[str, Any]] = {}
    sources: dict[tuple[str, str], str] = {}
    for name, values in sorted((declared or {}).items()):
        known = fields[name] = {"targets": set(), "loose": set(), "stacks": set(), "projects": set(), "env": {}} | dict(
            values
        )
        for key in ("targets", "stacks"):
            known[key] = set(known[key])
        known["env"] = dict(known["env"])
        known["templated"] = frozenset(known["env"])
        known["loose"] = set(known["targets"])
        known["mounts"] = list(values.get("mounts", ()))
    for entity in ordered:
        findings += _unknown(entity)
        if entity.kind == "container" and _is_on(entity):
            _add_target(entity, fields, sources, findings)
        findings += _lacking(entity, fields)
    mounts = _mounts(ordered, fields, findings)
    jobs = []
    for name, known in sorted(fields.items()):
        if not known.get("image"):
            why = "no image is set for the worker"
            findings.append(Finding("job", name, f"{PREFIX}worker.image", why, job=name, unusable=True))
            continue
        if not (known["targets"] if known.get("scope") == "containers" else known["stacks"] or known["targets"]):
            findings.append(
                Finding("job", name, "stacks", "the job has no targets and stops nothing", warning=True, job=name)
            )
        known |= {key: tuple(sorted(known[key])) for key in _SETS}
        jobs.append(Job(**known | {"name": name, "mounts": tuple(mounts.get(name, ()))}))
    return Discovered(tuple(jobs), tuple(findings))


def _lacking(entity: Entity, jobs: Mapping[str, Any]) -> Iterator[Finding]:
    """An engine never labels a volume that exists, so that a label of its file has no effect."""
    at = f"{PREFIX}attach"
    text = ",".join(labels[at] for labels in (entity.lacking, entity.labels) if at in labels)
    names = sorted({part.strip() for part in text.split(",")} & jobs.keys())
    for label, value in sorted(entity.lacking.items()):
        why = (
            f"its Compose file declares {value!r}, and the existing volume does not have this label, which the engine"
            " sets only at the creation: mount it by the file of LONGSHORE_JOBS, or create the volume anew"
        )
        for name in names or [""]:
            yield Finding("volume", entity.name, label, why, job=name, unusable=bool(name))


def _is_on(entity: Entity) -> bool:
    return entity.labels.get(f"{PREFIX}enabled", "").strip().lower() in {"true", "1", "yes", "on"}


def _unknown(entity: Entity) -> Iterator[Finding]:
    known = _OF_CONTAINERS if entity.kind == "container" else _OF_VOLUMES
    for label in sorted(entity.labels):
        word = label.removeprefix(PREFIX)
        env = entity.kind == "container" and word.startswith(_ENV) and word != _ENV
        if label.startswith(PREFIX) and word not in known and not env:
            yield Finding(entity.kind, entity.name, label, "unknown label", warning=True)


def _add_target(
    entity: Entity,
    fields: dict[str, dict[str, Any]],
    sources: dict[tuple[str, str], str],
    findings: list[Finding],
) -> None:
    name = entity.labels.get(f"{PREFIX}name", "").strip()
    if not re.fullmatch(NAME, name):
        why = f"invalid name {name!r}: use letters, digits, dots, _ and -" if name else "an enabled job needs a name"
        findings.append(Finding("container", entity.name, f"{PREFIX}name", why))
        return
    job = fields.setdefault(name, {key: set() for key in _SETS} | {"env": {}})
    job["targets"].add(entity.name)
    if project := entity.labels.get(PROJECT):
        job["projects"].add(project)
    if stack := entity.labels.get(STACK) or entity.labels.get(PROJECT):
        job["stacks"].add(stack)
        job["loose"].discard(entity.name)
    else:
        job["loose"].add(entity.name)
    for word, text in sorted(entity.labels.items()):
        label = word.removeprefix(PREFIX)
        if not word.startswith(PREFIX):
            continue
        if label.startswith(_ENV) and label != _ENV:
            _put(job["env"], label.removeprefix(_ENV), text, name, entity, word, sources, findings)
        elif label in _READ:
            key, read = _READ[label]
            try:
                _put(job, key, read(text), name, entity, word, sources, findings)
            except ValueError as error:
                findings.append(Finding("container", entity.name, word, str(error), job=name, unusable=True))


def _put(
    values: dict[str, Any],
    key: str,
    value: Any,
    job: str,
    entity: Entity,
    label: str,
    sources: dict[tuple[str, str], str],
    findings: list[Finding],
) -> None:
    """Set a value. The file, then the first container by name, takes precedence; a conflict becomes a finding."""
    first = sources.setdefault((job, label), "the file" if key in values else f"container {entity.name}")
    if key in values and values[key] != value:
        why = f"{value!r} conflicts with {values[key]!r} of {first}, which takes precedence for job {job}"
        findings.append(Finding("container", entity.name, label, why, job=job))
        return
    values[key] = value


def _mounts(entities: Iterable[Entity], jobs: Mapping[str, Any], findings: list[Finding]) -> dict[str, list[Mount]]:
    found: dict[str, list[Mount]] = {name: list(known.get("mounts", ())) for name, known in jobs.items()}
    for entity in entities:
        attached = [part.strip() for part in entity.labels.get(f"{PREFIX}attach", "").split(",") if part.strip()]
        if entity.kind != "volume" or not attached:
            continue
        mode = entity.labels.get(f"{PREFIX}mount.mode", "ro").strip().lower()
        path = entity.labels.get(f"{PREFIX}mount.path", "").strip() or f"/mnt/{entity.name}"
        for job in attached:
            if job not in jobs:
                findings.append(Finding("volume", entity.name, f"{PREFIX}attach", f"no job {job!r}"))
                continue
            mount = Mount(entity.name, path, "rw" if mode == "rw" else "ro")
            other = next((one for one in found[job] if one.path == path), None)
            if other == mount:
                continue
            wrong = {
                "mount.mode": "" if mode in {"ro", "rw"} else f"{mode!r}: expected ro or rw",
                "mount.path": "" if path.startswith("/") else f"{path!r}: expected an absolute path",
            }
            if other is not None:
                wrong["mount.path"] = f"volume {other.volume} is already mounted at {path} for job {job}"
            for label, why in wrong.items():
                if why:
                    at = f"{PREFIX}{label}"
                    findings.append(Finding("volume", entity.name, at, why, job=job, unusable=True))
            if not wrong["mount.path"]:
                found[job].append(mount)
    return found

"""Job discovery: clients request, and each host with an engine publishes, the jobs that its labels describe.

A request increments a number; the main process of each worker answers with a newer snapshot. Plain commands,
no scripts.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from longshore.orchestration.errors import UNREADABLE, ConfigError, JobNotFound, UsageError, WaitTimeout
from longshore.orchestration.jobs.file import read_jobs
from longshore.orchestration.jobs.labels import PREFIX, Entity, Finding, Job, discover
from longshore.orchestration.language.targets import listed
from longshore.orchestration.settings import Settings
from longshore.orchestration.store.connection import Connection, as_number
from longshore.orchestration.store.hosts import with_engine

#: Seconds between two reads of the snapshots.
_POLL = 0.05


@dataclass(frozen=True)
class HostSnapshot:
    """The labelled containers and volumes of a host. `at` in ms of Redis's clock; `engine` is the engine's id."""

    host: str
    #: Number of the request that it answers.
    request: int
    at: int = 0
    engine: str = ""
    stacks: tuple[str, ...] = ()
    entities: tuple[Entity, ...] = ()
    error: str = ""

    def text(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def read(cls, text: str) -> HostSnapshot:
        values: dict[str, Any] = json.loads(text)
        values["stacks"] = tuple(values.get("stacks", ()))
        return cls(**values | {"entities": tuple(Entity(**entity) for entity in values["entities"])})


@dataclass(frozen=True)
class JobListing:
    """The jobs of an installation, sorted by name and host, and the findings about their descriptions."""

    jobs: tuple[Job, ...] = ()
    findings: tuple[Finding, ...] = ()
    #: Hosts that did not answer; and hosts that answered without an error.
    silent: tuple[str, ...] = ()
    answered: tuple[str, ...] = field(default=(), compare=False)

    def findings_of(self, name: str) -> list[Finding]:
        """The findings about the description of one job."""
        return [finding for finding in self.findings if finding.job == name]

    def blocking_findings(self, name: str) -> list[Finding]:
        """The findings because of which one job cannot run."""
        return [finding for finding in self.findings_of(name) if finding.unusable]

    def job(self, name: str, host: str | None = None) -> Job:
        """The job of that name. Raises JobNotFound, which lists the known jobs, and UsageError where several hosts have
        the job, or its description is invalid.
        """
        found = [job for job in self.jobs if job.name == name and host in {None, job.host}]
        if blocking := self.blocking_findings(name):
            more = f" (and {len(blocking) - 1} more)" if len(blocking) > 1 else ""
            raise UsageError(f"the description of job {name!r} is invalid: {blocking[0]}{more}",
                             remedy=f"see longshore job show {name}")  # fmt: skip
        if not found:
            known = listed(sorted({job.name for job in self.jobs})) or "none"
            where = f" on host {host}" if host else ""
            silent = f"; no answer from {', '.join(self.silent)}" if self.silent else ""
            raise JobNotFound(f"no job {name!r}{where} (known jobs: {known}{silent})")
        if len(found) > 1:
            hosts = ", ".join(job.host for job in found)
            raise UsageError(f"job {name!r} is described on several hosts ({hosts})", remedy="choose one with --host")
        return found[0]


class JobDiscovery:
    """Requests for job descriptions, and the hosts' snapshots, in Redis. Raises StoreUnavailable."""

    def __init__(self, store: Connection) -> None:
        self._store = store
        self._keys = store.keys

    # --- hosts ------------------------------------------------------------------------------------

    def last_request(self) -> int:
        """The number of the latest request."""
        return as_number(self._store.call(self._store.client.get, self._keys.job_questions)) or 0

    def last_answer(self, host: str) -> int:
        """The number of the latest request that any worker of a host has answered; -1 for none."""
        text = self._store.call(self._store.client.hget, self._keys.job_snapshots, host)
        snapshot = _readable(text) if text else None
        return snapshot.request if snapshot is not None else -1

    def publish(self, snapshot: HostSnapshot) -> None:
        """Store the snapshot of a host, with the time."""
        text = replace(snapshot, at=self._store.now()).text()
        self._store.call(self._store.client.hset, self._keys.job_snapshots, snapshot.host, text)

    # --- clients ----------------------------------------------------------------------------------

    def request(self) -> int:
        """Request new snapshots of all hosts; returns the number of the request."""
        return int(self._store.call(self._store.client.incr, self._keys.job_questions))

    def snapshots(self) -> dict[str, HostSnapshot]:
        """The latest snapshot of each host."""
        found = self._store.call(self._store.client.hgetall, self._keys.job_snapshots)
        return {host: one for host, text in sorted(found.items()) if (one := _readable(text)) is not None}

    def refresh(self, files: DeclaredJobs | None = None, *, timeout: float = 10.0) -> JobListing:
        """Request a snapshot of every host with an engine, and return the jobs that they describe.

        Waits up to `timeout` seconds for all hosts. Raises WaitTimeout where no host has an engine, or none answers.
        """
        number = self.request()
        until = time.monotonic() + timeout
        while True:
            hosts = with_engine(self._store)
            answers = {host: one for host, one in self.snapshots().items() if host in hosts and one.request >= number}
            if (hosts and len(answers) == len(hosts)) or time.monotonic() >= until:
                break
            time.sleep(_POLL)
        if not answers:
            why = f"no answer from {', '.join(sorted(hosts))}" if hosts else "no host with a Docker engine has a worker"
            raise WaitTimeout(f"cannot list the jobs: {why}", remedy="start a worker there: longshore worker")
        return merged(answers, files or DeclaredJobs(), silent=sorted(hosts - answers.keys()))

    def latest(self, files: DeclaredJobs | None = None) -> JobListing:
        """The jobs in the latest snapshots of the hosts that are alive, without a new request."""
        alive = with_engine(self._store)
        return merged({host: one for host, one in self.snapshots().items() if host in alive}, files or DeclaredJobs())


def _readable(text: str) -> HostSnapshot | None:
    """The snapshot; None for an unreadable one, which the next request replaces."""
    try:
        return HostSnapshot.read(text)
    except UNREADABLE:
        return None


@dataclass(frozen=True)
class DeclaredJobs:
    """The jobs that files describe, by name, and the findings about them."""

    jobs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()


def job_files(settings: Settings) -> list[Path]:
    """The files of the setting `jobs`."""
    return [Path(name) for name in settings.jobs.split(":") if name]


def declared_in(files: Iterable[Path], unreadable: Callable[[ConfigError], object] | None = None) -> DeclaredJobs:
    """Read the jobs of these files. An invalid job becomes a finding, and does not affect the other jobs.

    Raises ConfigError for an unreadable file; with `unreadable`, calls it with the error and skips that file instead.
    """
    found: dict[str, Mapping[str, Any]] = {}
    findings: list[Finding] = []
    for path in files:
        try:
            jobs, invalid = read_jobs(path)
        except ConfigError as error:
            if unreadable is None:
                raise
            unreadable(error)
            continue
        findings += invalid
        for name, values in jobs.items():
            if name in found:
                why = "another file, which takes precedence, describes this job too"
                findings.append(Finding("file", str(path), f"jobs.{name}", why, job=name))
                continue
            found[name] = values
    return DeclaredJobs(found, tuple(findings))


def merged(seen: Mapping[str, HostSnapshot], files: DeclaredJobs, silent: Sequence[str] = ()) -> JobListing:
    """The jobs of all hosts. Of several hosts that share an engine, the first by name runs its jobs."""
    declared = files.jobs
    findings = [*files.findings, *(Finding("host", host, "", "no answer") for host in silent)]
    findings += [Finding("host", one.host, "", one.error) for one in seen.values() if one.error]
    by_engine: dict[str, HostSnapshot] = {}
    for host in sorted(seen):
        by_engine.setdefault(seen[host].engine or host, seen[host])
    places = [one for one in by_engine.values() if not one.error]
    twins = {host: by_engine[one.engine or host].host for host, one in seen.items()}
    jobs: list[Job] = []
    placed: set[str] = set()
    for one in places:
        here = _of_host(one, declared, twins, alone=len(by_engine) + len(silent) == 1)
        placed |= here.keys()
        found = discover(one.entities, here)
        jobs += [replace(job, host=one.host) for job in found.jobs]
        findings += found.findings
    for name in sorted(declared.keys() - placed):
        where = declared[name].get("host")
        why = f"no answer from its host {where}" if where else "no host has its stack: set host"
        findings.append(Finding("job", name, "host", why, job=name, unusable=True))
    answered = tuple(host for host, one in seen.items() if not one.error)
    return JobListing(tuple(sorted(jobs, key=_by_name)), tuple(findings), tuple(silent), answered)


_by_name: Callable[[Job], tuple[str, str]] = lambda job: (job.name, job.host)  # noqa: E731 - a key


def _of_host(
    one: HostSnapshot, declared: Mapping[str, Mapping[str, Any]], twins: Mapping[str, str], *, alone: bool
) -> dict[str, Mapping[str, Any]]:
    """The declared jobs of this host: by `host`, by labels, by stacks, or because no other host exists."""
    labelled = {entity.labels.get(f"{PREFIX}name") for entity in one.entities}
    found: dict[str, Mapping[str, Any]] = {}
    for name, values in declared.items():
        where = values.get("host") or ""
        if twins.get(where, where) == one.host or (
            not where and (alone or name in labelled or set(values.get("stacks", ())) & set(one.stacks))
        ):
            found[name] = {key: value for key, value in values.items() if key != "host"}
    return found

"""Where the hosts with an engine say which jobs are described on it: asked for, answered by each worker's main process.

A number is asked for; every host answers with what it sees from then on. Plain commands, no scripts.
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
from longshore.orchestration.store.connection import Connection, as_number
from longshore.orchestration.store.hosts import with_engine

_LOOK = 0.05


@dataclass(frozen=True)
class HostSnapshot:
    """What one host has seen. `at` in ms of Redis's clock; `engine` tells which engine it was."""

    host: str
    asked: int
    at: int = 0
    engine: str = ""
    stacks: tuple[str, ...] = ()
    entities: tuple[Entity, ...] = ()
    error: str = ""

    def text(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def read(cls, text: str) -> HostSnapshot:
        said: dict[str, Any] = json.loads(text)
        said["stacks"] = tuple(said.get("stacks", ()))
        return cls(**said | {"entities": tuple(Entity(**one) for one in said["entities"])})


@dataclass(frozen=True)
class JobListing:
    """The jobs of an installation, sorted by name and host, and what is wrong with their descriptions."""

    jobs: tuple[Job, ...] = ()
    findings: tuple[Finding, ...] = ()
    #: Hosts that were asked and did not answer; and those that did, without an error.
    silent: tuple[str, ...] = ()
    answered: tuple[str, ...] = field(default=(), compare=False)

    def about(self, name: str) -> list[Finding]:
        """What is wrong with the description of one job."""
        return [finding for finding in self.findings if finding.job == name]

    def unusable(self, name: str) -> list[Finding]:
        """Of that, what keeps it from being run."""
        return [finding for finding in self.about(name) if finding.unusable]

    def job(self, name: str, host: str | None = None) -> Job:
        """The one of that name. JobNotFound names those that there are; UsageError where it is on several hosts, or its
        description cannot be used.
        """
        found = [job for job in self.jobs if job.name == name and host in {None, job.host}]
        if wrong := self.unusable(name):
            more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
            raise UsageError(f"job {name!r} cannot be run as it is described: {wrong[0]}{more}",
                             remedy=f"longshore job show {name} has all of it")  # fmt: skip
        if not found:
            known = listed(sorted({job.name for job in self.jobs}))
            where = f" on host {host}" if host else ""
            silent = f"; no answer from {', '.join(self.silent)}" if self.silent else ""
            raise JobNotFound(f"there is no job {name!r}{where} (there are: {known}{silent})")
        if len(found) > 1:
            hosts = ", ".join(job.host for job in found)
            raise UsageError(f"job {name!r} is described on several hosts ({hosts})", remedy="name one: --host")
        return found[0]


class JobDiscovery:
    """The one of an installation. Raises StoreUnavailable."""

    def __init__(self, store: Connection) -> None:
        self._store = store
        self._keys = store.keys

    # --- the hosts' side --------------------------------------------------------------------------

    def asked(self) -> int:
        """The last number that was asked for."""
        return as_number(self._store.call(self._store.client.get, self._keys.job_questions)) or 0

    def answered(self, host: str) -> int:
        """The last number that a host has answered to, by whichever of its workers."""
        text = self._store.call(self._store.client.hget, self._keys.job_snapshots, host)
        seen = _known(text) if text else None
        return seen.asked if seen is not None else -1

    def answer(self, seen: HostSnapshot) -> None:
        told = replace(seen, at=self._store.now()).text()
        self._store.call(self._store.client.hset, self._keys.job_snapshots, seen.host, told)

    # --- the readers' side ------------------------------------------------------------------------

    def ask(self) -> int:
        return int(self._store.call(self._store.client.incr, self._keys.job_questions))

    def seen(self) -> dict[str, HostSnapshot]:
        """What each host has said last."""
        found = self._store.call(self._store.client.hgetall, self._keys.job_snapshots)
        return {host: seen for host, text in sorted(found.items()) if (seen := _known(text)) is not None}

    def look(self, files: DeclaredJobs | None = None, *, patience: float = 10.0) -> JobListing:
        """The jobs as they are described now: every host with an engine is asked.

        Waits up to `patience` seconds for all of them. WaitTimeout where there is no such host, or none that answers.
        """
        number = self.ask()
        until = time.monotonic() + patience
        while True:
            wanted = with_engine(self._store)
            seen = {host: one for host, one in self.seen().items() if host in wanted and one.asked >= number}
            if (wanted and len(seen) == len(wanted)) or time.monotonic() >= until:
                break
            time.sleep(_LOOK)
        if not seen:
            silent = f": no answer from {', '.join(sorted(wanted))}" if wanted else ""
            raise WaitTimeout(f"no host with a Docker engine is there to be asked for its jobs{silent}",
                              remedy="start a worker there: longshore worker")  # fmt: skip
        return merged(seen, files or DeclaredJobs(), silent=sorted(wanted - seen.keys()))

    def last(self, files: DeclaredJobs | None = None) -> JobListing:
        """The jobs as the hosts that are alive have described them last; asks nobody."""
        alive = with_engine(self._store)
        return merged({host: one for host, one in self.seen().items() if host in alive}, files or DeclaredJobs())


def _known(text: str) -> HostSnapshot | None:
    """None for an answer that cannot be read: the host is asked anew."""
    try:
        return HostSnapshot.read(text)
    except UNREADABLE:
        return None


@dataclass(frozen=True)
class DeclaredJobs:
    """What files say of jobs, by name; and what is wrong with them."""

    jobs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()


def declared_in(files: Iterable[Path], unreadable: Callable[[ConfigError], object] | None = None) -> DeclaredJobs:
    """What is wrong with one job of a file keeps no other from being known.

    ConfigError for a file that cannot be read at all; `unreadable` is told of it instead, and the others count.
    """
    found: dict[str, Mapping[str, Any]] = {}
    findings: list[Finding] = []
    for path in files:
        try:
            jobs, wrong = read_jobs(path)
        except ConfigError as error:
            if unreadable is None:
                raise
            unreadable(error)
            continue
        findings += wrong
        for name, said in jobs.items():
            if name in found:
                why = "another file describes it, too, and that one counts"
                findings.append(Finding("file", str(path), f"jobs.{name}", why, job=name))
                continue
            found[name] = said
    return DeclaredJobs(found, tuple(findings))


def merged(seen: Mapping[str, HostSnapshot], files: DeclaredJobs, silent: Sequence[str] = ()) -> JobListing:
    """The jobs of all hosts. Two hosts with one engine have the same jobs: the first of them does them."""
    declared = files.jobs
    findings = [*files.findings, *(Finding("host", host, "", "it did not answer") for host in silent)]
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
        why = f"no answer from its host {where}" if where else "no host has its stack: say which, by host"
        findings.append(Finding("job", name, "host", why, job=name, unusable=True))
    answered = tuple(host for host, one in seen.items() if not one.error)
    return JobListing(tuple(sorted(jobs, key=_by_name)), tuple(findings), tuple(silent), answered)


_by_name: Callable[[Job], tuple[str, str]] = lambda job: (job.name, job.host)  # noqa: E731 - a key


def _of_host(
    one: HostSnapshot, declared: Mapping[str, Mapping[str, Any]], twins: Mapping[str, str], *, alone: bool
) -> dict[str, Mapping[str, Any]]:
    """What the files say that is for this host: by its name, its labels, its stacks, or because it is the only one."""
    labelled = {entity.labels.get(f"{PREFIX}name") for entity in one.entities}
    found: dict[str, Mapping[str, Any]] = {}
    for name, said in declared.items():
        where = said.get("host") or ""
        if twins.get(where, where) == one.host or (
            not where and (alone or name in labelled or set(said.get("stacks", ())) & set(one.stacks))
        ):
            found[name] = {key: value for key, value in said.items() if key != "host"}
    return found

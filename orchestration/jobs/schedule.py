"""Scheduled jobs: start the runs that are due, and stop after repeated failures.

Beat sends a tick every few seconds; the worker that receives it starts the due runs. A run's id is derived from the job
and the planned time, so that two beats, or two concurrent ticks, start one run.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from longshore.orchestration.errors import (
    LongshoreError,
    QueueFull,
    RunConflict,
    StoreUnavailable,
    WaitTimeout,
)
from longshore.orchestration.jobs.discovery import HostSnapshot, JobDiscovery, JobListing, declared_in
from longshore.orchestration.jobs.labels import Job
from longshore.orchestration.jobs.plan import job_plan
from longshore.orchestration.language import schedule
from longshore.orchestration.schedules.due_times import Mark, ScheduleMarks
from longshore.orchestration.store.breakers import Breakers
from longshore.orchestration.store.run_store import Store

if TYPE_CHECKING:
    from longshore.orchestration.client.client import Client
    from longshore.orchestration.client.run import Run

log = logging.getLogger(__name__)

#: Age in seconds up to which the snapshot of a host is used to decide whether a job is due.
_FRESH = 90.0
#: Seconds between two requests for snapshots while no job is due.
_REFRESH = 30.0
#: Consecutive failures after which the breaker of a job opens.
FAILURES = 3
#: Results of runs that are stored per job.
_HISTORY = 20


def key_of(job: Job) -> str:
    return f"{job.name}@{job.host}"


def service(key: str) -> str:
    """The service name of a job's breaker."""
    return f"job {key}"


def planned(job: Job, after: int, until: int) -> list[int]:
    """The latest hundred planned times in (after, until], ms since 1970."""
    return schedule.by_cron(job.schedule, job.timezone, after, until)


def upcoming(job: Job, now: int) -> datetime | None:
    """The next planned time; None without a schedule, or where none follows."""
    return schedule.next_by_cron(job.schedule, job.timezone, now) if job.schedule else None


def run_id_of(job: Job, at: int) -> str:
    return schedule.run_id(key_of(job), at)


def tick(client: Client, files: Iterable[Path]) -> list[Run]:
    """Start the due jobs and return their runs. A start that fails for now is due again at the next tick."""
    store = client.store
    _log_once.next_tick()
    declared = declared_in(files, lambda error: _log_once.error(f"scheduled jobs: {error}"))
    discovery, schedules = JobDiscovery(store), ScheduleMarks(store)
    now = store.now()
    known, marks = discovery.latest(declared), schedules.marks()
    ages = {host: (now - one.at) / 1000 for host, one in discovery.snapshots().items()}
    # A tick must not wait for a live host that sends no snapshots.
    fresh = [job for job in known.jobs if ages.get(job.host, _FRESH) < _FRESH]
    if min(ages.values(), default=now) >= _REFRESH or any(_due(job, marks.get(key_of(job)), now) for job in fresh):
        try:
            known = discovery.refresh(declared, timeout=5.0)
        except WaitTimeout as error:
            log.warning("scheduled jobs: %s", error)
            return []
    started: list[Run] = []
    snapshots = discovery.snapshots()
    for job in known.jobs:
        if not job.schedule:
            continue
        if blocking := known.blocking_findings(job.name):
            _log_once.error(f"job {key_of(job)} was not started by its schedule: {'; '.join(map(str, blocking))}")
            continue
        mark = marks.get(key_of(job)) or _inherited(snapshots, job, marks, known)
        started += _start_due(client, schedules, job, mark, now)
    current = {key_of(job) for job in known.jobs}
    schedules.forget(key for key in marks if key not in current and key.rpartition("@")[2] in known.answered)
    return started


class _LogOnce:
    """Logs each error once, instead of at every tick that meets it."""

    def __init__(self) -> None:
        self._before: set[str] = set()
        self._now: set[str] = set()

    def error(self, text: str) -> None:
        if text not in self._before | self._now:
            log.error("%s", text)
        self._now.add(text)

    def next_tick(self) -> None:
        self._before, self._now = self._now, set()


#: One per process.
_log_once = _LogOnce()


def _due(job: Job, mark: Mark | None, now: int) -> bool:
    return bool(job.schedule) and mark is not None and bool(planned(job, mark.until, now))


def _definition(job: Job) -> str:
    return f"{job.schedule} {job.timezone}"


def _start_due(client: Client, schedules: ScheduleMarks, job: Job, mark: Mark | None, now: int) -> list[Run]:
    key = key_of(job)
    if mark is None or mark.schedule != _definition(job):
        # Times before the schedule existed do not count as missed.
        schedules.put(key, Mark(now, _definition(job)))
        return []
    if mark.as_of(now) != mark:
        schedules.put(key, mark.as_of(now))
        return []
    times = planned(job, mark.until, now)
    if not times:
        return []
    if key in schedules.paused():
        schedules.put(key, Mark(times[-1], mark.schedule))
        return []
    if Breakers(client.store).is_open(service(key)):
        log.warning(
            "job %s was not started: its breaker is open: run longshore breaker reset '%s' to close it",
            key,
            service(key),
        )
        schedules.put(key, Mark(times[-1], mark.schedule))
        return []
    started = []
    for at in schedule.chosen(job.missed, times, now, max(schedule.ON_TIME, 2 * client.settings.tick)):
        try:
            started.append(client.start(job_plan(job), run_id=run_id_of(job, at)))
        except RunConflict:
            continue  # another tick started it, with the labels of that moment
        except (QueueFull, StoreUnavailable) as error:
            log.warning("job %s: the start planned for %s is delayed: %s", key, at, error)
            return started
        except LongshoreError as error:
            log.error("job %s cannot be started: %s", key, error)
    schedules.put(key, Mark(times[-1], mark.schedule))
    return started


def _inherited(
    snapshots: Mapping[str, HostSnapshot], job: Job, marks: Mapping[str, Mark], known: JobListing
) -> Mark | None:
    """The mark of the same job on a host that had the same engine and is gone."""
    engine = snapshots[job.host].engine if job.host in snapshots else ""
    for host, one in snapshots.items():
        if engine and one.engine == engine and host not in known.answered and (mark := marks.get(f"{job.name}@{host}")):
            return mark
    return None


# --- results --------------------------------------------------------------------------------------


def record_result(store: Store, key: str, run_id: str, result: str, ended: int) -> None:
    """Record the result of a run of a job; open the job's breaker at the third failure in a row, close it at a success.

    A cancelled run does not count. Safe to repeat.
    """
    if result == "cancelled":
        return
    name = store.keys.job(key)
    store.call(store.client.zadd, name, {f"{run_id} {result}": ended})
    store.call(store.client.zremrangebyrank, name, 0, -_HISTORY - 1)
    breakers = Breakers(store)
    # Decided from the stored results, because the end of a run may be recorded more than once.
    last = store.call(store.client.zrevrange, name, 0, FAILURES - 1)
    succeeded = [member.endswith(" succeeded") for member in last]
    if succeeded[0]:
        breakers.close(service(key))
    elif len(last) == FAILURES and not any(succeeded):
        why = f"{FAILURES} consecutive runs failed, the latest is {last[0].rpartition(' ')[0]}"
        if breakers.hold(service(key), why):
            log.error("job %s is no longer started by its schedule: %s", key, why)
            store.add_event(run_id, "breaker_opened", {"service": service(key), "error": why})


def reset_results(store: Store, name: str) -> None:
    """Begin the count of failures anew for the job whose breaker has this service name.

    The reset counts as a success. The end of an earlier run, even if recorded again, is before the reset.
    """
    key = name.removeprefix(service(""))
    if key != name:
        store.call(store.client.zadd, store.keys.job(key), {"reset succeeded": store.now()})

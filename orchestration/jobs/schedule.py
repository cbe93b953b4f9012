"""Jobs that start by themselves: which planned times are due, and what was done about each.

Beat sends a tick every few seconds; whichever worker takes it starts what is due. The run's id is made of the job and
the planned time, so that two beats, or two ticks at once, start one run.
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

#: Seconds for which what a host has said last tells whether something of it is due.
_FRESH = 90.0
#: Seconds between two times that the hosts are asked for their jobs, where nothing is due.
_REFRESH = 30.0
#: Failures in a row after which a job is not started by its schedule any more.
FAILURES = 3
#: Ends of runs that are kept of a job.
_KEPT = 20


def key_of(job: Job) -> str:
    return f"{job.name}@{job.host}"


def service(key: str) -> str:
    """What the breaker of a job is called."""
    return f"job {key}"


def planned(job: Job, after: int, until: int) -> list[int]:
    """Its planned times in (after, until], ms since 1970, the latest hundred."""
    return schedule.by_cron(job.schedule, job.timezone, after, until)


def upcoming(job: Job, now: int) -> datetime | None:
    """When it is planned next; None without a schedule, or where that never comes."""
    return schedule.next_by_cron(job.schedule, job.timezone, now) if job.schedule else None


def run_id_of(job: Job, at: int) -> str:
    return schedule.run_id(key_of(job), at)


def tick(client: Client, files: Iterable[Path]) -> list[Run]:
    """Start what is due; returns the runs. What cannot be started now is due at the next tick again."""
    store = client.store
    _once.next_tick()
    declared = declared_in(files, lambda error: _once.say(f"schedules: {error}"))
    board, schedules = JobDiscovery(store), ScheduleMarks(store)
    now = store.now()
    known, marks = board.last(declared), schedules.marks()
    ages = {host: (now - one.at) / 1000 for host, one in board.seen().items()}
    # A host that is alive and says nothing must not have every tick wait for it.
    fresh = [job for job in known.jobs if ages.get(job.host, _FRESH) < _FRESH]
    if min(ages.values(), default=now) >= _REFRESH or any(_due(job, marks.get(key_of(job)), now) for job in fresh):
        try:
            known = board.look(declared, patience=5.0)
        except WaitTimeout as error:
            log.warning("schedules: %s", error)
            return []
    started: list[Run] = []
    seen = board.seen()
    for job in known.jobs:
        if not job.schedule:
            continue
        if wrong := known.unusable(job.name):
            _once.say(f"job {key_of(job)} is not started by its schedule: {'; '.join(map(str, wrong))}")
            continue
        mark = marks.get(key_of(job)) or _inherited(seen, job, marks, known)
        started += _start_due(client, schedules, job, mark, now)
    there = {key_of(job) for job in known.jobs}
    schedules.forget(key for key in marks if key not in there and key.rpartition("@")[2] in known.answered)
    return started


class _Once:
    """Says what is wrong with descriptions when it is new, and not at every tick that finds it so."""

    def __init__(self) -> None:
        self._before: set[str] = set()
        self._now: set[str] = set()

    def say(self, text: str) -> None:
        if text not in self._before | self._now:
            log.error("%s", text)
        self._now.add(text)

    def next_tick(self) -> None:
        self._before, self._now = self._now, set()


#: Of this process.
_once = _Once()


def _due(job: Job, mark: Mark | None, now: int) -> bool:
    return bool(job.schedule) and mark is not None and bool(planned(job, mark.until, now))


def _said(job: Job) -> str:
    return f"{job.schedule} {job.timezone}"


def _start_due(client: Client, schedules: ScheduleMarks, job: Job, mark: Mark | None, now: int) -> list[Run]:
    key = key_of(job)
    if mark is None or mark.schedule != _said(job):
        # What a schedule would have planned before it was there is nothing that was missed.
        schedules.put(key, Mark(now, _said(job)))
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
        log.warning("job %s was not started: its breaker is open: longshore breaker reset '%s'", key, service(key))
        schedules.put(key, Mark(times[-1], mark.schedule))
        return []
    started = []
    for at in schedule.chosen(job.missed, times, now, max(schedule.ON_TIME, 2 * client.settings.tick)):
        try:
            started.append(client.start(job_plan(job), run_id=run_id_of(job, at)))
        except RunConflict:
            continue  # another tick has started it, by the labels of that moment
        except (QueueFull, StoreUnavailable) as error:
            log.warning("job %s: the start planned for %s has to wait: %s", key, at, error)
            return started
        except LongshoreError as error:
            log.error("job %s cannot be started: %s", key, error)
    schedules.put(key, Mark(times[-1], mark.schedule))
    return started


def _inherited(seen: Mapping[str, HostSnapshot], job: Job, marks: Mapping[str, Mark], known: JobListing) -> Mark | None:
    """Of a job that another host with the same engine had until now, which is not there any more."""
    here = seen[job.host].engine if job.host in seen else ""
    for host, one in seen.items():
        if here and one.engine == here and host not in known.answered and (mark := marks.get(f"{job.name}@{host}")):
            return mark
    return None


# --- how they end ---------------------------------------------------------------------------------


def note_end(store: Store, key: str, run_id: str, result: str, ended: int) -> None:
    """Note how a run of a job ended, once; open the job's breaker at the third failure in a row, close it at a success.

    A run that somebody has cancelled tells nothing. Safe to repeat.
    """
    if result == "cancelled":
        return
    name = store.keys.job(key)
    store.call(store.client.zadd, name, {f"{run_id} {result}": ended})
    store.call(store.client.zremrangebyrank, name, 0, -_KEPT - 1)
    breakers = Breakers(store)
    # By what is known of the last ones, whoever tells of which: a run's end may be told of more than once.
    last = store.call(store.client.zrevrange, name, 0, FAILURES - 1)
    good = [member.endswith(" succeeded") for member in last]
    if good[0]:
        breakers.close(service(key))
    elif len(last) == FAILURES and not any(good):
        why = f"{FAILURES} runs in a row failed, the last is {last[0].rpartition(' ')[0]}"
        if breakers.hold(service(key), why):
            log.error("job %s is not started by its schedule any more: %s", key, why)
            store.add_event(run_id, "breaker_opened", {"service": service(key), "error": why})


def forget_ends(store: Store, name: str) -> None:
    """What is counted begins anew, for the job that a breaker is of."""
    key = name.removeprefix(service(""))
    if key != name:
        store.call(store.client.delete, store.keys.job(key))

"""The starts that are due by the marks of schedules: the part that a worker plays at each tick."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

from longshore.orchestration.client.request import shared
from longshore.orchestration.errors import (
    LongshoreError,
    QueueFull,
    RunConflict,
    StoreUnavailable,
)
from longshore.orchestration.language.params import resolve
from longshore.orchestration.language.schedule import ON_TIME, chosen, run_id
from longshore.orchestration.schedules.declarations import Schedule, declared
from longshore.orchestration.schedules.due_times import Mark, ScheduleMarks
from longshore.orchestration.store import audit
from longshore.orchestration.store.admission import Admission, AdmissionRequest

if TYPE_CHECKING:
    from longshore.orchestration.client.client import Client
    from longshore.orchestration.client.run import Run

log = logging.getLogger(__name__)

#: ms before the first message of an application's beat within which planned times are due.
_FIRST_WINDOW = 30_000


def start_due(client: Client) -> list[Run]:
    """Start the due plans of all declared schedules; returns their runs. A start that fails for now stays due."""
    known, errors = declared(client.settings)
    for error in errors:
        _log_once(error)
    if not known:
        return []
    schedules = ScheduleMarks(client.store)
    marks, paused, now = schedules.marks(), schedules.paused(), client.store.now()
    started: list[Run] = []
    for schedule in known:
        started += _start(client, schedules, schedule, marks.get(schedule.name), now, paused)
    return started


def start_one(client: Client, schedule: Schedule) -> list[Run]:
    """Start the due runs of one schedule, for which a beat has sent a message."""
    schedules = ScheduleMarks(client.store)
    now, mark = client.store.now(), schedules.marks().get(schedule.name)
    if mark is None:
        # The beat already had the entry, and its message is for a time that was planned just now.
        mark = Mark(now - _FIRST_WINDOW, schedule.definition())
    return _start(client, schedules, schedule, mark, now, schedules.paused())


def _start(
    client: Client, schedules: ScheduleMarks, schedule: Schedule, mark: Mark | None, now: int, paused: Mapping[str, str]
) -> list[Run]:
    name = schedule.name
    if mark is None or mark.schedule != schedule.definition():
        # Times before the schedule existed do not count as missed.
        schedules.put(name, Mark(now, schedule.definition()))
        return []
    if mark.as_of(now) != mark:
        schedules.put(name, mark.as_of(now))
        return []
    times = schedule.planned(mark.until, now)
    if not times:
        return []
    started: list[Run] = []
    if name not in paused:
        on_time = max(ON_TIME, 2 * client.settings.tick) + schedule.when.jitter
        for at in chosen(schedule.when.missed, times, now, on_time):
            try:
                run = start_at(client, schedule, at)
            except (QueueFull, StoreUnavailable) as error:
                log.warning("schedule %s: the start planned for %s is delayed: %s", name, at, error)
                return started
            except LongshoreError as error:
                log.error("schedule %s cannot start its plan: %s", name, error)
                audit.note_refusal(client.store, f"schedule {name} cannot start its plan: {error}", actor="schedule")
                continue
            started += [run] if run is not None else []
    current = schedules.marks().get(name)
    if current is None or current.schedule != mark.schedule or current.until < times[-1]:
        schedules.put(name, Mark(times[-1], mark.schedule))  # unless a concurrent tick has handled later times
    return started


def start_at(client: Client, schedule: Schedule, at: int) -> Run | None:
    """Start the run planned for that time, or return it if it exists; None where the start is skipped."""
    plan, planned = schedule.loaded(), run_id(schedule.name, at)
    if schedule.when.overlap == "skip" and client.store.body(planned) is None:
        limits = shared(plan, resolve(plan.params, schedule.when.params))
        request = AdmissionRequest.of(limits | {"plan": {"name": plan.name}})
        holders = Admission(client.store).holders(request) if request.key else []
        if holders and len(holders) >= request.limit:
            log.info("schedule %s: start skipped, because run %s is still live", schedule.name, ", ".join(holders))
            return None
    try:
        return client.start(plan, schedule.when.params, run_id=planned)
    except RunConflict:
        return None  # another tick started it, with the plan of that moment


#: Errors of declarations that this process has logged.
_logged: set[str] = set()


def _log_once(text: str) -> None:
    """Log an error the first time, and not at every tick that meets it."""
    if text not in _logged:
        log.error("%s", text)
        _logged.add(text)

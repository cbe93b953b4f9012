"""Schedules of plans: declared in the configuration, in stored plans, or in an entry of an application's beat.

A schedule is an ordinary entry of `beat_schedule` (`entry`), for Celery's own beat and for RedBeat. A message of beat
only triggers a check: the worker decides from the mark in Redis which planned times are due. Two beats therefore start
one run, and missed times are made up for as the schedule defines.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from longshore.orchestration.errors import (
    LongshoreError,
    QueueFull,
    RunConflict,
    StoreUnavailable,
    UnknownName,
    UsageError,
)
from longshore.orchestration.language.params import resolve
from longshore.orchestration.language.schedule import ON_TIME, Scheduled, chosen, run_id
from longshore.orchestration.language.targets import listed
from longshore.orchestration.plans.loading import load, stored, where_stored
from longshore.orchestration.plans.model import Concurrency, Plan
from longshore.orchestration.schedules.due_times import Mark, ScheduleMarks
from longshore.orchestration.settings import Settings
from longshore.orchestration.store import audit
from longshore.orchestration.store.admission import Admission, AdmissionRequest
from longshore.orchestration.store.run_store import Store, actor

if TYPE_CHECKING:
    from longshore.orchestration.client.client import Client
    from longshore.orchestration.client.run import Run

log = logging.getLogger(__name__)

#: The Celery task that checks whether a schedule is due.
TASK = "longshore.scheduled"
#: Seconds after which a message of beat expires; later ones cover the same planned times.
_EXPIRES = 300
#: ms before the first message of an application's beat within which planned times are due.
_FIRST_WINDOW = 30_000


@dataclass(frozen=True)
class Schedule:
    """A named schedule of a plan. `plan` is the name of a stored plan, or a file."""

    name: str
    plan: str
    when: Scheduled

    def definition(self) -> str:
        """The text that its mark records; after a change of it, earlier planned times do not count as missed."""
        return self.when.said()

    def planned(self, after: int, until: int) -> list[int]:
        """The planned times in (after, until], ms since 1970, without those that the jitter still delays."""
        times = self.when.planned(after, until)
        due = []
        for at in times:
            if at + self.jitter(at) > until:
                break
            due.append(at)
        return due

    def jitter(self, at: int) -> int:
        """ms by which the start planned for `at` is delayed; a hash of name and time, so that workers agree."""
        if not self.when.jitter:
            return 0
        digest = hashlib.sha256(f"{self.name} {at}".encode()).digest()
        return int.from_bytes(digest[:8]) % max(1, round(self.when.jitter * 1000))

    def loaded(self) -> Plan:
        """The plan, with the overlap policy of the schedule as its concurrency limit."""
        plan = load(self.plan)
        shared = plan.concurrency or Concurrency(key=self.key, on_limit=self.when.overlap)
        return plan.model_copy(update={"concurrency": shared.model_copy(update={"on_limit": self.when.overlap})})

    @property
    def key(self) -> str:
        """The concurrency key of its runs."""
        return f"schedule {self.name}"

    @property
    def entry_name(self) -> str:
        """The name of its entry in a `beat_schedule`."""
        return f"longshore.schedule.{self.name}"

    def entry(self) -> dict[str, Any]:
        """A complete entry for the `beat_schedule` of any app on Longshore's broker.

        For RedBeat: `RedBeatSchedulerEntry(name, app=app, **schedule.entry())`. The entry can be written as JSON.
        """
        return {
            "task": TASK,
            "schedule": self.when.beat(),
            "kwargs": {"name": self.name, "given": self.when.model_dump(mode="json") | {"plan": self.plan}},
            "options": {"queue": "control", "expires": _EXPIRES},
        }


# --- declarations ---------------------------------------------------------------------------------


def declared(settings: Settings) -> tuple[list[Schedule], list[str]]:
    """The valid schedules of the configuration and of stored plans, sorted by name, and the errors of the others."""
    found: dict[str, Schedule] = {}
    errors: list[str] = []
    for name, given in settings.schedules.items():
        if not given.plan:
            errors.append(f"schedule {name} names no plan")
            continue
        found[name] = Schedule(name, given.plan, given)
    for schedule, why in _of_plans():
        if why:
            errors.append(why)
        elif schedule is not None and schedule.name in found:
            errors.append(f"schedule {schedule.name} is declared twice: in the configuration and in its plan")
        elif schedule is not None:
            found[schedule.name] = schedule
    return [found[name] for name in sorted(found)], errors


def _of_plans() -> Iterator[tuple[Schedule | None, str]]:
    for name in stored():
        try:
            plan = _read(name, _fingerprint(name))
        except Exception as error:  # noqa: BLE001 - an error of a package must not keep workers from starting
            yield None, f"plan {name}: {error}"
            continue
        for part, when in plan.schedules.items():
            yield Schedule(f"{plan.name}.{part}", name, when), ""


@lru_cache(maxsize=512)
def _read(name: str, changed: tuple[Any, ...]) -> Plan:  # noqa: ARG001 - the cache misses once a file changes
    return load(name, check=False)  # checked when it is started


def _fingerprint(name: str) -> tuple[Any, ...]:
    path = where_stored(name)
    if path is None:
        return ()
    info = path.stat()
    return (str(path), info.st_mtime_ns, info.st_size)


def from_entry(settings: Settings, name: str, options: Mapping[str, Any]) -> Schedule:
    """The declared schedule of that name, or else the one in a beat entry, of a stored plan. Raises UsageError."""
    for each in declared(settings)[0]:
        if each.name == name:
            return each
    try:
        when = Scheduled.model_validate(options)
    except ValueError as error:
        raise UsageError(f"schedule {name}: {' '.join(str(error).split())}") from None
    if when.plan not in stored():
        raise UsageError(
            f"schedule {name}: {when.plan!r} is not a stored plan",
            remedy="put the plan into a folder of LONGSHORE_PLANS",
        )
    return Schedule(name, when.plan, when)


def problem(schedule: Schedule) -> str:
    """Why the plan of a schedule cannot be started; '' where it can."""
    try:
        resolve(schedule.loaded().params, schedule.when.params)
    except (LongshoreError, OSError) as error:
        return str(error)
    return ""


def find(settings: Settings, name: str) -> Schedule:
    """The declared schedule of that name. Raises UnknownName, which lists the declared schedules."""
    known, _ = declared(settings)
    for schedule in known:
        if schedule.name == name:
            return schedule
    raise UnknownName(
        f"no schedule {name!r} (declared: {listed([each.name for each in known]) or 'none'})",
        remedy="use the same configuration and LONGSHORE_PLANS for beats, workers and clients",
    )


# --- starting -------------------------------------------------------------------------------------


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
        holders = Admission(client.store).holders(
            AdmissionRequest("", key=plan.concurrency.key if plan.concurrency else "")
        )
        if holders:
            log.info("schedule %s: start skipped, because run %s is still live", schedule.name, ", ".join(holders))
            return None
    try:
        return client.start(plan, schedule.when.params, run_id=planned)
    except RunConflict:
        return None  # another tick started it, with the plan of that moment


def trigger(client: Client, name: str) -> Run:
    """Start the plan of a schedule now, in a run of its own. Raises UnknownName."""
    schedule = find(client.settings, name)
    return client.start(schedule.loaded(), schedule.when.params, run_id=f"{name[:100]}.by-hand-{uuid4().hex[:8]}")


def pause(store: Store, name: str, *, paused: bool) -> bool:
    """Pause or resume a schedule; returns whether that changed it."""
    schedules, who = ScheduleMarks(store), actor(store.settings)
    if paused == (name in schedules.paused()):
        return False
    if paused:
        schedules.pause(name, who)
    else:
        schedules.resume(name)
    audit.report(store, "pause schedule" if paused else "resume schedule", step=name, actor=who)
    return True


#: Errors of declarations that this process has logged.
_logged: set[str] = set()


def _log_once(text: str) -> None:
    """Log an error the first time, and not at every tick that meets it."""
    if text not in _logged:
        log.error("%s", text)
        _logged.add(text)


def upcoming(schedule: Schedule, now: int) -> datetime | None:
    """The next planned time; None where none follows."""
    at = schedule.when.next(now)
    return datetime.fromtimestamp(at / 1000, UTC) if at is not None else None

"""Plans that start by themselves: declared in the configuration, in stored plans, or in an entry of somebody's beat.

A schedule is an ordinary entry of `beat_schedule` (`entry`), for Celery's own beat and for RedBeat. Its firing says no
more than "look": which planned times are due is decided by the worker, from the mark in Redis, so that two beats start
one run, and what a beat has missed is made up for as the schedule says.
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

#: The Celery task that looks whether one is due.
TASK = "longshore.scheduled"
#: Seconds after which a firing is of no use any more: others follow, and none of its times is lost.
_EXPIRES = 300
#: ms before its first firing by somebody else's beat at which a planned time still is that firing's.
_FIRST = 30_000


@dataclass(frozen=True)
class Schedule:
    """One, by its name: what is started, and when. `plan` is a stored plan's name, or a file."""

    name: str
    plan: str
    when: Scheduled

    def said(self) -> str:
        """What its mark is of: with another one, what was planned before is nothing that was missed."""
        return self.when.said()

    def planned(self, after: int, until: int) -> list[int]:
        """Its planned times in (after, until], ms since 1970, without those that are still held back by its jitter."""
        times = self.when.planned(after, until)
        due = []
        for at in times:
            if at + self.jitter(at) > until:
                break
            due.append(at)
        return due

    def jitter(self, at: int) -> int:
        """ms by which the start planned for `at` is held back: the same for whoever asks."""
        if not self.when.jitter:
            return 0
        digest = hashlib.sha256(f"{self.name} {at}".encode()).digest()
        return int.from_bytes(digest[:8]) % max(1, round(self.when.jitter * 1000))

    def loaded(self) -> Plan:
        """The plan, with what becomes of a start while the one before it runs."""
        plan = load(self.plan)
        shared = plan.concurrency or Concurrency(key=self.key, on_limit=self.when.overlap)
        return plan.model_copy(update={"concurrency": shared.model_copy(update={"on_limit": self.when.overlap})})

    @property
    def key(self) -> str:
        """What its runs have in common."""
        return f"schedule {self.name}"

    @property
    def entry_name(self) -> str:
        """What its entry is called in a `beat_schedule`."""
        return f"longshore.schedule.{self.name}"

    def entry(self) -> dict[str, Any]:
        """An entry for a `beat_schedule`, of any app whose broker is Longshore's; it carries all that is needed.

        Of RedBeat: `RedBeatSchedulerEntry(name, app=app, **schedule.entry())`. What it holds is JSON.
        """
        return {
            "task": TASK,
            "schedule": self.when.beat(),
            "kwargs": {"name": self.name, "given": self.when.model_dump(mode="json") | {"plan": self.plan}},
            "options": {"queue": "control", "expires": _EXPIRES},
        }


# --- which there are ------------------------------------------------------------------------------


def declared(settings: Settings) -> tuple[list[Schedule], list[str]]:
    """Those of the configuration and of stored plans, by name; and what is wrong with others."""
    found: dict[str, Schedule] = {}
    wrong: list[str] = []
    for name, given in settings.schedules.items():
        if not given.plan:
            wrong.append(f"schedule {name}: it names no plan")
            continue
        found[name] = Schedule(name, given.plan, given)
    for schedule, why in _of_plans():
        if why:
            wrong.append(why)
        elif schedule is not None and schedule.name in found:
            wrong.append(f"schedule {schedule.name} is there twice: in the configuration, and in its plan")
        elif schedule is not None:
            found[schedule.name] = schedule
    return [found[name] for name in sorted(found)], wrong


def _of_plans() -> Iterator[tuple[Schedule | None, str]]:
    for name in stored():
        try:
            plan = _read(name, _changed(name))
        except Exception as error:  # noqa: BLE001 - a package's mistake must not keep workers from starting
            yield None, f"plan {name}: {error}"
            continue
        for part, when in plan.schedules.items():
            yield Schedule(f"{plan.name}.{part}", name, when), ""


@lru_cache(maxsize=512)
def _read(name: str, changed: tuple[Any, ...]) -> Plan:  # noqa: ARG001 - a file is read again once it has changed
    return load(name, check=False)  # when it is started


def _changed(name: str) -> tuple[Any, ...]:
    path = where_stored(name)
    if path is None:
        return ()
    info = path.stat()
    return (str(path), info.st_mtime_ns, info.st_size)


def given(settings: Settings, name: str, said: Mapping[str, Any]) -> Schedule:
    """One that an entry carries: of a stored plan, and by a name of its own. UsageError."""
    for each in declared(settings)[0]:
        if each.name == name:
            return each
    try:
        when = Scheduled.model_validate(said)
    except ValueError as error:
        raise UsageError(f"schedule {name}: {' '.join(str(error).split())}") from None
    if when.plan not in stored():
        raise UsageError(
            f"schedule {name}: its plan {when.plan!r} is no stored plan", remedy="LONGSHORE_PLANS has them"
        )
    return Schedule(name, when.plan, when)


def problem(schedule: Schedule) -> str:
    """Why it cannot be started; '' where it can."""
    try:
        resolve(schedule.loaded().params, schedule.when.params)
    except (LongshoreError, OSError) as error:
        return str(error)
    return ""


def find(settings: Settings, name: str) -> Schedule:
    """UnknownName names those that there are."""
    known, _ = declared(settings)
    for schedule in known:
        if schedule.name == name:
            return schedule
    raise UnknownName(
        f"there is no schedule {name!r} (there are: {listed([each.name for each in known]) or 'none'})",
        remedy="beats, workers and whoever asks have to read the same configuration and LONGSHORE_PLANS",
    )


# --- starting -------------------------------------------------------------------------------------


def start_due(client: Client) -> list[Run]:
    """Start what is due of all that is declared; returns the runs. What cannot be started now is due again."""
    known, wrong = declared(client.settings)
    for why in wrong:
        _say(why)
    if not known:
        return []
    schedules = ScheduleMarks(client.store)
    marks, paused, now = schedules.marks(), schedules.paused(), client.store.now()
    started: list[Run] = []
    for schedule in known:
        started += _start(client, schedules, schedule, marks.get(schedule.name), now, paused)
    return started


def start_one(client: Client, schedule: Schedule) -> list[Run]:
    """The same of one, because a beat has fired for it."""
    schedules = ScheduleMarks(client.store)
    now, mark = client.store.now(), schedules.marks().get(schedule.name)
    if mark is None:
        # The beat knew of it before: what it has fired for was planned just now.
        mark = Mark(now - _FIRST, schedule.said())
    return _start(client, schedules, schedule, mark, now, schedules.paused())


def _start(
    client: Client, schedules: ScheduleMarks, schedule: Schedule, mark: Mark | None, now: int, paused: Mapping[str, str]
) -> list[Run]:
    name = schedule.name
    if mark is None or mark.schedule != schedule.said():
        # What a schedule would have planned before it was there is nothing that was missed.
        schedules.put(name, Mark(now, schedule.said()))
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
                log.warning("schedule %s: the start planned for %s has to wait: %s", name, at, error)
                return started
            except LongshoreError as error:
                log.error("schedule %s cannot be started: %s", name, error)
                audit.note_refusal(client.store, f"schedule {name} cannot be started: {error}", actor="schedule")
                continue
            started += [run] if run is not None else []
    now_known = schedules.marks().get(name)
    if now_known is None or now_known.schedule != mark.schedule or now_known.until < times[-1]:
        schedules.put(name, Mark(times[-1], mark.schedule))  # a tick that was quicker has seen more
    return started


def start_at(client: Client, schedule: Schedule, at: int) -> Run | None:
    """The run planned for that time, which another may have started; None where it is passed over."""
    plan, planned = schedule.loaded(), run_id(schedule.name, at)
    if schedule.when.overlap == "skip" and client.store.body(planned) is None:
        holders = Admission(client.store).holders(
            AdmissionRequest("", key=plan.concurrency.key if plan.concurrency else "")
        )
        if holders:
            log.info("schedule %s: %s still runs, and this start is passed over", schedule.name, ", ".join(holders))
            return None
    try:
        return client.start(plan, schedule.when.params, run_id=planned)
    except RunConflict:
        return None  # another has started it, by what the plan said at that moment


def trigger(client: Client, name: str) -> Run:
    """Start it now, whatever its times are, in a run of its own. UnknownName."""
    schedule = find(client.settings, name)
    return client.start(schedule.loaded(), schedule.when.params, run_id=f"{name[:100]}.by-hand-{uuid4().hex[:8]}")


def pause(store: Store, name: str, *, paused: bool) -> bool:
    """Whether that changed anything."""
    schedules, who = ScheduleMarks(store), actor(store.settings)
    if paused == (name in schedules.paused()):
        return False
    if paused:
        schedules.pause(name, who)
    else:
        schedules.resume(name)
    audit.report(store, "pause schedule" if paused else "resume schedule", step=name, actor=who)
    return True


#: What was said of those that cannot be used, by this process.
_said: set[str] = set()


def _say(text: str) -> None:
    """What is wrong is told when it is new, and not at every tick that finds it so."""
    if text not in _said:
        log.error("%s", text)
        _said.add(text)


def upcoming(schedule: Schedule, now: int) -> datetime | None:
    """When it is planned next."""
    at = schedule.when.next(now)
    return datetime.fromtimestamp(at / 1000, UTC) if at is not None else None

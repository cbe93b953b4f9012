"""Schedules of plans: declared in the configuration, in stored plans, or in an entry of an application's beat.

A schedule is an ordinary entry of `beat_schedule` (`entry`), for Celery's own beat and for RedBeat. A message of beat
only triggers a check: the worker decides from the mark in Redis which planned times are due. Two beats therefore start
one run, and missed times are made up for as the schedule defines.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from longshore.orchestration.errors import (
    LongshoreError,
    UnknownName,
    UsageError,
)
from longshore.orchestration.language.params import resolve
from longshore.orchestration.language.schedule import Scheduled
from longshore.orchestration.language.targets import listed
from longshore.orchestration.plans.loading import load, stored, where_stored
from longshore.orchestration.plans.model import Concurrency, Plan
from longshore.orchestration.settings import Settings

if TYPE_CHECKING:
    pass


#: The Celery task that checks whether a schedule is due.
TASK = "longshore.scheduled"
#: Seconds after which a message of beat expires; later ones cover the same planned times.
_EXPIRES = 300


@dataclass(frozen=True)
class Schedule:
    """A named schedule of a plan. `plan` is the name of a stored plan, or a file."""

    name: str
    plan: str
    when: Scheduled

    def definition(self) -> str:
        """The text that its mark records; after a change of it, earlier planned times do not count as missed."""
        return self.when.as_text()

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
    """The declared schedule of that name. Raises UnknownName."""
    for schedule in declared(settings)[0]:
        if schedule.name == name:
            return schedule
    raise unknown(settings, name)


def unknown(settings: Settings, name: str) -> UnknownName:
    """The error of an unknown schedule, which lists the declared ones."""
    known = listed([each.name for each in declared(settings)[0]])
    return UnknownName(
        f"no schedule {name!r} (declared: {known or 'none'})",
        remedy="use the same configuration and LONGSHORE_PLANS for beats, workers and clients",
    )

"""The facade of schedules: list, trigger, pause and resume the schedules of an installation."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import uuid4

from longshore.orchestration.client.client import Client
from longshore.orchestration.client.run import Run
from longshore.orchestration.schedules.declarations import Schedule, declared, find, unknown
from longshore.orchestration.schedules.due_times import ScheduleMarks
from longshore.orchestration.store import audit
from longshore.orchestration.store.run_store import actor


@dataclass(frozen=True)
class ScheduleStatus:
    """One schedule at the time of a listing.

    `schedule` is None where it is not declared here: a schedule of a job, or of an entry of another beat. `when` is its
    definition as text, `next` its next planned time, `done_until` the time up to which all planned starts are handled,
    `paused_by` the person who has paused it.
    """

    name: str
    schedule: Schedule | None
    when: str
    next: datetime | None
    done_until: datetime | None
    paused_by: str | None


@dataclass(frozen=True)
class ScheduleListing:
    """The schedules of an installation, the declared ones first, by name; `errors` of invalid declarations."""

    schedules: list[ScheduleStatus]
    errors: list[str]


class Schedules:
    """Lists, triggers, pauses and resumes the schedules of an installation.

    The declarations come from the settings and the stored plans of this process, and the times from Redis.
    """

    def __init__(self, client: Client) -> None:
        self._client = client

    @property
    def _marks(self) -> ScheduleMarks:
        return ScheduleMarks(self._client.store)

    def list(self) -> ScheduleListing:
        """All schedules, including schedules of jobs, and schedules that only another process declares."""
        known, errors = declared(self._client.settings)
        marks, paused, now = self._marks.marks(), self._marks.paused(), self._client.store.now()
        by_name = {each.name: each for each in known}
        found = []
        for name in [*by_name, *sorted(marks.keys() - by_name)]:
            schedule, mark = by_name.get(name), marks.get(name)
            found.append(
                ScheduleStatus(
                    name,
                    schedule,
                    when=schedule.definition() if schedule else marks[name].schedule,
                    next=_time(schedule.when.next(now)) if schedule else None,
                    done_until=_time(mark.until) if mark else None,
                    paused_by=paused.get(name),
                )
            )
        return ScheduleListing(found, errors)

    def status(self, name: str) -> ScheduleStatus:
        """The schedule of this name. Raises UnknownName if no such schedule exists."""
        for each in self.list().schedules:
            if each.name == name:
                return each
        raise unknown(self._client.settings, name)

    def trigger(self, name: str) -> Run:
        """Start the plan of a declared schedule now. The times of the schedule do not change.

        Raises UnknownName if this process does not declare the schedule, and raises as `Client.start` does.
        """
        schedule = find(self._client.settings, name)
        run_id = f"{name[:100]}.by-hand-{uuid4().hex[:8]}"
        return self._client.start(schedule.loaded(), schedule.when.params, run_id=run_id)

    def pause(self, name: str) -> bool:
        """Pause a schedule until `resume`. Returns False if the schedule was paused already. Raises UnknownName.

        Times that pass during the pause do not count as missed.
        """
        return self._set_paused(name, paused=True)

    def resume(self, name: str) -> bool:
        """Resume a schedule. Returns False if the schedule was not paused. Raises UnknownName."""
        return self._set_paused(name, paused=False)

    def _set_paused(self, name: str, *, paused: bool) -> bool:
        if paused == (self.status(name).paused_by is not None):
            return False
        who = actor(self._client.settings)
        if paused:
            self._marks.pause(name, who)
        else:
            self._marks.resume(name)
        audit.report(self._client.store, "pause schedule" if paused else "resume schedule", step=name, actor=who)
        return True


def _time(ms: int | None) -> datetime | None:
    return None if ms is None else datetime.fromtimestamp(ms / 1000, UTC)

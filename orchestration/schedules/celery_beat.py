"""Entries of Longshore's schedules for the beat of an application, static or through RedBeat.

The application must use Longshore's Redis as its broker. Its workers need no change: Longshore's workers consume the
messages.
"""

from __future__ import annotations

from typing import Any

from longshore.orchestration.errors import ConfigError
from longshore.orchestration.messaging.canvas import producer
from longshore.orchestration.schedules.declarations import Schedule, declared
from longshore.orchestration.settings import Settings, get_settings


def beat_schedule(settings: Settings | None = None) -> dict[str, dict[str, Any]]:
    """Entries of all declared schedules for `app.conf.beat_schedule`, by name."""
    known, _ = declared(settings or get_settings())
    return {each.entry_name: each.entry() for each in known}


def redbeat_entry(schedule: Schedule, settings: Settings | None = None) -> Any:
    """The RedBeat entry of a schedule, which can be saved or deleted while beats run (`LONGSHORE_BEAT=redbeat`). Raises
    ConfigError where celery-redbeat is missing.
    """
    try:
        from redbeat.schedulers import RedBeatSchedulerEntry, ensure_conf  # noqa: PLC0415 - an extra
    except ImportError:
        raise ConfigError("celery-redbeat is missing", remedy="pip install 'longshore[redbeat]'") from None
    known = settings or get_settings()
    app = producer(known)
    app.conf.update(redbeat(known))
    ensure_conf(app)
    return RedBeatSchedulerEntry(schedule.entry_name, app=app, **schedule.entry())


def redbeat(settings: Settings) -> dict[str, Any]:
    """RedBeat's settings: entries beside Longshore's own keys, and a lock that makes one of several beats active."""
    return {
        "redbeat_redis_url": settings.url(),
        "redbeat_key_prefix": f"{settings.namespace}:redbeat:",
        "redbeat_redis_options": {"socket_connect_timeout": settings.connect_timeout, "health_check_interval": 15},
        "redbeat_lock_timeout": round(5 * max(settings.tick, 1.0)),
        "beat_max_loop_interval": max(settings.tick, 1.0),
    }

"""Redis's users, one a role, as lines of its ACL file.

* `worker`: every record and queue of this installation, and nothing of another's
* `operator`: what people do by the command line: start, read, command, drain, pause
* `client`: an application: start and read; no record of a run can be written, and no step's either
* `flower`: reads records, commands runs, listens to workers
* `monitor`: what a scrape of the metrics, and doctor, read, and the counters

None of them may flush, configure, or list what is not theirs. `default` is off.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from urllib.parse import quote

from longshore.orchestration.operations import all_operations
from longshore.orchestration.settings import Settings

ROLES = ("worker", "operator", "client", "flower", "monitor")
#: Families whose queues are there in every installation.
_FAMILIES = ("control", "docker", "compose", "cache", "command", "file", "network", "node", "noop", "functions")

#: Celery's broadcasts: remote control, events, and the patterns by which workers and Flower hear them.
_TOPICS = ("celery.pidbox", "celeryev/*", "celeryev/worker.*", "celeryev/task.*")

#: What scripts and producers call, for those who ask and do not work.
_ASKING = (
    "-@all +@connection +@read +@transaction +evalsha +script|load +script|exists "
    "+set +del +incr +incrby +hincrby +hincrbyfloat +hset "
    "+hsetnx +hdel +zadd +zrem +xadd +lpush +rpush +blpop +sadd +srem +expire +pexpire +publish +subscribe +psubscribe "
    "+unsubscribe +punsubscribe +time +info +wait +ping +exists"
)
#: Flower hears what workers answer to it.
_MORE = {"flower": " +brpop", "operator": " +brpop +scan"}
_WORKING = "+@all -@admin -@dangerous +info"


def queues(settings: Settings, own: Iterable[str] = ()) -> list[str]:
    """Patterns of the names that queues have in Redis: `docker`, `docker.undo`, `docker@web1`, …"""
    known = dict.fromkeys([*_FAMILIES, *(op.queue for op in all_operations().values()), *own])
    prefix = settings.broker_prefix()
    return [f"{prefix}{name}{end}" for name in known for end in ("", ".undo", "@*")]


def users(settings: Settings, passwords: Mapping[str, str], own_queues: Iterable[str] = (), *, admin: str = "") -> str:
    """The file's text; `passwords` by role, kept as digests. `own_queues` are those of own operations."""
    # With `nopass` Redis would take itself for unprotected, and answer this machine only.
    lines = ["user default off resetpass sanitize-payload resetchannels -@all"]
    if admin:
        lines.append(f"user admin on #{_digest(admin)} ~* &* +@all")
    for role in ROLES:
        if role in passwords:
            keys = " ".join(_KEYS[role](settings, list(own_queues)))
            commands = _WORKING if role == "worker" else _ASKING + _MORE.get(role, "")
            lines.append(f"user longshore-{role} on #{_digest(passwords[role])} resetchannels {keys} {commands}")
    return "\n".join(lines) + "\n"


def url(role: str, password: str, where: str = "redis://redis:6379/0") -> str:
    """The URL by which that role reaches Redis."""
    scheme, _, rest = where.partition("://")
    return f"{scheme}://longshore-{role}:{quote(password, safe='')}@{rest}"


def _digest(password: str) -> str:
    return hashlib.sha256(password.encode()).hexdigest()


def _broker(settings: Settings, own: list[str]) -> list[str]:
    """The keys and channels of all that is a broker's."""
    prefix = settings.broker_prefix()
    names = [*queues(settings, own), *(f"{prefix}{name}" for name in ("_kombu.*", "unacked*", "*.pidbox", "celeryev*"))]
    # A pattern that is subscribed to has to stand here as it is. The database is part of a channel's name.
    topics = [f"{prefix}/{db}.{name}" for db in range(16) for name in _TOPICS]
    return [*(f"~{name}" for name in names), *(f"&{topic}" for topic in topics)]


def _sends(settings: Settings, own: list[str]) -> list[str]:
    prefix = settings.broker_prefix()
    return [*(f"~{name}" for name in queues(settings, own)), f"~{prefix}_kombu.binding*"]


def _asks(settings: Settings) -> list[str]:
    """A request, written once; commands; dry runs; and the indices of what is wanted."""
    space = settings.namespace
    own = [":{*}:request", ":{*}:commands", ":inbox", ":queue", ":known", ":order", ":probe:*", ":answers:*"]
    return [f"%R~{space}:*", *(f"~{space}{name}" for name in [*own, ":jobs-asked", ":reported"])]


def _operates(settings: Settings) -> list[str]:
    own = (":machine:*", ":fleet", ":breaker*", ":blocked:*", ":probing:*", ":paused", ":job:*", ":counted*")
    more = (":cache:*", ":orchestrating", ":jobs-seen", ":scheduled")
    return [f"~{settings.namespace}{name}" for name in (*own, *more)]


_KEYS = {
    # Why an application's own task has failed is in the results of that application.
    "worker": lambda settings, own: [
        f"~{settings.namespace}:*",
        *(f"%R~{prefix}celery-task-meta-*" for prefix in dict.fromkeys(["", settings.broker_prefix()])),
        *_broker(settings, own),
    ],
    "operator": lambda settings, own: [*_asks(settings), *_operates(settings), *_broker(settings, own)],
    "client": lambda settings, own: [*_asks(settings), *_sends(settings, own)],
    "flower": lambda settings, own: [*_asks(settings), *_broker(settings, own)],
    "monitor": lambda settings, own: [
        *(f"%R~{name}" for name in [f"{settings.namespace}:*", *queues(settings, own)]),
        f"~{settings.namespace}:counted*",
    ],
}  # fmt: skip

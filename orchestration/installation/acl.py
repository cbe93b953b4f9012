"""Redis's users, one a role, as lines of its ACL file.

* `worker`: every record and queue of this installation, and nothing of another's
* `operator`: what people do by the command line: start, read, command, drain, pause
* `client`: an application: start and read; no record of a run can be written, and no step's either
* `flower`: reads records, commands runs, listens to workers
* `monitor`: what a scrape of the metrics, and doctor, read, and the counters

Each has its commands by name: none may flush, configure, load a script of its own (but workers), look at or end the
connections of others, or, but for workers and operators, list keys. `default` is off.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from urllib.parse import quote

from longshore.orchestration.operations import all_operations
from longshore.orchestration.settings import Settings
from longshore.orchestration.store.keys import Keys

ROLES = ("worker", "operator", "client", "flower", "monitor")
#: Families whose queues are there in every installation.
_FAMILIES = ("control", "docker", "compose", "cache", "command", "file", "network", "node", "noop", "functions")

#: Celery's broadcasts: remote control, events, and the patterns by which workers and Flower hear them.
_TOPICS = ("celery.pidbox", "celeryev/*", "celeryev/worker.*", "celeryev/task.*")

#: What all of them read. No KEYS and no SCAN: keys are known by their names, or not at all.
_READS = (
    "exists get hexists hget hgetall hkeys hlen hmget hvals llen lrange mget pttl scard sismember smembers ttl type "
    "xlen xrange xread xrevrange zcard zcount zrange zrangebyscore zrevrange zscore"
)
#: A connection, a transaction, and how far replicas are. Redis itself lets everybody call AUTH, HELLO, QUIT and RESET.
_CONNECTS = "discard exec multi ping select time unwatch wait watch"
#: What a request, a command, a dry run and a message are written with. Scripts are called by digest, and loaded by
#: workers alone: whoever could load one could stop Redis with an endless loop.
_ASKS = "blpop del evalsha expire hset incr lpush pexpire sadd set xadd zadd zrem"
#: What counts what people and scrapes do, and keeps it.
_COUNTS = "hdel hincrby hincrbyfloat hset hsetnx incrby persist"
#: How remote control and events are spoken to workers, and heard.
_HEARS = "brpop psubscribe publish punsubscribe srem subscribe unsubscribe"
#: What doctor asks.
_DIAGNOSES = "info script|exists"
#: With RENAME it moves a key of a wrong type out of the way, to `…:damaged:…`, and with HSCAN it reads a long index.
_WORKS = f"{_ASKS} {_COUNTS} {_HEARS} {_DIAGNOSES} hscan rename rpop rpush scan script|load srandmember zremrangebyrank"
#: By role, each command by its name.
COMMANDS: dict[str, frozenset[str]] = {
    role: frozenset(f"{_READS} {_CONNECTS} {more}".split())
    for role, more in {
        "worker": _WORKS,
        # Caches are found by their names' beginning.
        "operator": f"{_ASKS} {_COUNTS} {_HEARS} {_DIAGNOSES} rpush scan",
        "client": _ASKS,
        "flower": f"{_ASKS} {_HEARS} {_DIAGNOSES}",
        "monitor": f"{_COUNTS} {_DIAGNOSES}",
    }.items()
}


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
            commands = " ".join(["-@all", *(f"+{name}" for name in sorted(COMMANDS[role]))])
            lines.append(f"user longshore-{role} on #{_digest(passwords[role])} resetchannels {keys} {commands}")
    return "\n".join(lines) + "\n"


def url(role: str, password: str, where: str = "redis://redis:6379/0") -> str:
    """The URL by which that role reaches Redis."""
    scheme, _, rest = where.partition("://")
    return f"{scheme}://longshore-{role}:{quote(password, safe='')}@{rest}"


def _digest(password: str) -> str:
    return hashlib.sha256(password.encode()).hexdigest()


def _transport(settings: Settings, own: list[str]) -> list[str]:
    """The keys of messages that wait, of those that were delivered, and of bindings."""
    prefix = settings.broker_prefix()
    return [*queues(settings, own), *(f"{prefix}{name}" for name in ("_kombu.*", "unacked*"))]


def _broker(settings: Settings, own: list[str]) -> list[str]:
    """The keys and channels of all that is a broker's."""
    prefix = settings.broker_prefix()
    names = [*_transport(settings, own), *(f"{prefix}{name}" for name in ("*.pidbox", "celeryev*"))]
    # A pattern that is subscribed to has to stand here as it is. The database is part of a channel's name.
    topics = [f"{prefix}/{db}.{name}" for db in range(16) for name in _TOPICS]
    return [*(f"~{name}" for name in names), *(f"&{topic}" for topic in topics)]


def _sends(settings: Settings, own: list[str]) -> list[str]:
    """What is in a queue is not for its senders: another's message could be read there, and put into another queue."""
    prefix = settings.broker_prefix()
    return [*(f"%W~{name}" for name in queues(settings, own)), f"~{prefix}_kombu.binding*"]


def _asks(settings: Settings) -> list[str]:
    """A request, written once; commands; dry runs; and the indices of what is wanted."""
    space = settings.namespace
    own = [
        ":{*}:request",
        ":{*}:commands",
        ":inbox",
        ":queue",
        ":admission-requests",
        ":admission-order",
        ":dry-run:*",
        ":dry-run-answers:*",
    ]
    records = [f"%R~{name}" for name in _records(Keys(space))]
    return [*records, *(f"~{space}{name}" for name in [*own, ":job-questions", ":client-reports"])]


def _records(keys: Keys) -> list[str]:
    """Patterns of all that is recorded. Those of queues begin alike where the name space is not the default one."""
    patterns = [f"{keys.namespace}:{{*}}:*"]
    for name, made in vars(Keys).items():
        if isinstance(made, property):
            patterns.append(str(getattr(keys, name)))
        elif callable(made) and not name.startswith("_") and name != "of":
            patterns.append(str(made(keys, "*")))
    return patterns


def _operates(settings: Settings) -> list[str]:
    own = (":host:*", ":hosts", ":breaker*", ":blocked:*", ":half-open:*", ":paused-schedules", ":job:*", ":counters*")
    more = (":cache:*", ":active-rollouts", ":job-snapshots", ":schedule-marks")
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
        *(f"%R~{name}" for name in [f"{settings.namespace}:*", *_transport(settings, own)]),
        f"~{settings.namespace}:counters*",
    ],
}  # fmt: skip

"""Users of Redis, one per role, as lines of its ACL file.

* `worker`: reads and writes every record and queue of this installation, and of no other
* `operator`: the command line: start, read, command, drain, pause
* `client`: an application: start and read runs; may write no record of a run or of a step
* `flower`: reads records, commands runs, receives the events of workers
* `monitor`: a scrape of the metrics, and doctor; writes the counters only

Each role has a list of allowed commands. No role may flush or configure Redis, or list or end connections; only workers
may load scripts, and only workers and operators may list keys. The user `default` is off.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from urllib.parse import quote

from longshore.orchestration.operations import all_operations
from longshore.orchestration.settings import Settings
from longshore.orchestration.store.keys import Keys

ROLES = ("worker", "operator", "client", "flower", "monitor")
#: Families whose queues exist in every installation.
_FAMILIES = ("control", "docker", "compose", "cache", "command", "file", "network", "node", "noop", "functions")

#: Channels of Celery's remote control and events, and the patterns that workers and Flower subscribe to.
_TOPICS = ("celery.pidbox", "celeryev/*", "celeryev/worker.*", "celeryev/task.*")

#: Read commands of every role. Neither KEYS nor SCAN, so that keys cannot be listed.
_READS = (
    "exists get hexists hget hgetall hkeys hlen hmget hvals llen lrange mget pttl scard sismember smembers ttl type "
    "xlen xrange xread xrevrange zcard zcount zmscore zrange zrangebyscore zrank zrevrange zscore"
)
#: Connection, transactions and WAIT. Redis always allows AUTH, HELLO, QUIT and RESET.
_CONNECTION = "discard exec multi ping select time unwatch wait watch"
#: Writes of a request, a command, a dry run and a message. Scripts are called by digest, and only workers may load
#: them, because an endless loop in a script stops Redis.
_REQUESTS = "blpop del evalsha expire hset incr lpush pexpire sadd set xadd zadd zrem"
#: Writes of counters.
_COUNTERS = "hdel hincrby hincrbyfloat hset hsetnx incrby persist"
#: Remote control and events of workers: publish and subscribe.
_REMOTE_CONTROL = "brpop psubscribe publish pubsub|numpat punsubscribe srem subscribe unsubscribe"
#: Commands of doctor.
_DIAGNOSES = "info script|exists"
#: RENAME moves a key of a wrong type to `…:damaged:…`; HSCAN reads a long index.
_WORKER = (
    f"{_REQUESTS} {_COUNTERS} {_REMOTE_CONTROL} {_DIAGNOSES} "
    "hscan rename rpop rpush scan script|load srandmember zremrangebyrank"
)
#: The allowed commands of each role.
COMMANDS: dict[str, frozenset[str]] = {
    role: frozenset(f"{_READS} {_CONNECTION} {more}".split())
    for role, more in {
        "worker": _WORKER,
        # SCAN finds caches by their prefix.
        "operator": f"{_REQUESTS} {_COUNTERS} {_REMOTE_CONTROL} {_DIAGNOSES} rpush scan",
        "client": _REQUESTS,
        "flower": f"{_REQUESTS} {_REMOTE_CONTROL} {_DIAGNOSES}",
        "monitor": f"{_COUNTERS} {_DIAGNOSES}",
    }.items()
}


def queues(settings: Settings, own: Iterable[str] = ()) -> list[str]:
    """Patterns of the queues' keys in Redis: `docker`, `docker.undo`, `docker@web1`, …

    Messages of other priorities than 0 have lists of their own: Celery appends two control characters and a digit. Only
    tasks of an application have priorities.
    """
    own = list(own)
    known = dict.fromkeys([*_FAMILIES, *(op.queue for op in all_operations().values()), *own])
    prefix = settings.broker_prefix()
    priorities = [f"{prefix}{name}??[0-9]" for name in own]
    return [f"{prefix}{name}{end}" for name in known for end in ("", ".undo", "@*")] + priorities


def users(settings: Settings, passwords: Mapping[str, str], own_queues: Iterable[str] = (), *, admin: str = "") -> str:
    """The text of the ACL file, with the digests of `passwords`, by role. `own_queues`: of custom operations."""
    # With `nopass`, Redis enters protected mode and serves local clients only.
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
    """The Redis URL of a role."""
    scheme, _, rest = where.partition("://")
    return f"{scheme}://longshore-{role}:{quote(password, safe='')}@{rest}"


def _digest(password: str) -> str:
    return hashlib.sha256(password.encode()).hexdigest()


def _transport(settings: Settings, own: list[str]) -> list[str]:
    """Keys of queued messages, of unacknowledged messages and of bindings."""
    prefix = settings.broker_prefix()
    return [*queues(settings, own), *(f"{prefix}{name}" for name in ("_kombu.*", "unacked*"))]


def _broker(settings: Settings, own: list[str]) -> list[str]:
    """All keys and channels of the broker."""
    prefix = settings.broker_prefix()
    names = [*_transport(settings, own), *(f"{prefix}{name}" for name in ("*.pidbox", "celeryev*"))]
    # Redis compares subscribed patterns literally. The database number is part of a channel's name.
    topics = [f"{prefix}/{db}.{name}" for db in range(16) for name in _TOPICS]
    return [*(f"~{name}" for name in names), *(f"&{topic}" for topic in topics)]


def _producer(settings: Settings, own: list[str]) -> list[str]:
    """Write-only access to queues: a client that could read a message could move it into another queue."""
    prefix = settings.broker_prefix()
    return [*(f"%W~{name}" for name in queues(settings, own)), f"~{prefix}_kombu.binding*"]


def _requests(settings: Settings) -> list[str]:
    """Access to records (read-only), requests, commands, dry runs and the indices of admission."""
    space = settings.namespace
    own = [
        ":{*}:request",
        ":{*}:commands",
        ":inbox",
        ":queue",
        ":admission-requests",
        ":admission-order",
        ":new",
        ":waiting:*",
        ":waiting-queues",
        ":dry-run:*",
        ":dry-run-answers:*",
    ]
    records = [f"%R~{name}" for name in _records(Keys(space))]
    return [*records, *(f"~{space}{name}" for name in [*own, ":job-questions", ":client-reports"])]


def _records(keys: Keys) -> list[str]:
    """Patterns of all record keys. Queue keys share their prefix unless the namespace is the default one."""
    patterns = [f"{keys.namespace}:{{*}}:*"]
    for name, made in vars(Keys).items():
        if isinstance(made, property):
            patterns.append(str(getattr(keys, name)))
        elif callable(made) and not name.startswith("_") and name != "of":
            patterns.append(str(made(keys, "*")))
    return patterns


def _operator(settings: Settings) -> list[str]:
    own = (":host:*", ":hosts", ":breaker*", ":blocked:*", ":half-open:*", ":paused-schedules", ":job:*", ":counters")
    more = (":counted-runs", ":cache:*", ":active-rollouts", ":job-snapshots", ":schedule-marks")
    return [f"~{settings.namespace}{name}" for name in (*own, *more)]


_KEYS = {
    # An application's result backend holds the errors of its own tasks.
    "worker": lambda settings, own: [
        f"~{settings.namespace}:*",
        *(f"%R~{prefix}celery-task-meta-*" for prefix in dict.fromkeys(["", settings.broker_prefix()])),
        *_broker(settings, own),
    ],
    "operator": lambda settings, own: [*_requests(settings), *_operator(settings), *_broker(settings, own)],
    "client": lambda settings, own: [*_requests(settings), *_producer(settings, own)],
    "flower": lambda settings, own: [*_requests(settings), *_broker(settings, own)],
    "monitor": lambda settings, own: [
        *(f"%R~{name}" for name in [f"{settings.namespace}:*", *_transport(settings, own)]),
        *(f"~{settings.namespace}:{name}" for name in ("counters", "counted-runs")),
    ],
}  # fmt: skip

"""Settings, by precedence: flag, `LONGSHORE_*` environment, file, default."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote, unquote, urlsplit

import yaml
from pydantic import Field, ValidationError, ValidationInfo, field_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
    YamlConfigSettingsSource,
)

from longshore.orchestration.errors import ConfigError, plain
from longshore.orchestration.language.durations import Duration
from longshore.orchestration.language.schedule import Scheduled, ScheduleName
from longshore.orchestration.language.targets import is_host_name, parse_facts, parse_labels

log = logging.getLogger(__name__)

#: The most steps of a plan: one Lua script processes the whole record.
MAX_STEPS = 10_000
#: The largest plan in bytes, with its parameters and files, as stored.
MAX_PLAN_BYTES = 32 * 1024 * 1024
#: The largest local file that a plan carries, in bytes.
MAX_FILE_BYTES = 1024 * 1024
#: The largest recorded data of a step, in bytes; larger data fails the step.
MAX_DATA_BYTES = 4 * 1024 * 1024
#: Step data above this size, in bytes, has a key of its own, read on demand.
LARGE_DATA_BYTES = 64 * 1024
#: The most units of one step: items, hosts, or their product.
MAX_UNITS = 10_000


#: Scheme of a URL that names Redis Sentinels.
SENTINEL = "sentinel://"


@dataclass(frozen=True)
class Sentinel:
    """`sentinel://[USER:PASSWORD@]HOST:PORT[,HOST:PORT…]/SERVICE[/DB]`; with the server's user and password."""

    hosts: tuple[tuple[str, int], ...]
    service: str
    db: int = 0
    username: str | None = None
    password: str | None = None

    def broker_url(self) -> str:
        who = ""
        if self.password is not None:
            who = f"{quote(self.username or '', safe='')}:{quote(self.password, safe='')}@"
        return ";".join(f"{SENTINEL}{who}{host}:{port}/{self.db}" for host, port in self.hosts)


def sentinel(url: str) -> Sentinel:
    """Parse a `sentinel://` URL. Raises ConfigError."""
    rest, _, _ = url.removeprefix(SENTINEL).partition("?")
    who, _, where = rest.rpartition("@")
    places, _, path = where.partition("/")
    service, _, db = path.partition("/")
    user, _, password = who.partition(":")
    hosts = [place.rpartition(":") for place in places.split(",") if place]
    if not hosts or not service or not all(host and port.isdigit() for host, _, port in hosts):
        raise ConfigError(
            "the Redis URL names no sentinel, or no service",
            remedy="write it as sentinel://host1:26379,host2:26379/mymaster/0",
        )
    return Sentinel(
        tuple((host, int(port)) for host, _, port in hosts), service, int(db or 0),
        unquote(user) or None, unquote(password) if who else None,
    )  # fmt: skip


def _state_home() -> Path:
    base = os.environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local" / "state") / "longshore"


class Settings(BaseSettings):
    """All settings of an installation. Each setting is also an environment variable, such as `LONGSHORE_REDIS_URL`."""

    model_config = SettingsConfigDict(env_prefix="LONGSHORE_", env_ignore_empty=True, extra="forbid", frozen=True)

    #: URL of Redis. If it is not set, a client starts an embedded server, whose data is in the state folder.
    redis_url: str | None = None
    #: Name space: prefix of all keys, which separates several installations on one Redis.
    namespace: str = Field(default="longshore", pattern=r"^[A-Za-z0-9_-]{1,32}$")
    #: State folder of this host, for receipts, backups for undos, and the data of the embedded server. The default is
    #: $XDG_STATE_HOME/longshore, or ~/.local/state/longshore if XDG_STATE_HOME is not set.
    state_dir: Path = Field(default_factory=_state_home)
    #: Folders of plans, separated by `:`. Clients and workers find a plan in them by its name.
    plans: str = ""
    #: Files that describe [jobs](../how-to/jobs.md), in addition to the labels of containers; separated by `:`.
    jobs: str = ""
    #: File with [rules for stacks](../how-to/stacks.md#rules-in-a-file), in addition to the labels of containers.
    stacks: str = ""
    #: Time for which the cached inventory of the stacks of a host is valid. After this time, the whole host is
    #: inspected again.
    cache_ttl: Duration = Field(default=3600.0, gt=0)
    #: Interval at which beat (`longshore beat`) starts an orchestration, which restarts the services that differ from
    #: their files or images ([Stacks](../how-to/stacks.md)). By default, beat starts none.
    orchestrate_every: Duration | None = Field(default=None, gt=0)
    #: Schedules of plans, by the name of the schedule. In the environment, the value is JSON.
    schedules: dict[ScheduleName, Scheduled] = Field(default_factory=dict)
    #: Scheduler of beat: `celery` is the scheduler of Celery, `redbeat` is RedBeat, which stores its entries in Redis.
    beat: Literal["celery", "redbeat"] = "celery"
    #: Interval at which beat checks for due plans and jobs.
    tick: Duration = 5.0
    #: Name by which Longshore recognises its job containers: the value of their label `longshore.job.installation`. By
    #: default, the name is a hash of the address of Redis and the name space. If workers use different addresses of the
    #: same Redis, set the same name on all of them. Before you change the address of Redis while job containers exist,
    #: set the present name, which `docker inspect CONTAINER` shows.
    installed_as: str = Field(default="", pattern=r"^[A-Za-z0-9._-]{0,64}$")
    #: The most jobs that run at the same time, over all stacks; further jobs wait. No limit by default.
    max_jobs: int | None = Field(default=None, ge=1)
    #: Modules with operations of your own, separated by commas. Clients and workers import them.
    imports: str = ""
    #: File for health checks. A worker updates the time of the file at each sweep (LONGSHORE_SWEEP_INTERVAL), and a
    #: beat at each tick (LONGSHORE_TICK).
    alive_file: str = ""
    #: Log format of workers: `text`, or `json` with one object per line.
    log_format: Literal["text", "json"] = "text"
    #: Whether workers export each ended run as an OpenTelemetry trace, to OTEL_EXPORTER_OTLP_ENDPOINT.
    tracing: bool = False
    #: The [kinds of notifications](../how-to/notifications.md) that workers send, separated by commas. By default, all.
    notify_on: str = "failed,undo_failed,approval_wanted,breaker_open"
    #: URL that receives notifications as JSON by POST.
    notify_webhook: str = ""
    #: Key of the [signature](../how-to/notifications.md#a-webhook) of the requests to LONGSHORE_NOTIFY_WEBHOOK. By
    #: default, the requests are not signed.
    notify_secret: str = ""
    #: Program with its arguments, which receives notifications as JSON on its standard input.
    notify_command: str = ""
    #: Apprise addresses that receive notifications, separated by blanks.
    notify_apprise: str = ""
    #: URL of Flower. If it is set, notifications contain a link to the run.
    notify_link: str = ""
    #: Name that reports, events and the audit trail show as the author of this process's commands. By default, the user
    #: of the operating system.
    actor: str | None = None
    #: Name that the audit trail shows as the origin of this process's commands. By default, the name of the machine.
    origin: str = ""
    #: Key file made by `longshore init`. If it is set, messages and requests are signed, and workers refuse unsigned
    #: ones. By default, messages are not signed.
    keys: str = ""
    #: Whether a plan with a plaintext password or token is refused or allowed.
    clear_secrets: Literal["refuse", "allow"] = "refuse"
    #: The largest size of a plan with its parameters, its child plans and the local files that its steps name as
    #: `source`, in bytes.
    max_plan: int = Field(default=MAX_PLAN_BYTES, ge=1024, le=MAX_PLAN_BYTES)

    #: URL of the Docker engine of a worker: unix://, tcp:// or ssh://. The default is the value of DOCKER_HOST, or the
    #: engine of the current Docker context if DOCKER_HOST is not set.
    docker_host: str = ""
    #: Folders in which operations may read and write, and which may be the working folder of a program, separated by
    #: `:`. Symbolic links that lead out of these folders are refused. By default, all folders are allowed.
    allowed_roots: str = "/"
    #: Programs that steps may start on the host: names or paths with * and ?, separated by commas; `-` allows none. By
    #: default, all programs are allowed. Programs inside of containers are not limited.
    allowed_commands: str = ""
    #: Environment variables that a plan may set for programs on the host, if LONGSHORE_ALLOWED_COMMANDS is set: names
    #: with * and ?, separated by commas. Do not add variables by which a program executes other code, such as BASH_ENV,
    #: LD_PRELOAD, PYTHONPATH or GIT_SSH_COMMAND.
    allowed_environment: str = (
        "LC_*,LANG,TZ,TERM,COLUMNS,LINES,NO_COLOR,PGHOST,PGPORT,PGUSER,PGPASSWORD,PGDATABASE,MYSQL_PWD,REDISCLI_AUTH"
    )
    #: Sources from which secret() may read: prefixes of environment variables, and folders, separated by commas; `-`
    #: allows none. Whatever the list contains, secret() never reads variables LONGSHORE_* (except LONGSHORE_SECRET_*),
    #: the worker's keys, its Redis URL or its state folder.
    allowed_secrets: str = "LONGSHORE_SECRET_,/run/secrets"
    #: Operations that this worker may run: names with * and ?, separated by commas. By default, all are allowed.
    allowed_operations: str = ""
    #: Images that this worker may pull, or create containers from: names with * and ?, separated by commas. By default,
    #: all are allowed. If the list is set, the worker builds no images, because a build can put any content behind an
    #: allowed name.
    allowed_images: str = ""
    #: Folders of the Docker host that containers may mount, separated by `:`. By default, all folders are allowed
    #: except system folders such as /etc, whole home folders, and the folders of Docker and of Longshore.
    allowed_binds: str = ""
    #: Machines that operations may connect to, separated by commas: names with * and ?, addresses, and networks
    #: (10.0.0.0/8). If a name resolves to a private address, the list must contain the address, too. By default, all
    #: hosts are allowed except link-local addresses (such as 169.254.169.254, the metadata service of clouds).
    allowed_hosts: str = ""
    #: Whether containers may have privileges on their host: `privileged`, devices, namespaces of the host other than
    #: the network, and each capability or option that is not in Longshore's list of harmless ones.
    allow_privileged: bool = False
    #: The largest size of an object (a file in Redis), in bytes.
    max_object: int = Field(default=16 * 1024 * 1024, ge=1, le=256 * 1024 * 1024)

    #: Name of this host. By default, the part after the @ in the node name of the worker: `web1` in `worker@web1`. This
    #: part is the name of the machine unless `longshore worker --host` or `celery worker -n` sets another one.
    host: str = ""
    #: Labels of this host, separated by commas: `role=web,group=web.dev.eu`. The target `role:web` of a step selects
    #: hosts with the label `role=web`.
    labels: str = ""
    #: Facts of this host in addition to the detected ones, for `when_fact` and templates: `rack=12,zone=eu-1`.
    facts: str = ""
    #: Number of replicas of Redis that must confirm a write. The default is 1 with a sentinel:// URL, and otherwise 0.
    replicas: int | None = Field(default=None, ge=0, le=10)
    #: Time for which a worker may run a step without renewing its [lease](../concepts/leases.md#lease). After this
    #: time, the worker loses the step, and another attempt may begin.
    lease: Duration = 15.0
    #: Interval of the sweep, in which each worker searches for due runs, lost messages and expired leases. A delayed
    #: retry begins up to this time late.
    sweep_interval: Duration = 1.0
    #: Time after which a dispatched step fails if no worker claims the step. The time also passes while all workers of
    #: its queue are busy with other runs. If a worker claims another step of the same run, the time begins again; for a
    #: step that is bound to one host, only if this worker is on the host. If the target of the step matches several
    #: hosts, [the time is shorter](hosts.md#missing-drained-and-lost-hosts) on a lost or stopped host.
    claim_timeout: Duration = 600.0
    #: Time limit of an attempt at a step without a `timeout`, except approvals, timers and child runs.
    step_timeout: Duration = 3600.0
    #: The most runs that may be admitted and not ended at the same time; further runs wait, in the order of their
    #: requests. Child runs do not count. An ended run that is resumed or undone does not wait. No limit by default.
    max_runs: int | None = Field(default=None, ge=1)
    #: The same limit for the runs of one plan. No limit by default.
    max_runs_per_plan: int | None = Field(default=None, ge=1)
    #: The most runs that may wait for their admission. The start of a further run is refused.
    max_queued: int = Field(default=10_000, ge=0)
    #: Number of lost attempts after which a step that can be repeated is not repeated again. The step then ends
    #: [unknown](../concepts/unknown.md), or waits for a person (`on_unknown: ask`).
    max_lost: int = Field(default=3, ge=1, le=1000)
    #: Time for which a run with `on_unknown: ask` waits for a person's decision about a step of unknown outcome. After
    #: this time, the step is `unknown` and counts as failed.
    ask_timeout: Duration = 86_400.0
    #: Time after which one run may try a service whose breaker has opened. The same time passes after an operation has
    #: raised [`Delayed`](../concepts/recovery.md#services) without `after`, until the worker asks for the outcome. Both
    #: times vary at random by up to 20 %.
    slow_retry: Duration = 30.0
    #: Time from the closing of a breaker until the runs that the breaker had suspended are due.
    fast_retry: Duration = 0.0
    #: The longest random time that each of these suspended runs also waits after `LONGSHORE_FAST_RETRY`, so that the
    #: runs do not all call the service at once.
    retry_spread: Duration = 2.0
    #: Time for which a run is stored after its end, with the backups for its undo.
    retention: Duration = 7 * 86_400.0
    #: Whether a new run waits (`queue`) or is refused (`refuse`) if its plan needs a service whose breaker is open.
    on_blocked: Literal["queue", "refuse"] = "queue"
    #: Time limit of all compensations of a run together, from the first one. After this time, running compensations
    #: continue, and those that have not begun fail.
    undo_timeout: Duration = 3600.0
    #: Time after which Celery delivers an unacknowledged message again. Set a longer time than your longest step takes.
    #: With a shorter time, Celery delivers the messages of running steps again. Longshore refuses these messages, so
    #: that no step runs twice, but they are useless load.
    visibility_timeout: Duration = 86_400.0
    #: Time for which a client waits for an answer of Redis before the client raises StoreUnavailable.
    connect_timeout: Duration = 5.0
    #: The most Redis connections of one process. Threads that wait for events of runs use at most half of the
    #: connections; further waiting threads poll Redis instead.
    max_connections: int = Field(default=100, ge=2, le=10_000)
    #: Time after which an embedded server stops if it has no client and no live run.
    idle_timeout: Duration = 20.0
    #: Number of processes of the embedded worker. By default, the number of processors, but at least 4.
    concurrency: int = Field(default_factory=lambda: max(4, os.cpu_count() or 1), ge=1, le=256)

    @field_validator("host")
    @classmethod
    def _host_name(cls, value: str) -> str:
        if value and not is_host_name(value):
            raise ValueError("a host name has at most 64 letters, digits, dots, _ and -, and does not end in .undo")
        return value

    @field_validator("labels", "facts")
    @classmethod
    def _are_pairs(cls, value: str, info: ValidationInfo) -> str:
        (parse_labels if info.field_name == "labels" else parse_facts)(value)
        return value

    @field_validator("notify_on")
    @classmethod
    def _are_kinds(cls, value: str) -> str:
        known = ("failed", "undo_failed", "approval_wanted", "breaker_open")
        wrong = [word for word in map(str.strip, value.split(",")) if word and word not in known]
        if wrong:
            raise ValueError(f"{wrong[0]!r} is not one of {', '.join(known)}")
        return value

    @field_validator("allowed_secrets")
    @classmethod
    def _are_sources(cls, value: str) -> str:
        for entry in filter(None, map(str.strip, value.split(","))):
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*|/[^\x00]*|-", entry):
                raise ValueError(f"{entry!r} is neither a prefix of an environment variable nor an absolute folder")
        return value

    @field_validator("state_dir")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        return value.expanduser().absolute()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - the base class calls by name
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        sources: list[PydanticBaseSettingsSource] = [init_settings, env_settings]
        config = os.environ.get("LONGSHORE_CONFIG")
        if config:
            path = Path(config)
            if not path.is_file():
                raise ConfigError(f"configuration file {config} does not exist", remedy="correct LONGSHORE_CONFIG")
            kind = TomlConfigSettingsSource if path.suffix == ".toml" else YamlConfigSettingsSource
            try:
                sources.append(kind(settings_cls, path))
            except RecursionError:
                raise ConfigError(f"the configuration file {config} cannot be read: nested too deeply") from None
            except (yaml.YAMLError, tomllib.TOMLDecodeError, OSError, ValueError, TypeError) as error:
                what = " ".join(str(error).split())
                raise ConfigError(f"the configuration file {config} cannot be read: {what}") from error
        return tuple(sources)

    @property
    def embedded_socket(self) -> Path:
        """The socket of the embedded server."""
        return self.state_dir / "redis.sock"

    def url(self) -> str:
        """The URL of Redis, embedded or not."""
        return self.redis_url or f"unix://{self.embedded_socket}"

    def broker_url(self) -> str:
        """The URL of Redis in the syntax of kombu."""
        url = self.url()
        if url.startswith(SENTINEL):
            return sentinel(url).broker_url()
        return f"redis+socket://{url.removeprefix('unix://')}" if url.startswith("unix://") else url

    def broker_options(self) -> dict[str, Any]:
        """The transport options for kombu."""
        more = {"master_name": sentinel(self.url()).service} if self.url().startswith(SENTINEL) else {}
        return {"global_keyprefix": self.broker_prefix()} | more

    def needed_replicas(self) -> int:
        """The number of replicas that must acknowledge a write."""
        return int(self.url().startswith(SENTINEL)) if self.replicas is None else self.replicas

    def installation(self) -> str:
        """The identity of the installation, derived from the address of Redis and the namespace."""
        if self.installed_as:
            return self.installed_as
        url = self.url()
        if url.startswith(SENTINEL):
            found = sentinel(url)
            where = f"{sorted(found.hosts)} {found.service} {found.db}"
        else:
            parts = urlsplit(url)
            host = "127.0.0.1" if parts.hostname == "localhost" else parts.hostname or ""
            port = "" if "unix" in parts.scheme else parts.port or 6379
            where = f"{host}:{port} {parts.path.rstrip('/') or '/0'}"
        return hashlib.sha256(f"{where} {self.namespace}".encode()).hexdigest()[:16]

    def broker_prefix(self) -> str:
        """The prefix of the keys of the broker; empty in the default namespace."""
        return "" if self.namespace == "longshore" else f"{self.namespace}:"


def load_settings(**overrides: Any) -> Settings:
    """Settings from file, environment and overrides. Raises ConfigError."""
    try:
        return Settings(**{name: value for name, value in overrides.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        top, *inner = [str(part) for part in first["loc"] if part != "[key]"] or ["configuration"]
        name = ".".join([top, *inner])
        what = "unknown setting" if first["type"] == "extra_forbidden" else plain(first["msg"])
        remedy = f"correct {name} in the file" if inner else f"correct LONGSHORE_{top.upper()}, or {top} in the file"
        raise ConfigError(f"setting {name}: {what}", remedy=remedy) from error


#: The prefix of the variables of settings.
_PREFIX = "LONGSHORE_"
#: Similarity, of 1, above which a name counts as a misspelt setting.
_SIMILAR = 0.75


def misspelt_variables(environment: Iterable[str]) -> dict[str, str]:
    """The variables that resemble a setting and are none, each with the nearest setting.

    Exempt are the stack that a job's worker is given, a variable of the Compose file, and values that `secret()` reads.
    """
    from difflib import get_close_matches  # noqa: PLC0415 - only for variables that are no settings

    known = [name.upper() for name in Settings.model_fields]
    unknown = {name.removeprefix(_PREFIX) for name in environment if name.startswith(_PREFIX)} - set(known)
    found = {}
    for name in sorted(unknown):
        near = get_close_matches(name, known, n=1, cutoff=_SIMILAR)
        if near and name not in {"STACK", "STACKS_DIR"} and not name.startswith("SECRET_"):
            found[f"{_PREFIX}{name}"] = f"{_PREFIX}{near[0]}"
    return found


@lru_cache(maxsize=1)
def get_settings() -> Settings:
    """Settings of the process, read once; logs a warning for each variable that is a misspelt setting."""
    for name, near in misspelt_variables(os.environ).items():
        log.warning("%s is no setting and has no effect: did you mean %s?", name, near)
    return load_settings()

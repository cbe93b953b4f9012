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

    # --- Redis and state
    #: URL by which this process reaches Redis: `redis://`, `rediss://` (TLS), `unix://` or
    #: [`sentinel://`](../how-to/redis.md#high-availability). Without a URL, a client starts a Redis and a worker on its
    #: machine, the *embedded server*.
    redis_url: str | None = None
    #: Prefix of the keys in Redis: 1 to 32 letters, digits, `_` and `-`. With the default, [queues have no
    #: prefix](../how-to/redis.md#share-one-redis). Installations with different prefixes can share one Redis.
    namespace: str = Field(default="longshore", pattern=r"^[A-Za-z0-9_-]{1,32}$")
    #: Folder of this host for [receipts](../concepts/leases.md#receipt), backups and the data of the embedded server.
    #: Default: `$XDG_STATE_HOME/longshore`, or `~/.local/state/longshore` without XDG_STATE_HOME.
    state_dir: Path = Field(default_factory=_state_home)

    # --- Plans, jobs and stacks
    #: Folders of plans, separated by `:`. The plan `deploy` is the file `deploy.yaml`, `deploy.yml` or `deploy.json` in
    #: one of them.
    plans: str = ""
    #: Files with [jobs](../how-to/jobs.md), separated by `:`. Labels of containers can add jobs.
    jobs: str = ""
    #: File with [rules for stacks](../how-to/stacks.md#rules-in-a-file). Labels of containers can add rules.
    stacks: str = ""
    #: Time for which the cached inventory of the stacks of a host is valid. Afterwards, the next `longshore select` or
    #: `orchestrate` builds the inventory again.
    cache_ttl: Duration = Field(default=3600.0, gt=0)
    #: Interval at which beat starts an orchestration, which [restarts stale stacks](../how-to/stacks.md). While one is
    #: running, no other one begins.
    orchestrate_every: Duration | None = Field(default=None, gt=0)
    #: Schedules of plans, by name. In the environment, the value is JSON.
    schedules: dict[ScheduleName, Scheduled] = Field(default_factory=dict)
    #: Scheduler of beat: that of Celery, or RedBeat, which stores its entries in Redis.
    beat: Literal["celery", "redbeat"] = "celery"
    #: Interval at which beat asks a worker to start the plans and jobs that are due.
    tick: Duration = Field(default=5.0, gt=0)
    #: Name by which workers recognise their job containers, in the label `longshore.job.installation`. Default: a hash
    #: of the address of Redis and LONGSHORE_NAMESPACE. Set one name on all workers if they use different addresses of
    #: one Redis. Before you change the address, set this variable to the label of existing job containers.
    installed_as: str = Field(default="", pattern=r"^[A-Za-z0-9._-]{0,64}$")
    #: The most jobs that run at the same time, over all stacks. Further jobs wait in the order of their requests.
    max_jobs: int | None = Field(default=None, ge=1)
    #: Python modules with operations of your own, separated by commas. A failed import ends a client or worker with
    #: [`config-invalid`](errors.md#config-invalid).
    imports: str = ""

    # --- Logs and notifications
    #: File for the health check of this process. A worker touches the file every LONGSHORE_SWEEP_INTERVAL, a beat every
    #: LONGSHORE_TICK.
    alive_file: str = ""
    #: Log format of workers and beats: plain text, or one JSON object per line.
    log_format: Literal["text", "json"] = "text"
    #: Whether workers export each ended run as an OpenTelemetry trace, to OTEL_EXPORTER_OTLP_ENDPOINT.
    tracing: bool = False
    #: The [kinds of notifications](../how-to/notifications.md) that workers send, separated by commas.
    notify_on: str = "failed,undo_failed,approval_wanted,breaker_open"
    #: URL that receives notifications as JSON by POST.
    notify_webhook: str = ""
    #: Key that [signs](../how-to/notifications.md#a-webhook) the requests to LONGSHORE_NOTIFY_WEBHOOK.
    notify_secret: str = ""
    #: Program with its arguments, which receives notifications as JSON on its standard input.
    notify_command: str = ""
    #: Apprise addresses that receive notifications, separated by blanks.
    notify_apprise: str = ""
    #: URL of Flower, for a link to the run in each notification.
    notify_link: str = ""

    # --- Requests and signatures
    #: Author of the requests of this process, in reports, events and the audit trail. Default: the user of the
    #: operating system.
    actor: str | None = None
    #: Name of the machine of this process in the audit trail. Default: its host name.
    origin: str = ""
    #: Key file of this process from `longshore init`: `worker/keys.json` for workers and beats, else
    #: `client/keys.json`. With keys, messages and requests are signed, and workers refuse unsigned ones.
    keys: str = ""
    #: Whether a plan with a plaintext password or token is refused ([`plan-denied`](errors.md#plan-denied)) or allowed.
    clear_secrets: Literal["refuse", "allow"] = "refuse"
    #: The most bytes of a plan with its parameters, child plans and local files (`source`). A larger plan is refused
    #: ([`plan-denied`](errors.md#plan-denied)).
    max_plan: int = Field(default=MAX_PLAN_BYTES, ge=1024, le=MAX_PLAN_BYTES)

    # --- Limits of a worker
    # Each worker has its own values. A step that a limit forbids fails before any effect
    # ([`not-allowed`](errors.md#not-allowed)). In lists of names, `*` and `?` are wildcards.
    #: URL of the Docker engine: `unix://`, `tcp://` or `ssh://`. Default: DOCKER_HOST, else the current Docker context.
    docker_host: str = ""
    #: Folders of the files that steps may read and write, and of the working folders of programs, separated by `:`.
    #: Links out of these folders are refused. The state folder, the folder of LONGSHORE_KEYS and `/proc` are always
    #: refused.
    allowed_roots: str = "/"
    #: Programs that steps may start on the host, separated by commas: names on PATH, or paths. `-` allows none.
    #: Default: all. In containers, steps may start any program.
    allowed_commands: str = ""
    #: Variables that a step may set for a program on the host, separated by commas. Without LONGSHORE_ALLOWED_COMMANDS,
    #: a step may set any variable. Do not add variables that make a program run other code, such as LD_PRELOAD.
    allowed_environment: str = (
        "LC_*,LANG,TZ,TERM,COLUMNS,LINES,NO_COLOR,PGHOST,PGPORT,PGUSER,PGPASSWORD,PGDATABASE,MYSQL_PWD,REDISCLI_AUTH"
    )
    #: Sources of `secret()`, separated by commas: prefixes of environment variables, and folders. `-` allows none.
    #: Whatever you list, `secret()` never reads settings and credentials of Longshore, Celery and Flower.
    allowed_secrets: str = "LONGSHORE_SECRET_,/run/secrets"
    #: Operations that steps may use, separated by commas. Default: all.
    allowed_operations: str = ""
    #: Images that steps may pull or start, separated by commas. Default: all. With a list, the worker builds no images.
    allowed_images: str = ""
    #: Folders of the Docker host that containers may mount, separated by `:`. Without a list, [default
    #: rules](../concepts/security.md#containers) refuse folders that give root access to the host.
    allowed_binds: str = ""
    #: Hosts that steps may connect to, separated by commas: names, addresses, networks (`10.0.0.0/8`) and buckets
    #: (`s3://NAME`). If a name has a private address, list the address, too. Default: all except link-local addresses
    #: and metadata services of clouds (`169.254.169.254`).
    allowed_hosts: str = ""
    #: Whether containers and volumes may have any privilege. By default, workers refuse `privileged`, devices,
    #: namespaces of the host except its network, and [all capabilities and options that are not known to be
    #: harmless](../concepts/security.md#containers).
    allow_privileged: bool = False
    #: The most bytes of an object (a file in Redis), a cache, or a downloaded file. A step with a larger one fails.
    max_object: int = Field(default=16 * 1024 * 1024, ge=1, le=256 * 1024 * 1024)

    # --- Hosts
    #: Name of this host. Flag: `longshore worker --host`. Default: the name of the machine. If you start a worker with
    #: `celery`, the default is the part of its node name after the @, such as `web1` in `worker@web1`.
    host: str = ""
    #: Labels of this host, separated by commas: `role=web,group=web.dev.eu`. The target `role:web` selects hosts with
    #: the label `role=web`.
    labels: str = ""
    #: Facts of this host, for `when_fact` and templates, in addition to the detected ones: `rack=12,zone=eu-1`.
    facts: str = ""

    # --- Leases, retries and time limits
    #: Lifetime of a [lease](../concepts/leases.md#lease). The worker of an attempt renews the lease after a third of
    #: this time. If the lease expires, the attempt is lost, and another one may begin.
    lease: Duration = Field(default=15.0, gt=0)
    #: Interval at which each worker searches for due runs, lost messages and expired leases. A retry can begin this
    #: much late.
    sweep_interval: Duration = Field(default=1.0, gt=0)
    #: If no worker claims a step within this time of its first message, the step fails. Each claim of another step of
    #: the run [restarts the time](../concepts/recovery.md#lost-and-repeated-messages). On a lost or stopped host, [the
    #: time can be shorter](hosts.md#missing-drained-and-lost-hosts).
    claim_timeout: Duration = Field(default=600.0, gt=0)
    #: Time limit of an attempt at a step without `timeout`. A longer attempt fails
    #: ([`step-timeout`](errors.md#step-timeout)). Approvals, timers and child runs have no such limit.
    step_timeout: Duration = Field(default=3600.0, gt=0)
    #: The most runs that are admitted and have not ended. Further runs wait in the order of their requests. Child runs,
    #: and commands that continue or undo an ended run, do not wait.
    max_runs: int | None = Field(default=None, ge=1)
    #: The same limit for the runs of one plan. For jobs, LONGSHORE_MAX_JOBS applies instead.
    max_runs_per_plan: int | None = Field(default=None, ge=1)
    #: The most runs that wait for their admission. The start of a further run fails with
    #: [`queue-full`](errors.md#queue-full).
    max_queued: int = Field(default=10_000, ge=1)
    #: Number of lost attempts after which a step is not repeated, but ends [unknown](../concepts/unknown.md), or waits
    #: for a person (`on_unknown: ask`).
    max_lost: int = Field(default=3, ge=1, le=1000)
    #: Time for which a run with `on_unknown: ask` waits for a person's decision about a step. Afterwards, the step is
    #: `unknown`, and counts as failed.
    ask_timeout: Duration = Field(default=86_400.0, gt=0)
    #: Interval at which one run tries a service whose [breaker](../concepts/recovery.md#services) is open. Also the
    #: delay before an operation that raised [`Delayed`](errors.md#delayed) without `after` is called again. Both vary
    #: by up to 20 %.
    slow_retry: Duration = Field(default=30.0, gt=0)
    #: Time between the closing of a breaker and the continuation of its suspended runs.
    fast_retry: Duration = 0.0
    #: The longest random delay of each suspended run after LONGSHORE_FAST_RETRY.
    retry_spread: Duration = 2.0
    #: Time for which an ended run is stored. Afterwards, a worker deletes the run and its output, and the run can no
    #: longer be undone.
    retention: Duration = Field(default=7 * 86_400.0, gt=0)
    #: Whether a new run waits (`queue`) or is refused (`refuse`, [`service-down`](errors.md#service-down)) if its plan
    #: needs a service whose breaker is open.
    on_blocked: Literal["queue", "refuse"] = "queue"
    #: Time limit for all compensations of a run together, from the dispatch of the first one. Afterwards, running
    #: compensations continue, and all others fail.
    undo_timeout: Duration = Field(default=3600.0, gt=0)

    # --- Connections and the embedded server
    #: Number of replicas of Redis that must confirm a write within 2 s. Otherwise the call fails
    #: ([`store-unavailable`](errors.md#store-unavailable)), although Redis may have the write. Default: 1 with
    #: `sentinel://`, else 0.
    replicas: int | None = Field(default=None, ge=0, le=10)
    #: Time after which Celery delivers an unacknowledged message again. Messages of runs, steps and compensations are
    #: exempt, however long a step runs: Longshore itself sends a lost one again.
    visibility_timeout: Duration = Field(default=86_400.0, gt=0)
    #: Time limit for a connection to Redis, and for each answer. Afterwards, a client raises `StoreUnavailable`, and a
    #: worker tries again.
    connect_timeout: Duration = Field(default=5.0, gt=0)
    #: The most connections of this process to Redis, except with `sentinel://`. A thread waits 30 s for a free
    #: connection, then raises `StoreUnavailable`. Threads that watch runs use at most half of the connections.
    max_connections: int = Field(default=100, ge=2, le=10_000)
    #: Time from the last call of a client until the embedded server stops. A live run or `longshore dev` keeps the
    #: server alive.
    idle_timeout: Duration = Field(default=20.0, gt=0)
    #: Number of processes of the worker in the embedded server. Default: the number of processors, but at least 4.
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

    @property
    def ledger_name(self) -> str:
        """The folder of this installation's receipts on a host, in `receipts` of the state folder.

        The receipts of the embedded server have a folder of their own. In its Redis, all runs of another installation
        with the same state folder are missing, so that their backups would be deleted.
        """
        return f"{self.namespace}~embedded" if self.url() == f"unix://{self.embedded_socket}" else self.namespace

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

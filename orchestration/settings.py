"""Settings: flag > `LONGSHORE_*` environment > file > default."""

from __future__ import annotations

import hashlib
import os
import re
import tomllib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote, unquote, urlsplit

import yaml
from pydantic import Field, ValidationError, field_validator
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

#: A plan with more steps is refused: its record would no longer fit into one script's work.
MAX_STEPS = 10_000
#: Bytes of a plan with its parameters and files, as stored.
MAX_PLAN_BYTES = 32 * 1024 * 1024
#: Bytes of one local file that a plan carries.
MAX_FILE_BYTES = 1024 * 1024
#: Bytes of one step's recorded data; larger data is an error of the step.
MAX_DATA_BYTES = 4 * 1024 * 1024
#: Bytes above which a step's data has a key of its own, which is read only where it is wanted.
LARGE_DATA_BYTES = 64 * 1024
#: Units of one step: items, hosts, or their product.
MAX_UNITS = 10_000


#: A URL that names not the server but those who know which one it is.
SENTINEL = "sentinel://"


@dataclass(frozen=True)
class Sentinel:
    """`sentinel://[USER:PASSWORD@]HOST:PORT[,HOST:PORT…]/SERVICE[/DB]`; user and password are the server's."""

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
    """The parts of such a URL; ConfigError names what is missing."""
    rest, _, _ = url.removeprefix(SENTINEL).partition("?")
    who, _, where = rest.rpartition("@")
    places, _, path = where.partition("/")
    service, _, db = path.partition("/")
    user, _, password = who.partition(":")
    hosts = [place.rpartition(":") for place in places.split(",") if place]
    if not hosts or not service or not all(host and port.isdigit() for host, _, port in hosts):
        raise ConfigError(
            "the Redis URL names no sentinels, or no service of theirs",
            remedy="sentinel://host1:26379,host2:26379/mymaster/0",
        )
    return Sentinel(
        tuple((host, int(port)) for host, _, port in hosts), service, int(db or 0),
        unquote(user) or None, unquote(password) if who else None,
    )  # fmt: skip


def _state_home() -> Path:
    base = os.environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local" / "state") / "longshore"


class Settings(BaseSettings):
    """Everything that a deployment may set. Names in the environment: `LONGSHORE_REDIS_URL`, …"""

    model_config = SettingsConfigDict(env_prefix="LONGSHORE_", env_ignore_empty=True, extra="forbid", frozen=True)

    #: Without one, an embedded server is started and kept in the state folder.
    redis_url: str | None = None
    #: Prefix of every key and queue, so that two installations on one Redis do not meet.
    namespace: str = Field(default="longshore", pattern=r"^[A-Za-z0-9_-]{1,32}$")
    state_dir: Path = Field(default_factory=_state_home)
    #: Folders in which plans are found by name, separated by `:`.
    plans: str = ""
    #: Files that describe jobs, separated by `:`, beside the labels of containers.
    jobs: str = ""
    #: A file that says of stacks what their labels do not: what a change of a file demands, registries' credentials.
    stacks: str = ""
    #: How old what is cached of a host's stacks may be; then everything is read again, whether it has changed or not.
    cache_ttl: Duration = Field(default=3600.0, gt=0)
    #: How often beat has stale stacks brought right; never, if left out.
    orchestrate_every: Duration | None = Field(default=None, gt=0)
    #: Plans that start by themselves, by the name of the schedule; in a file, or as JSON.
    schedules: dict[ScheduleName, Scheduled] = Field(default_factory=dict)
    #: What beat goes by: Celery's own in-memory scheduler, or RedBeat, whose entries can be changed while it runs.
    beat: Literal["celery", "redbeat"] = "celery"
    #: How often beat has looked at what is due: schedules of plans, and jobs that have one.
    tick: Duration = 5.0
    #: What this installation is called on its engines, where its workers name its Redis in different ways, or it moves.
    installed_as: str = Field(default="", pattern=r"^[A-Za-z0-9._-]{0,64}$")
    #: How many jobs may run at once, of all stacks; the others wait in their order.
    max_jobs: int | None = Field(default=None, ge=1)
    #: Modules with own operations, imported by client and worker, separated by commas.
    imports: str = ""
    #: A file that a worker touches as long as it sweeps, and a beat as long as it ticks, for whatever looks after them.
    alive_file: str = ""
    #: Of workers: `text`, or `json`, a line an object.
    log_format: Literal["text", "json"] = "text"
    #: Whether each run is sent as a trace of OpenTelemetry; where to is said by OTEL_EXPORTER_OTLP_ENDPOINT.
    tracing: bool = False
    #: What is told of: failed, undo_failed, approval_wanted, breaker_open.
    notify_on: str = "failed,undo_failed,approval_wanted,breaker_open"
    #: To whom: a URL that takes JSON by POST, signed with a secret if there is one; a program with its arguments; and
    #: Apprise's addresses, with blanks between them.
    notify_webhook: str = ""
    notify_secret: str = ""
    notify_command: str = ""
    notify_apprise: str = ""
    #: Where Flower is to be had, for links to runs.
    notify_link: str = ""
    #: Who does it, on every event; the OS user if left out.
    actor: str | None = None
    #: From where, in the audit trail; the machine's name if left out.
    origin: str = ""
    #: A file of keys, made by `longshore init`: then every message and request is signed, and what is not is refused.
    keys: str = ""
    #: What becomes of a plan in which something that is called a password or a token stands in clear.
    clear_secrets: Literal["refuse", "allow"] = "refuse"
    #: Bytes of a plan with its parameters and files; a larger one is refused.
    max_plan: int = Field(default=MAX_PLAN_BYTES, ge=1024, le=MAX_PLAN_BYTES)

    #: Where a worker's Docker engine is: unix://, tcp:// or ssh://. DOCKER_HOST and docker's own context if left out.
    docker_host: str = ""
    #: Folders that a worker's operations may read, write and run commands in, separated by `:`; links do not lead out.
    allowed_roots: str = "/"
    #: Programs that commands may run, by name or path, with * and ?, separated by commas; any if left out.
    allowed_commands: str = ""
    #: Names, with * and ?, of what a plan may set in the environment of these programs; only known ones, for many
    #: names make another program of one (BASH_ENV, LD_PRELOAD, PYTHONPATH, GIT_SSH_COMMAND).
    allowed_environment: str = (
        "LC_*,LANG,TZ,TERM,COLUMNS,LINES,NO_COLOR,PGHOST,PGPORT,PGUSER,PGPASSWORD,PGDATABASE,MYSQL_PWD,REDISCLI_AUTH"
    )
    #: Sources of secret(): prefixes of environment variables' names, and folders, separated by commas. Never admitted:
    #: LONGSHORE_* (except LONGSHORE_SECRET_*), the worker's keys, its Redis URL, and its state folder.
    allowed_secrets: str = "LONGSHORE_SECRET_,/run/secrets"
    #: Operations that this worker may do, with * and ?, separated by commas; any if left out.
    allowed_operations: str = ""
    #: Images of which it may make containers, or which it may pull; any if left out.
    allowed_images: str = ""
    #: Folders of the Docker host that containers may be given, separated by `:`. If left out folders of data: none of
    #: the system's own, of homes as a whole, of engines, or of Longshore's.
    allowed_binds: str = ""
    #: Other machines that a worker's operations may talk to, separated by commas: names with * and ?, addresses, and
    #: networks (10.0.0.0/8). A name that leads to an address inside needs that in the list, too. If left out any, but
    #: for addresses of the link (169.254.169.254 for instance, where clouds keep credentials).
    allowed_hosts: str = ""
    #: Whether containers may be privileged: all capabilities, devices, namespaces of the host's, and whatever
    #: else is not known to be harmless.
    allow_privileged: bool = False
    #: Bytes of one entry of the object store.
    max_object: int = Field(default=16 * 1024 * 1024, ge=1, le=256 * 1024 * 1024)

    #: This host's name, where it is not the one in the worker's node name (`worker@HOST`).
    host: str = ""
    #: Labels of this host, and facts of its own: `role=web,group=web.dev.eu`.
    labels: str = ""
    facts: str = ""
    #: How many replicas of Redis must have what is acknowledged; if left out 1 with sentinels, else none.
    replicas: int | None = Field(default=None, ge=0, le=10)
    #: A worker that is silent for so long has lost its step.
    lease: Duration = 15.0
    #: How often each worker looks for what is due. About the precision of a long retry delay.
    sweep_interval: Duration = 1.0
    #: From dispatch to claim; then the step fails, because nobody does this work.
    claim_timeout: Duration = 600.0
    #: An attempt's time where the step says none.
    step_timeout: Duration = 3600.0
    #: How many runs may be live at once, in all and of one plan; the others wait in their order.
    max_runs: int | None = Field(default=None, ge=1)
    max_runs_per_plan: int | None = Field(default=None, ge=1)
    #: How many may wait; more are refused.
    max_queued: int = Field(default=10_000, ge=0)
    #: How often a step's worker may be lost before the step is given up.
    max_lost: int = Field(default=3, ge=1, le=1000)
    #: How long a person may think about a step that may have happened (`on_unknown: ask`).
    ask_timeout: Duration = 86_400.0
    #: How long a service that is down is left alone before one run may try it; and an operation that does not
    #: know yet how it ended.
    slow_retry: Duration = 30.0
    #: How long the other runs wait once it is back.
    fast_retry: Duration = 0.0
    #: Over how long they are spread, so that they do not all come at once.
    retry_spread: Duration = 2.0
    #: How long a run that rests is kept, with all that its undo needs.
    retention: Duration = 7 * 86_400.0
    #: What becomes of new runs that need a service that is down.
    on_blocked: Literal["queue", "refuse"] = "queue"
    #: The whole of a run's undo.
    undo_timeout: Duration = 3600.0
    #: After which Celery delivers what was not acknowledged once more. Longer than any step: a shorter one does no
    #: harm, but is work.
    visibility_timeout: Duration = 86_400.0
    #: How long a client waits for Redis before it gives up with one clear error.
    connect_timeout: Duration = 5.0
    #: Connections to Redis of one process. More threads than half of them may wait for runs: they ask now and then.
    max_connections: int = Field(default=100, ge=2, le=10_000)
    #: An embedded server with nothing to do ends after this time.
    idle_timeout: Duration = 20.0
    #: Processes of the embedded worker.
    concurrency: int = Field(default_factory=lambda: max(4, os.cpu_count() or 1), ge=1, le=256)

    @field_validator("host")
    @classmethod
    def _host_name(cls, value: str) -> str:
        if value and not is_host_name(value):
            raise ValueError("a host's name has letters, digits, dots, _ and -, at most 64, and no .undo at its end")
        return value

    @field_validator("labels")
    @classmethod
    def _are_labels(cls, value: str) -> str:
        parse_labels(value)
        return value

    @field_validator("facts")
    @classmethod
    def _are_facts(cls, value: str) -> str:
        parse_facts(value)
        return value

    @field_validator("notify_on")
    @classmethod
    def _are_kinds(cls, value: str) -> str:
        known = ("failed", "undo_failed", "approval_wanted", "breaker_open")
        wrong = [word for word in map(str.strip, value.split(",")) if word and word not in known]
        if wrong:
            raise ValueError(f"{wrong[0]!r} is none of {', '.join(known)}")
        return value

    @field_validator("allowed_secrets")
    @classmethod
    def _are_sources(cls, value: str) -> str:
        for entry in filter(None, map(str.strip, value.split(","))):
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*|/[^\x00]*|-", entry):
                raise ValueError(f"{entry!r} is neither the beginning of an environment variable's name nor a folder")
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
                raise ConfigError(f"no such configuration file: {config}")
            kind = TomlConfigSettingsSource if path.suffix == ".toml" else YamlConfigSettingsSource
            try:
                sources.append(kind(settings_cls, path))
            except RecursionError:
                raise ConfigError(f"the configuration file {config} cannot be read: it is nested too deeply") from None
            except (yaml.YAMLError, tomllib.TOMLDecodeError, OSError, ValueError, TypeError) as error:
                what = " ".join(str(error).split())
                raise ConfigError(f"the configuration file {config} cannot be read: {what}") from error
        return tuple(sources)

    @property
    def embedded_socket(self) -> Path:
        """Where the embedded server listens."""
        return self.state_dir / "redis.sock"

    def url(self) -> str:
        """The Redis that is used, embedded or not."""
        return self.redis_url or f"unix://{self.embedded_socket}"

    def broker_url(self) -> str:
        """The same server, as kombu spells it."""
        url = self.url()
        if url.startswith(SENTINEL):
            return sentinel(url).broker_url()
        return f"redis+socket://{url.removeprefix('unix://')}" if url.startswith("unix://") else url

    def broker_options(self) -> dict[str, Any]:
        """What kombu has to be told besides."""
        more = {"master_name": sentinel(self.url()).service} if self.url().startswith(SENTINEL) else {}
        return {"global_keyprefix": self.broker_prefix()} | more

    def needed_replicas(self) -> int:
        """How many replicas must have a record before it counts."""
        return int(self.url().startswith(SENTINEL)) if self.replicas is None else self.replicas

    def installation(self) -> str:
        """The same for all parts of one installation, also after its Redis has lost everything: where that Redis is,
        and the name space.
        """
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
        """Before every key of the broker's, in any name space but the default one."""
        return "" if self.namespace == "longshore" else f"{self.namespace}:"


def load_settings(**overrides: Any) -> Settings:
    """Settings from file, environment and the given overrides; ConfigError names what is wrong."""
    try:
        return Settings(**{name: value for name, value in overrides.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        top, *inner = [str(part) for part in first["loc"] if part != "[key]"] or ["configuration"]
        name = ".".join([top, *inner])
        what = "there is no such setting" if first["type"] == "extra_forbidden" else plain(first["msg"])
        remedy = f"see the file's {name}" if inner else f"set LONGSHORE_{top.upper()} or the file's {top}"
        raise ConfigError(f"setting {name}: {what}", remedy=remedy) from error


@lru_cache(maxsize=1)
def get_settings() -> Settings:
    """The process's settings, read once."""
    return load_settings()

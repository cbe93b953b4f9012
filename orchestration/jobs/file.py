"""Jobs that a file describes, beside those of labels.

jobs:
  nightly:
    stacks: [shop]
    image: backup:1
    mounts: [shop_data:/data:ro]
    schedule: "0 3 * * *"
    timezone: Europe/Berlin
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from longshore.orchestration.durations import Duration
from longshore.orchestration.errors import ConfigError
from longshore.orchestration.jobs.labels import Missed, Mount, Overlap, Pull, Scope, parse_schedule, parse_zone
from longshore.orchestration.plan import NAME
from longshore.orchestration.selection import is_host_name
from longshore.orchestration.source import read_mapping


def _host(value: str) -> str:
    if not is_host_name(value):
        raise ValueError(f"{value!r} is no name of a host")
    return value


def _mount(value: Any) -> Mount:
    """`volume[:path[:ro|rw]]`; without a path /mnt/<volume>, without a mode only to be read."""
    volume, _, rest = str(value).partition(":")
    path, _, mode = rest.partition(":")
    if not isinstance(value, str) or not volume or mode not in {"", "ro", "rw"} or (path and path[0] != "/"):
        raise ValueError(f"{value!r} is not volume[:/path[:ro|rw]]")
    return Mount(volume, path or f"/mnt/{volume}", "rw" if mode == "rw" else "ro")


class JobSpec(BaseModel):
    """A job as the file has it. The names are those of the labels, with _ for - and without `worker.`."""

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    image: str | None = Field(None, min_length=1, description="The image that does the work")
    command: Annotated[list[str], BeforeValidator(lambda v: shlex.split(v) if isinstance(v, str) else v)] = []
    env: dict[str, str] = Field({}, description="Its environment; may hold {{ secret('env:NAME') }}")
    pull: Pull = "missing"
    mounts: list[Annotated[Mount, BeforeValidator(_mount)]] = []
    stacks: list[str] = []
    containers: list[str] = Field([], description="Targets that are of no stack")
    scope: Scope = "stack"
    host: Annotated[str, BeforeValidator(_host)] = Field("", description="Where it is done, if that is not plain")
    schedule: Annotated[str, BeforeValidator(parse_schedule)] = ""
    timezone: Annotated[str, BeforeValidator(parse_zone)] = "UTC"
    missed: Missed = "once"
    overlap: Overlap = "queue"
    stop_timeout: Annotated[Duration, Field(gt=0)] = 30.0
    start_timeout: Annotated[Duration, Field(gt=0)] = 30.0
    timeout: Annotated[Duration, Field(gt=0)] = 3600.0
    grace: Annotated[Duration, Field(gt=0)] = 10.0

    def said(self) -> dict[str, Any]:
        """What it says, as fields of `Job`; what it does not say is left to labels and defaults."""
        found = {name: getattr(self, name) for name in self.model_fields_set if name not in {"containers", "command"}}
        found |= {"targets": self.containers}
        if "command" in self.model_fields_set:
            found["command"] = tuple(self.command)
        return found


class JobsFile(BaseModel):
    """The whole file."""

    model_config = ConfigDict(extra="forbid")

    jobs: dict[Annotated[str, Field(pattern=NAME)], JobSpec]


def read_jobs(path: Path) -> dict[str, dict[str, Any]]:
    """What a file says of jobs, by name, as fields of `Job`. ConfigError says what is wrong, and where."""
    try:
        found = JobsFile.model_validate(read_mapping(path))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part != "[key]")
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        raise ConfigError(f"{path}: {where}: {first['msg'].removeprefix('Value error, ')}{more}") from None
    return {name: spec.said() for name, spec in found.jobs.items()}

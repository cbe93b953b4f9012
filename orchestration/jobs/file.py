"""Job descriptions in a file, in addition to those in labels.

jobs:
  nightly:
    stacks: [shop]
    image: backup:1
    mounts: [shop_data:/data:ro]
    schedule: "0 3 * * *"
    timezone: Europe/Berlin
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Annotated, Any

from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from longshore.orchestration.errors import ConfigError, LongshoreError, plain
from longshore.orchestration.jobs.labels import Finding, Mount, Pull, Scope
from longshore.orchestration.language.durations import Duration
from longshore.orchestration.language.schedule import Missed, Overlap, parse_cron, parse_zone
from longshore.orchestration.language.targets import is_host_name
from longshore.orchestration.operations.compose_params import NoWayBack
from longshore.orchestration.operations.docker.fields import NAME as VOLUME
from longshore.orchestration.plans.loading import read_mapping
from longshore.orchestration.plans.steps import NAME


def _host(value: str) -> str:
    if not is_host_name(value):
        raise ValueError(f"{value!r} is not a host name")
    return value


def _mount(value: Any) -> Mount:
    """Parse `volume[:path[:ro|rw]]`; the path defaults to /mnt/<volume>, the mode to ro."""
    volume, _, rest = str(value).partition(":")
    path, _, mode = rest.partition(":")
    if (
        not isinstance(value, str)
        or volume.startswith("/")
        or not VOLUME.fullmatch(volume)
        or mode not in {"", "ro", "rw"}
        or (path and path[0] != "/")
    ):
        raise ValueError(f"{value!r}: expected VOLUME[:/PATH[:ro|rw]] with the name of a volume")
    return Mount(volume, path or f"/mnt/{volume}", "rw" if mode == "rw" else "ro")


class JobSpec(BaseModel):
    """A job in the file. Its fields are named like the labels, with _ for - and without `worker.`."""

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    image: str | None = Field(None, min_length=1, description="Image of the job container")
    command: Annotated[list[str], BeforeValidator(lambda v: shlex.split(v) if isinstance(v, str) else v)] = []
    env: dict[str, str] = Field({}, description="Environment of the worker; may hold {{ secret('env:NAME') }}")
    pull: Pull = "missing"
    mounts: list[Annotated[Mount, BeforeValidator(_mount)]] = []
    stacks: list[str] = []
    containers: list[str] = Field([], description="Target containers outside of any stack")
    scope: Scope = "stack"
    host: Annotated[str, BeforeValidator(_host)] = Field("", description="Host of the job, if several could run it")
    schedule: Annotated[str, BeforeValidator(parse_cron)] = ""
    timezone: Annotated[str, BeforeValidator(parse_zone)] = "UTC"
    missed: Missed = "once"
    overlap: Overlap = Field("queue", validation_alias=AliasChoices("overlap", "overlap_policy"))
    stop_timeout: Annotated[Duration, Field(gt=0)] = 30.0
    start_timeout: Annotated[Duration, Field(gt=0)] = 30.0
    timeout: Annotated[Duration, Field(gt=0)] = 3600.0
    grace: Annotated[Duration, Field(gt=0)] = 10.0
    no_way_back: NoWayBack = "refuse"

    def job_fields(self) -> dict[str, Any]:
        """The fields of `Job` that are set; labels and defaults provide the others."""
        found = {name: getattr(self, name) for name in self.model_fields_set if name not in {"containers", "command"}}
        found |= {"targets": self.containers}
        if "command" in self.model_fields_set:
            found["command"] = tuple(self.command)
        return found


def read_jobs(path: Path) -> tuple[dict[str, dict[str, Any]], list[Finding]]:
    """The jobs of a file by name, as fields of `Job`, and the findings about invalid jobs, which are left out.

    Raises ConfigError where the file cannot be read, or is not a file of jobs.
    """
    try:
        whole = read_mapping(path)
    except LongshoreError as error:
        raise ConfigError(error.message, remedy=error.remedy) from None
    jobs = whole.get("jobs")
    if not isinstance(jobs, dict) or len(whole) > 1:
        other = ", ".join(str(key) for key in whole if key != "jobs")
        raise ConfigError(f"{path}: expected the key jobs, and no other{f' (found {other})' if other else ''}")
    found: dict[str, dict[str, Any]] = {}
    findings: list[Finding] = []
    for name, values in jobs.items():
        if not isinstance(name, str) or not re.fullmatch(NAME, name):
            findings.append(
                Finding("file", str(path), f"jobs.{name}", "invalid name: use letters, digits, dots, _ and -")
            )
            continue
        try:
            found[name] = JobSpec.model_validate(values).job_fields()
        except ValidationError as error:
            for item in error.errors():
                where = ".".join(["jobs", name, *(str(part) for part in item["loc"])])
                why = plain(item["msg"])
                findings.append(Finding("file", str(path), where, why, job=name, unusable=True))
    return found, findings

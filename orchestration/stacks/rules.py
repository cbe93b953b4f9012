"""What is said of stacks beside what their files say: in labels of their services, and in a file.

longshore.files   what a change of a file demands: `nginx.conf=restart, certs/*=redeploy, data.json=none`
longshore.after   projects that have to be right before this one: `infra, auth`

Paths are relative to the project's folder, or absolute. Every file that is bind-mounted is tracked; one that nothing is
said of demands `redeploy`. The file says the same, and comes before the labels:

stacks:
  shop:
    after: [infra]
    files: {nginx.conf: restart}
    services:
      web: {files: {"certs/*": redeploy}}
only: ["*", "!test-*"]        # the projects that count, and not those with !; all, if left out
registries:
  registry.local:5000: {username: ci, password: "{{ secret('env:LONGSHORE_SECRET_REGISTRY') }}"}
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from longshore.orchestration.errors import ConfigError, LongshoreError
from longshore.orchestration.operations.docker.images import Login
from longshore.orchestration.operations.stacks import Demand, StackSpec
from longshore.orchestration.plans.loading import read_mapping

FILES, AFTER = "longshore.files", "longshore.after"
_DEMANDS = get_args(Demand)


class StackRules(BaseModel):
    """What a file says."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    stacks: dict[str, StackSpec] = {}
    only: list[str] = []
    registries: dict[str, Login] = {}

    @field_validator("registries")
    @classmethod
    def _by_reference(cls, value: dict[str, Login]) -> dict[str, Login]:
        for registry, login in value.items():
            if not re.search(r"\{\{.*secret\(.*\}\}", login.password):
                raise ValueError(f"{registry}: give the password by reference: \"{{{{ secret('env:NAME') }}}}\"")
        return value

    def params(self) -> dict[str, Any]:
        """For the operations that look."""
        return self.model_dump(exclude_defaults=True)


def stack_rules(path: str) -> StackRules:
    """What the file says; nothing without one. ConfigError for what it cannot say."""
    if not path:
        return StackRules()
    try:
        return StackRules.model_validate(read_mapping(Path(path)) if Path(path).read_bytes().strip() else {})
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}", remedy="see LONGSHORE_STACKS") from None
    except LongshoreError as error:
        raise ConfigError(error.message, remedy=error.remedy) from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        what = "there is no such word here" if first["type"] == "extra_forbidden" else first["msg"]
        raise ConfigError(f"{path}: {where}: {what.removeprefix('Value error, ')}") from None


def parse_files(text: str) -> dict[str, Demand]:
    """What the label says. ValueError names what is wrong with it."""
    found: dict[str, Demand] = {}
    for part in (part.strip() for part in text.replace("\n", ",").split(",")):
        if not part:
            continue
        path, sign, demand = (word.strip() for word in part.rpartition("="))
        if not sign or not path or demand not in _DEMANDS:
            raise ValueError(f"{part!r} is not PATH={'|'.join(_DEMANDS)}")
        found[path] = demand  # type: ignore[assignment]
    return found


def counts(project: str, only: Sequence[str]) -> bool:
    """Whether a project is looked at: one of the patterns fits, and none of those with an !."""
    but = [pattern[1:] for pattern in only if pattern.startswith("!")]
    wanted = [pattern for pattern in only if not pattern.startswith("!")] or ["*"]
    return any(fnmatchcase(project, pattern) for pattern in wanted) and not any(
        fnmatchcase(project, pattern) for pattern in but
    )


def parse_after(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def demanded(path: str, directory: str, said: Iterable[Mapping[str, Demand]]) -> Demand:
    """What a change of that file demands: the first pattern that fits says it."""
    for patterns in said:
        for pattern, demand in patterns.items():
            whole = os.path.normpath(os.path.join(directory or "/", pattern))
            if path == whole or fnmatchcase(path, whole) or path.startswith(whole.rstrip("/") + "/"):
                return demand
    return "redeploy"

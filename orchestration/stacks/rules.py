"""Rules for stacks, from labels of their services and from a file.

longshore.files   action after a change of a file: `nginx.conf=restart, certs/*=redeploy, data.json=none`
longshore.after   projects to update before this one: `infra, auth`

Paths are relative to the project's folder, or absolute. Every bind-mounted file is tracked; without a rule, a change
requires `redeploy`. The file has the same rules, and overrides the labels:

stacks:
  shop:
    after: [infra]
    files: {nginx.conf: restart}
    services:
      web: {files: {"certs/*": redeploy}}
only: ["*", "!test-*"]        # included projects, without those with !; default: all
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
    """The rules in a file."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    stacks: dict[str, StackSpec] = {}
    only: list[str] = []
    registries: dict[str, Login] = {}

    @field_validator("registries")
    @classmethod
    def _by_reference(cls, value: dict[str, Login]) -> dict[str, Login]:
        for registry, login in value.items():
            if not re.search(r"\{\{.*secret\(.*\}\}", login.password):
                raise ValueError(f"{registry}: refer to the password as \"{{{{ secret('env:NAME') }}}}\"")
        return value

    def params(self) -> dict[str, Any]:
        """Parameters of the operations that inspect hosts."""
        return self.model_dump(exclude_defaults=True)


def stack_rules(path: str) -> StackRules:
    """The rules in the file; none without a file. Raises ConfigError for an invalid file."""
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
        what = "unknown key" if first["type"] == "extra_forbidden" else first["msg"]
        raise ConfigError(f"{path}: {where}: {what.removeprefix('Value error, ')}") from None


def parse_files(text: str) -> dict[str, Demand]:
    """Parse the label `longshore.files`. Raises ValueError."""
    found: dict[str, Demand] = {}
    for part in (part.strip() for part in text.replace("\n", ",").split(",")):
        if not part:
            continue
        path, sign, demand = (word.strip() for word in part.rpartition("="))
        if not sign or not path or demand not in _DEMANDS:
            raise ValueError(f"{part!r}: expected PATH={'|'.join(_DEMANDS)}")
        found[path] = demand  # type: ignore[assignment]
    return found


def counts(project: str, only: Sequence[str]) -> bool:
    """Whether a project is inspected: it matches a pattern, and none of those with an !."""
    excluded = [pattern[1:] for pattern in only if pattern.startswith("!")]
    included = [pattern for pattern in only if not pattern.startswith("!")] or ["*"]
    return any(fnmatchcase(project, pattern) for pattern in included) and not any(
        fnmatchcase(project, pattern) for pattern in excluded
    )


def parse_after(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def required_action(path: str, directory: str, rules: Iterable[Mapping[str, Demand]]) -> Demand:
    """The action after a change of a file, by the first matching pattern."""
    for patterns in rules:
        for pattern, demand in patterns.items():
            whole = os.path.normpath(os.path.join(directory or "/", pattern))
            if path == whole or fnmatchcase(path, whole) or path.startswith(whole.rstrip("/") + "/"):
                return demand
    return "redeploy"

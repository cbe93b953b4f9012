"""The scripted behaviour of a step in the sandbox."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from longshore.orchestration.errors import OperationError


class Vanished(BaseException):
    """The simulated worker was killed."""


@dataclass
class Script:
    """The scripted behaviour of a step in the sandbox."""

    #: Errors of the next attempts, in order; None is a success.
    errors: list[OperationError | None] = field(default_factory=list)
    #: The error of every attempt after those.
    always: OperationError | None = None
    hangs: bool = False
    #: The number of attempts whose worker is killed after the effect.
    vanishes: int = 0
    data: dict[str, Any] | None = None
    changed: bool = True
    acts: Callable[..., Any] | None = None

"""What should happen, and what did: plans, runs, and the client that starts them.

Names are loaded when they are first used: the command line's help needs neither Celery nor Redis.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from longshore.orchestration.client import Client, Run
    from longshore.orchestration.errors import (
        ConfigError,
        LongshoreError,
        OperationError,
        ParamsError,
        PlanError,
        RunConflict,
        RunFailed,
        StoreUnavailable,
        Transient,
        UnknownName,
        UsageError,
        WaitTimeout,
        exit_code_of,
    )
    from longshore.orchestration.events import Event
    from longshore.orchestration.operations import Retry
    from longshore.orchestration.params import Param
    from longshore.orchestration.plan import Plan, Step
    from longshore.orchestration.report import Report, StepReport
    from longshore.orchestration.settings import Settings
    from longshore.orchestration.source import load, parse
    from longshore.orchestration.states import RunState, StepState, UndoState

__all__ = [
    "Client",
    "ConfigError",
    "Event",
    "LongshoreError",
    "OperationError",
    "Param",
    "ParamsError",
    "Plan",
    "PlanError",
    "Report",
    "Retry",
    "Run",
    "RunConflict",
    "RunFailed",
    "RunState",
    "Settings",
    "Step",
    "StepReport",
    "StepState",
    "StoreUnavailable",
    "Transient",
    "UndoState",
    "UnknownName",
    "UsageError",
    "WaitTimeout",
    "exit_code_of",
    "load",
    "parse",
]

_HOMES = {
    "Client": "client",
    "ConfigError": "errors",
    "Event": "events",
    "LongshoreError": "errors",
    "OperationError": "errors",
    "Param": "params",
    "ParamsError": "errors",
    "Plan": "plan",
    "PlanError": "errors",
    "Report": "report",
    "Retry": "operations",
    "Run": "client",
    "RunConflict": "errors",
    "RunFailed": "errors",
    "RunState": "states",
    "Settings": "settings",
    "Step": "plan",
    "StepReport": "report",
    "StepState": "states",
    "StoreUnavailable": "errors",
    "Transient": "errors",
    "UndoState": "states",
    "UnknownName": "errors",
    "UsageError": "errors",
    "WaitTimeout": "errors",
    "exit_code_of": "errors",
    "load": "source",
    "parse": "source",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"longshore.orchestration.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__

"""What should happen, and what did: plans, runs, and the client that starts them.

Names are loaded when they are first used: the command line's help needs neither Celery nor Redis.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from longshore.orchestration.client import Client, Run
    from longshore.orchestration.context import Context, Prediction
    from longshore.orchestration.errors import (
        Blocked,
        ConfigError,
        DecodeError,
        Delayed,
        LongshoreError,
        OperationError,
        ParamsError,
        PlanError,
        Preflight,
        QueueFull,
        RunConflict,
        RunFailed,
        RunLost,
        ServiceDown,
        StepCancelled,
        StoreUnavailable,
        Transient,
        UnknownName,
        UsageError,
        WaitTimeout,
        exit_code_of,
    )
    from longshore.orchestration.events import Event
    from longshore.orchestration.expressions import E
    from longshore.orchestration.functions import operation
    from longshore.orchestration.guards import OnlyIf
    from longshore.orchestration.hooks import Hooks
    from longshore.orchestration.operations import Retry
    from longshore.orchestration.params import Param
    from longshore.orchestration.plan import Plan, Step, When
    from longshore.orchestration.report import Report, StepReport
    from longshore.orchestration.results import HostResult, Result
    from longshore.orchestration.settings import Settings
    from longshore.orchestration.source import load, parse
    from longshore.orchestration.states import RunState, StepState, UndoState

__all__ = [
    "Blocked",
    "Client",
    "ConfigError",
    "Context",
    "DecodeError",
    "Delayed",
    "E",
    "Event",
    "Hooks",
    "HostResult",
    "LongshoreError",
    "OnlyIf",
    "OperationError",
    "Param",
    "ParamsError",
    "Plan",
    "PlanError",
    "Prediction",
    "Preflight",
    "QueueFull",
    "Report",
    "Result",
    "Retry",
    "Run",
    "RunConflict",
    "RunFailed",
    "RunLost",
    "RunState",
    "ServiceDown",
    "Settings",
    "Step",
    "StepCancelled",
    "StepReport",
    "StepState",
    "StoreUnavailable",
    "Transient",
    "UndoState",
    "UnknownName",
    "UsageError",
    "WaitTimeout",
    "When",
    "exit_code_of",
    "load",
    "operation",
    "parse",
]

_HOMES = {
    "Blocked": "errors",
    "Client": "client",
    "ConfigError": "errors",
    "Context": "context",
    "DecodeError": "errors",
    "Delayed": "errors",
    "E": "expressions",
    "Event": "events",
    "Hooks": "hooks",
    "HostResult": "results",
    "LongshoreError": "errors",
    "OnlyIf": "guards",
    "OperationError": "errors",
    "Param": "params",
    "ParamsError": "errors",
    "Plan": "plan",
    "PlanError": "errors",
    "Prediction": "context",
    "Preflight": "errors",
    "QueueFull": "errors",
    "Report": "report",
    "Result": "results",
    "Retry": "operations",
    "Run": "client",
    "RunConflict": "errors",
    "RunFailed": "errors",
    "RunLost": "errors",
    "RunState": "states",
    "ServiceDown": "errors",
    "Settings": "settings",
    "Step": "plan",
    "StepCancelled": "errors",
    "StepReport": "report",
    "StepState": "states",
    "StoreUnavailable": "errors",
    "Transient": "errors",
    "UndoState": "states",
    "UnknownName": "errors",
    "UsageError": "errors",
    "WaitTimeout": "errors",
    "When": "plan",
    "exit_code_of": "errors",
    "load": "source",
    "operation": "functions",
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

"""Plans, runs, and the client that starts and reads them.

Names are loaded when they are first used: the command line's help needs neither Celery nor Redis.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from longshore.orchestration.authoring.context import Context, Prediction
    from longshore.orchestration.authoring.functions import operation
    from longshore.orchestration.client.async_client import AsyncClient
    from longshore.orchestration.client.async_run import AsyncRun
    from longshore.orchestration.client.client import Client
    from longshore.orchestration.client.run import Run
    from longshore.orchestration.errors import (
        Blocked,
        ConfigError,
        DecodeError,
        Delayed,
        LongshoreError,
        OperationError,
        ParamsError,
        Permanent,
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
    from longshore.orchestration.language.expressions import E, template
    from longshore.orchestration.language.guards import OnlyIf
    from longshore.orchestration.language.params import Param
    from longshore.orchestration.operations import Retry
    from longshore.orchestration.operations.results import HostResult, Result
    from longshore.orchestration.plans.handles import StepHandle
    from longshore.orchestration.plans.loading import load, parse, validate
    from longshore.orchestration.plans.model import Plan
    from longshore.orchestration.plans.steps import Step, When
    from longshore.orchestration.runs.events import Event
    from longshore.orchestration.runs.hooks import Hooks
    from longshore.orchestration.runs.report import Report
    from longshore.orchestration.runs.step_report import StepReport
    from longshore.orchestration.settings import Settings
    from longshore.orchestration.states import RunState, StepState, UndoState

__all__ = [
    "AsyncClient",
    "AsyncRun",
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
    "Jobs",
    "LongshoreError",
    "OnlyIf",
    "OperationError",
    "Param",
    "ParamsError",
    "Permanent",
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
    "Schedules",
    "ServiceDown",
    "Settings",
    "Stacks",
    "Step",
    "StepCancelled",
    "StepHandle",
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
    "template",
    "validate",
]

_HOMES = {
    "AsyncClient": "client.async_client",
    "AsyncRun": "client.async_run",
    "Blocked": "errors",
    "Client": "client.client",
    "ConfigError": "errors",
    "Context": "authoring.context",
    "DecodeError": "errors",
    "Delayed": "errors",
    "E": "language.expressions",
    "Event": "runs.events",
    "Hooks": "runs.hooks",
    "HostResult": "operations.results",
    "Jobs": "jobs.jobs",
    "LongshoreError": "errors",
    "OnlyIf": "language.guards",
    "OperationError": "errors",
    "Param": "language.params",
    "ParamsError": "errors",
    "Permanent": "errors",
    "Plan": "plans.model",
    "PlanError": "errors",
    "Prediction": "authoring.context",
    "Preflight": "errors",
    "QueueFull": "errors",
    "Report": "runs.report",
    "Result": "operations.results",
    "Retry": "operations",
    "Run": "client.run",
    "RunConflict": "errors",
    "RunFailed": "errors",
    "RunLost": "errors",
    "RunState": "states",
    "Schedules": "schedules.schedules",
    "ServiceDown": "errors",
    "Settings": "settings",
    "Step": "plans.steps",
    "StepCancelled": "errors",
    "StepHandle": "plans.handles",
    "StepReport": "runs.report",
    "Stacks": "stacks.orchestrate",
    "StepState": "states",
    "StoreUnavailable": "errors",
    "Transient": "errors",
    "UndoState": "states",
    "UnknownName": "errors",
    "UsageError": "errors",
    "WaitTimeout": "errors",
    "When": "plans.steps",
    "exit_code_of": "errors",
    "load": "plans.loading",
    "operation": "authoring.functions",
    "parse": "plans.loading",
    "template": "language.expressions",
    "validate": "plans.loading",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"longshore.orchestration.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__

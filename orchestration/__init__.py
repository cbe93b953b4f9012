"""What should happen, and what did: plans, runs, and the client that starts them."""

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

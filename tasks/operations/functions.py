"""The implementation of operations that an application defines by functions."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from pydantic import BaseModel, ValidationError

from longshore.orchestration.authoring.functions import Functions, context_parameter
from longshore.orchestration.errors import OperationError, Transient, plain
from longshore.orchestration.language.secrets import HIDDEN
from longshore.orchestration.operations import Operation, Params, find
from longshore.orchestration.operations.results import Result, as_mapping
from longshore.tasks.implementation import (
    Context,
    Implementation,
    Outcome,
    Prediction,
    implementation,
    implements_functions,
)
from longshore.tasks.operations import event_loop


@implements_functions
class FunctionImplementation(Implementation[Params]):
    """Calls an application's functions for each call of the port."""

    def __init__(self, operation: Operation, functions: Functions) -> None:
        self.operation = operation
        self._functions = functions

    @property
    def keeps_journal(self) -> bool:
        return self._functions.before is not None

    def before(self, ctx: Context, params: Params) -> dict[str, Any]:
        function = self._functions.before
        return {} if function is None else as_mapping(self._call(function, ctx, params) or {})

    def act(self, ctx: Context, params: Params, before: dict[str, Any]) -> Outcome:
        if self._functions.done is not None:
            found = self._call(self._functions.done, ctx, params, before=before)
            if found is not None:
                return self._outcome(found)
        return self._outcome(self._call(self._functions.act, ctx, params))

    def predict(self, ctx: Context, params: Params) -> Prediction:
        if self._functions.predict is None:
            changed = False if self._functions.read_only else None
            return Prediction(f"would call {self.operation.name}", changed=changed, undo=self._functions.undo_by)
        predicted = self._call(self._functions.predict, ctx, params)
        return predicted if isinstance(predicted, Prediction) else Prediction(str(predicted), changed=None)

    def undo(self, ctx: Context, params: Params, before: dict[str, Any], data: dict[str, Any] | None) -> Outcome:
        if self._functions.undo is not None:
            return self._outcome(self._call(self._functions.undo, ctx, params, before=before, data=data))
        name = self._functions.undo_by
        if name is None:
            raise OperationError(f"{self.operation.name} has no undo", remedy="give the step an undo")
        operation = find(name)
        dumped = params.model_dump()
        # Records are redacted: a value that contained a secret cannot be restored.
        known = dumped | before | (data or {}) | {key: dumped[key] for key in self.operation.secrets}
        # The undo may know the values by former names.
        named = operation.params.model_fields.keys() | operation.renamed.keys()
        given = operation.upgraded({key: known[key] for key in known if key in named})
        if hidden := [
            key for key, value in given.items() if key not in self.operation.secrets and HIDDEN in str(value)
        ]:
            raise OperationError(f"the undo {name} needs {hidden[0]}, which contained a secret and was not recorded")
        try:
            values = operation.params.model_validate(given)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise OperationError(
                f"the undo {name} needs {where}, which the step did not record: {plain(first['msg'])}"
            ) from None
        done = implementation(name)
        # The undo has its own idempotency key, so that no service takes it for a repetition of the act.
        own = replace(ctx, step=f"{ctx.step}@undo")
        return done.act(own, values, done.before(own, values))

    def _call(self, function: Callable[..., Any], ctx: Context, params: Params, **more: Any) -> Any:
        """Call a function with the parameters that its signature names."""
        known: dict[str, Any] = {name: getattr(params, name) for name in type(params).model_fields} | more
        wanted = inspect.signature(function).parameters
        context = context_parameter(function)
        given = {name: known[name] for name in wanted if name in known}
        if any(parameter.kind is parameter.VAR_KEYWORD for parameter in wanted.values()):
            given = known
        if context is not None:
            given[context] = ctx
        try:
            result = function(**given)
            return event_loop.run(result, ctx) if inspect.iscoroutine(result) else result
        except self._functions.retry_on as error:
            raise Transient(f"{type(error).__name__}: {error}") from error
        except SystemExit as error:
            raise OperationError(f"{self.operation.name} called sys.exit: SystemExit({error})") from error

    def _outcome(self, value: Any) -> Outcome:
        """The outcome from a function's return value."""
        changes = not self._functions.read_only
        if isinstance(value, Outcome):
            return value
        if isinstance(value, Result):
            changed = value.changed
            if changed is None:
                changed = any(host.changed for host in value.hosts) if value.hosts else changes
            data = as_mapping(value.data) if value.data is not None else {}
            return Outcome(changed=changed, data=data, hosts=value.hosts)
        if value is None:
            return Outcome(changed=changes)
        if isinstance(value, bool):
            return Outcome(changed=value)
        if isinstance(value, Mapping | BaseModel) or hasattr(value, "__dataclass_fields__"):
            return Outcome(changed=changes, data=as_mapping(value))
        return Outcome(changed=changes, data={"result": as_mapping(value)["result"]})

"""A step without a run, called as the runner does; journalled data passes through JSON."""

from __future__ import annotations

import json
from typing import Any

from longshore.orchestration.operations import Operation, find
from longshore.tasks.implementation import Context, Outcome, Prediction, implementation
from longshore.tasks.operations import command, file, noop

#: Importing these modules registers the implementations.
FAMILIES = (command, file, noop)


def check_result(operation: Operation, outcome: Outcome) -> None:
    """Check that the data match the result of the operation, which lists all fields, unless the plan chooses them."""
    operation.result.model_validate(outcome.data)
    if fields := operation.result.model_json_schema().get("properties"):
        assert set(outcome.data or ()) <= set(fields), f"{operation.name} returns more than its result lists"


class Doing:
    """A step of a run."""

    def __init__(self, operation: str, context: dict[str, Any] | None = None, /, **params: Any) -> None:
        self.implementation = implementation(operation)
        self.params = find(operation).params.model_validate(params)
        self.ctx = Context(**{"run_id": "r1", "step": "step", "plan": "plan", **(context or {})})
        self._before: dict[str, Any] | None = None
        self.outcome: Outcome | None = None

    @property
    def before(self) -> dict[str, Any]:
        """The state before the step, read once at the first attempt."""
        if self._before is None:
            self._before = json.loads(json.dumps(self.implementation.before(self.ctx, self.params)))
        return self._before

    def act(self) -> Outcome:
        done = self.implementation.act(self.ctx, self.params, self.before)
        self.outcome = Outcome(done.changed, json.loads(json.dumps(done.data)))
        check_result(self.implementation.operation, self.outcome)
        return self.outcome

    def predict(self) -> Prediction:
        return self.implementation.predict(self.ctx, self.params)

    def undo(self, *, with_data: bool = True) -> Outcome:
        """Undo the step. With `with_data=False` the attempt has recorded no outcome."""
        data = self.outcome.data if with_data and self.outcome else None
        return self.implementation.undo(self.ctx, self.params, self.before, data)

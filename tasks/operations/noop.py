"""`noop.execute`: a step without effects, for tests and examples."""

from __future__ import annotations

from typing import Any

from longshore.orchestration.errors import Unsuccessful
from longshore.orchestration.operations.noop import NOOP, NoopParams
from longshore.tasks.implementation import Context, Implementation, Outcome, Prediction, implements


@implements(NOOP)
class Noop(Implementation[NoopParams]):
    """Sleeps, fails or returns data as its parameters specify. The undo has no effect."""

    def act(self, ctx: Context, params: NoopParams, before: dict[str, Any]) -> Outcome:
        if params.sleep:
            ctx.sleep(params.sleep)
        if params.fail:
            raise Unsuccessful(params.fail if isinstance(params.fail, str) else "fail is set")
        return Outcome(changed=params.changed, data=dict(params.data))

    def predict(self, ctx: Context, params: NoopParams) -> Prediction:
        if params.fail:
            return Prediction("would fail: fail is set", changed=False)
        return Prediction("would do nothing", changed=params.changed, undo="nothing to undo")

    def undo(self, ctx: Context, params: NoopParams, before: dict[str, Any], data: dict[str, Any] | None) -> Outcome:
        return Outcome(changed=False)

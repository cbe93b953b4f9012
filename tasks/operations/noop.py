"""`noop.execute`: what it is told, and nothing else."""

from __future__ import annotations

from typing import Any

from longshore.orchestration.errors import Unsuccessful
from longshore.orchestration.operations.noop import NOOP, NoopParams
from longshore.tasks.implementation import Context, Implementation, Outcome, Prediction, implements


@implements(NOOP)
class Noop(Implementation[NoopParams]):
    """Sleeps, fails, and gives data as told. There is nothing to take back."""

    def act(self, ctx: Context, params: NoopParams, before: dict[str, Any]) -> Outcome:
        if params.sleep:
            ctx.sleep(params.sleep)
        if params.fail:
            raise Unsuccessful(params.fail if isinstance(params.fail, str) else "told to fail")
        return Outcome(changed=params.changed, data=dict(params.data))

    def predict(self, ctx: Context, params: NoopParams) -> Prediction:
        if params.fail:
            return Prediction("would fail, as told", changed=False)
        return Prediction("would do nothing", changed=params.changed, undo="nothing to take back")

    def undo(self, ctx: Context, params: NoopParams, before: dict[str, Any], data: dict[str, Any] | None) -> Outcome:
        return Outcome(changed=False)

"""`noop.execute`: a step without effects, for tests and examples."""

from __future__ import annotations

from typing import Any

from longshore.orchestration.errors import Unsuccessful
from longshore.orchestration.operations.noop import NOOP, NoopParams
from longshore.tasks.implementation import Change, Context, Implementation, Outcome, Prediction, implements


@implements(NOOP)
class Noop(Implementation[NoopParams]):
    """Sleeps, fails or returns data as its parameters specify. The undo has no effect."""

    def change(self, ctx: Context, params: NoopParams, before: dict[str, Any]) -> Change:
        if params.fail:
            yield Prediction("would fail: fail is set", changed=False)
        else:
            yield Prediction("would do nothing", changed=params.changed, undo="nothing to undo")
        if params.sleep:
            ctx.sleep(params.sleep)
        if params.fail:
            raise Unsuccessful(params.fail if isinstance(params.fail, str) else "fail is set")
        return dict(params.data)

    def undo(self, ctx: Context, params: NoopParams, before: dict[str, Any], data: dict[str, Any] | None) -> Outcome:
        return Outcome(changed=False)

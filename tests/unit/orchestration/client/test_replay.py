"""The effects that a replay finds in the records of runs."""

from __future__ import annotations

import pytest

from longshore.orchestration import Plan
from longshore.orchestration.client.replay import collect
from longshore.orchestration.store.keys import Field
from longshore.orchestration.testing import Sandbox


@pytest.mark.parametrize(
    ("resolved", "why"),
    [
        (False, "the step is unknown: its effect is not known"),
        (True, "command.exec.execute is not convergent: it acts each time"),
    ],
    ids=["unknown", "resolved-as-done"],
)
def test_effect_of_a_lost_worker_is_listed_for_its_host(own_registry: None, resolved: bool, why: str) -> None:
    sandbox = Sandbox()
    plan = Plan("p", on_failure="keep")
    plan.step("charge", "command.exec.execute", argv=["charge"])
    sandbox.vanish("charge")
    assert sandbox.run(plan, run_id="r").state == "failed"
    if resolved:
        assert sandbox.store.resolve("r", "1-0", {"actor": "ann", "as": "done"}, 0) == "done"

    assert [str(one) for one in collect(sandbox.store, host="sandbox").left_out] == [f"run r step charge: {why}"]
    assert collect(sandbox.store, host="elsewhere").left_out == []


def test_unknown_parameters_of_an_effect_are_reported_with_their_cause(own_registry: None) -> None:
    sandbox = Sandbox()
    plan = Plan("p", on_failure="keep", sequential=True, params={"name": {"type": "string", "default": "a"}})
    for name in ("lost", "resolved"):
        plan.step(name, "docker.pull.execute", image=f"{name}:{{{{ params.name }}}}")
    sandbox.give("lost")
    sandbox.fail("resolved", "the registry does not answer")
    assert sandbox.run(plan, run_id="r").state == "failed"
    assert sandbox.store.resolve("r", "1-0", {"actor": "ann", "as": "done"}, 1) == "done"
    for step_id in (0, 1):
        sandbox.store.client.hdel(sandbox.store.keys.of("r").steps, f"{Field.RENDERED}:{step_id}")

    assert [str(one) for one in collect(sandbox.store, host="sandbox").left_out] == [
        "run r step lost: its parameters are not known: Redis has lost them",
        "run r step resolved: its parameters are not known: a person has resolved the step as done",
    ]

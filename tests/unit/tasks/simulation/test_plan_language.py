"""Edge cases of the plan language, in the sandbox."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from longshore.orchestration import Context, E, Hooks, HostResult, Plan, PlanError, Result, operation, parse, validate
from longshore.orchestration.operations import base
from longshore.orchestration.plans.compiled import CompiledPlan
from longshore.orchestration.settings import MAX_DATA_BYTES
from longshore.orchestration.testing import Sandbox
from tests.sweeping import sweep

pytestmark = pytest.mark.usefixtures("own_registry")


def child(*, fails: bool = False, irreversible: bool = False) -> Plan:
    plan = Plan("child")
    step = plan.step("act", "noop.execute")
    if irreversible:
        step.irreversible()
    plan.step("end", "noop.execute", fail=fails).after("act")
    return plan


# --- termination -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("target", "{{ steps.a.data.all }}", "target: the expression gives no host name but a list"),
        ("when", "params.n | dictsort", "when:"),
        ("foreach", "{{ namespace() }}", "foreach:"),
        ("foreach", "{{ steps.a.data.n }}", "foreach: the expression gives no list but a int"),
    ],
)
@pytest.mark.parametrize("always", [False, True])
def test_run_ends_whatever_its_expressions_raise(field: str, value: str, message: str, always: bool) -> None:
    step: dict[str, Any] = {"op": "noop.execute", "after": ["a"], field: value, "always": always}
    a = {"op": "noop.execute", "with": {"data": {"all": ["x"], "n": 1}}}
    plan = Plan.model_validate(
        {"name": "p", "params": {"n": {"type": "integer", "default": 1}}, "steps": {"a": a, "b": step}}
    )

    report = Sandbox().run(plan)

    if field == "when" and always:
        assert report.step("b").status == "changed", "a guard with an error prevented an always step"
    else:
        assert (report.step("b").status, report.state) == ("failed", "partial" if always else "undone")
        assert (report.step("b").error or "").startswith(message)


def test_undo_with_an_external_wait_is_refused() -> None:
    for undo in ("approval.wait.execute", "plan.run.execute"):
        plan = Plan("p")
        plan.step("a", "noop.execute").undo(undo)
        with pytest.raises(PlanError) as caught:
            validate(plan)
        assert any("cannot be an undo" in str(problem) for problem in caught.value.problems)


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (Result(hosts=[HostResult(1)]), "invalid host name"),  # type: ignore[arg-type]
        (Result(hosts=[HostResult("a", status="ok")]), "'ok' is not one of changed, unchanged, failed, skipped"),  # type: ignore[arg-type]
        (Result(data={"x": object()}), "cannot be represented as JSON"),
        (Result(hosts=[HostResult("a", data={"t": "x" * MAX_DATA_BYTES})]), "bytes exceeds the"),
    ],
)
def test_invalid_result_fails_its_step(result: Result, message: str) -> None:
    @operation("unit.result")
    def give() -> Result:
        return result

    plan = Plan("p", on_error="continue")
    plan.step("a", "unit.result")
    plan.step("b", "noop.execute").after("a").only_if("failed")

    report = Sandbox().run(plan)

    assert message in (report.step("a").error or "")
    assert report.step("b").status == "changed"


def test_invalid_text_and_system_exit_fail_the_step() -> None:
    @operation("unit.odd")
    def odd(how: str) -> Any:
        if how == "exit":
            raise SystemExit(3)
        if how == "error":
            return Result(hosts=[HostResult("a", error=ValueError("boom"))])  # type: ignore[arg-type]
        return {"text": "half \ud800 pair"}

    plan = Plan("p", on_error="continue")
    for how in ("exit", "error", "text"):
        plan.step(how, "unit.odd", how=how)

    report = Sandbox().run(plan)

    assert report.step("exit").error == "unit.odd called sys.exit: SystemExit(3)"
    assert (report.step("error").error or "").endswith("a: boom")
    assert report.step("text").data == {"text": "half ? pair"}


# --- always, items, points of no return ------------------------------------------------------------------


def test_aborted_always_approval_is_requested_again() -> None:
    plan = Plan("p")
    plan.approval("ask", timeout="30s", on_timeout="approve").always()
    plan.step("boom", "noop.execute", fail=True)
    sandbox = Sandbox()

    report = sandbox.run(plan)

    assert report.step("ask").status == "unchanged"
    waits = [event for event in sandbox.events(report.run_id) if event.name == "step_waiting"]
    ends = [event for event in sandbox.events(report.run_id) if event.name == "step_ended" and event.step == "ask"]
    assert len(waits) == 2
    assert ends[0].at - waits[1].at >= 30_000, "the timeout started before the level of the step"


def test_interrupted_always_step_respects_max_parallel() -> None:
    plan = Plan("p")
    each = plan.step("each", "noop.execute").foreach(list(range(6))).max_parallel(1).always()
    plan.step("boom", "noop.execute", fail=True)
    sandbox = Sandbox()

    report = sandbox.run(plan)

    assert each.plan is plan
    assert [str(item.status) for item in report.step("each").items] == ["changed"] * 6
    assert sorted(sandbox.done) == ["boom", *(f"each[{n}]" for n in range(6))]
    at_once, most = 0, 0
    for event in sandbox.events(report.run_id):
        at_once += {"item_started": 1, "item_ended": -1}.get(event.name, 0)
        most = max(most, at_once)
    assert most == 1


@pytest.mark.parametrize(
    ("fails", "state", "doubt", "why"),
    [
        ("act", "undone", [], None),
        ("bare", "undone", ["sub"], "in doubt in run r.sub: bare"),
        ("end", "undone", ["sub"], "left over in run r.sub: bare"),
    ],
)
def test_doubt_about_a_child_is_a_doubt_about_its_parent(
    fails: str, state: str, doubt: list[str], why: str | None
) -> None:
    inner = Plan("child")
    inner.step("act", "noop.execute")
    inner.step("bare", "command.exec.execute", argv=["x"]).after("act")
    inner.step("end", "noop.execute").after("bare")
    plan = Plan("p")
    plan.step("first", "noop.execute")
    plan.run_plan("sub", inner).after("first")
    sandbox = Sandbox()
    sandbox.fail(fails)

    report = sandbox.run(plan, run_id="r")

    assert (report.state, report.exit_code, report.in_doubt) == (state, 3 if doubt else 1, doubt)
    undo = report.step("sub").undo
    assert undo is not None
    assert undo.error == why
    assert sandbox.undone[-1] == "first", "the undo was held back without a failed undo"


def test_child_that_changed_nothing_leaves_its_parent_untouched() -> None:
    inner = Plan("child")
    inner.step("look", "command.exec.execute", argv=["x"], changes=False)
    plan = Plan("p")
    plan.run_plan("sub", inner)
    sandbox = Sandbox()
    sandbox.fail("look")

    report = sandbox.run(plan, run_id="r")

    assert (sandbox.report("r.sub").state, report.state, report.exit_code) == ("failed", "failed", 1)
    assert report.step("sub").undo is None
    assert report.summary == "nothing was changed; 1 step, 1 failed"


def test_failed_always_step_may_have_an_effect() -> None:
    plan = Plan("p")
    plan.step("notify", "command.exec.execute", argv=["x"]).always()
    sandbox = Sandbox()
    sandbox.fail("notify")

    report = sandbox.run(plan, run_id="r")

    assert (report.state, report.exit_code) == ("failed", 3)
    assert report.summary == "1 step, 1 failed"


def test_child_past_its_point_of_no_return_is_reported_and_not_undone() -> None:
    plan = Plan("p")
    plan.run_plan("sub", child(irreversible=True))
    plan.step("boom", "noop.execute", fail=True).after("sub")
    sandbox = Sandbox()

    report = sandbox.run(plan, run_id="r")

    assert (report.state, report.exit_code, report.left_over) == ("undo_failed", 3, ["sub"])
    undo = report.step("sub").undo
    assert undo is not None
    assert undo.error == "run r.sub: the run is past its point of no return and cannot be undone"
    assert sandbox.report("r.sub").state == "succeeded"
    assert sandbox.undone == ["boom"]


def test_child_of_a_dead_worker_ends_with_its_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker dies between the request of the child and the external wait, while the parent ends."""
    from longshore.tasks.attempts.delivery import Delivery
    from longshore.tasks.simulation.script import Vanished

    plan = Plan("p", on_error="stop")
    inner = Plan("inner")
    inner.approval("ask", timeout="10h")
    plan.run_plan("sub", inner)
    plan.step("boom", "noop.execute", fail=True)
    park, sandbox = Delivery.park, Sandbox()

    def die_once(self: Delivery, *args: Any) -> Any:
        if self.step.name == "sub" and not self.side:
            raise Vanished
        return park(self, *args)

    monkeypatch.setattr(Delivery, "park", die_once)

    report = sandbox.run(plan, run_id="r")

    assert report.step("sub").status == "unknown"
    assert (report.step("sub").undo or report).model_dump()["status"] == "undone"
    assert sandbox.report("r.sub").ended
    assert (report.duration_s or 0) < 600


def test_steps_with_similar_names_have_separate_children() -> None:
    plan = Plan("p")
    plan.run_plan("a", child()).foreach(["x", "y"])
    plan.run_plan("a.0", child())
    sandbox = Sandbox()

    report = sandbox.run(plan, run_id="r")

    ids = [item.data["run_id"] for item in report.step("a").items] + [report.step("a.0").data["run_id"]]
    assert ids == ["r.a@0", "r.a@1", "r.a.0"]
    assert sandbox.done.count("act") == 3


def test_empty_foreach_has_empty_results() -> None:
    plan = Plan("p")
    each = plan.step("each", "noop.execute").foreach([])
    plan.step("after", "noop.execute", data={"all": each.data.results}).after(each)
    assert Sandbox().run(plan).step("after").data == {"all": []}


def test_item_waiting_for_other_items_is_not_rejected() -> None:
    """Busy workers claim the items one after another, without a time limit."""
    plan = Plan("p")
    plan.step("each", "noop.execute", data={"n": E.item}).foreach(list(range(30)))
    sandbox = Sandbox()
    sandbox.store.settings = sandbox.settings.model_copy(update={"claim_timeout": 5.0})

    @operation("unit.slow")
    def slow() -> None:
        sandbox.store.advance(1.0)

    plan.steps["each"] = plan.steps["each"].model_copy(update={"op": "unit.slow", "with_": {}})

    assert Sandbox.run(sandbox, plan).state == "succeeded"


# --- keys, hooks, reports --------------------------------------------------------------------------------


def test_named_undo_has_its_own_idempotency_key() -> None:
    keys: list[str] = []

    @operation("unit.charge", undo="unit.refund")
    def charge(ctx: Context) -> None:
        keys.append(ctx.idempotency_key)

    @operation("unit.refund")
    def refund(ctx: Context) -> None:
        keys.append(ctx.idempotency_key)

    plan = Plan("p")
    plan.step("a", "unit.charge")
    plan.step("boom", "noop.execute", fail=True).after("a")
    Sandbox().run(plan, run_id="r")
    assert keys == ["r.a", "r.a@undo"]


def test_on_undo_hook_runs_once_after_a_step_is_undone() -> None:
    calls: list[tuple[str, str]] = []
    plan = Plan("p")
    plan.step("each", "noop.execute").foreach([1, 2, 3])
    plan.step("boom", "noop.execute", fail=True).after("each")

    Sandbox().run(
        plan, hooks=Hooks(on_undo=lambda step: calls.append((step.name, str(step.undo and step.undo.status))))
    )

    assert calls == [("boom", "undone"), ("each", "undone")]


def test_tolerated_failure_is_not_the_runs_error() -> None:
    plan = Plan("p")
    plan.step("each", "noop.execute").foreach([1, 2]).tolerate(1)
    sandbox = Sandbox()
    sandbox.fail("each[1]")
    report = sandbox.run(plan)
    assert (report.state, report.exit_code, report.error) == ("succeeded", 0, None)


def test_celery_undo_result_is_ignored() -> None:
    plan = Plan("p")
    plan.step("a", "celery.task.execute", task="x").timeout("5s").undo("celery.task.execute", task="y")
    sandbox = Sandbox()
    sandbox.run(plan, run_id="r")
    parked = sandbox._coordinator.external_waits
    loaded = sandbox.plans.get("r")
    # as if the undo were running
    sandbox.store.command("r", "undo")
    sandbox._coordinator.advance("r")
    claimed = sandbox.store.claim("r", 0, "u", "w", "t")
    assert not isinstance(claimed, str)
    assert sandbox.store.park("r", 0, "u", claimed.fence, 60, '{"task":"y","seconds":60}', "task y")
    assert parked.task_ended({"text": "x" * MAX_DATA_BYTES}, "r", 0, "u", claimed.fence, ok=True)
    assert loaded.digest
    assert sandbox.report("r").step("a").undo is not None


def test_run_with_an_unknown_operation_can_be_reported_and_cancelled() -> None:
    @operation("unit.there")
    def there() -> None: ...

    plan = Plan("p")
    plan.step("a", "unit.there")
    sandbox = Sandbox()
    from longshore.orchestration.client.request import request_body
    from longshore.orchestration.store.admission import Admission

    Admission(sandbox.store).submit("r", request_body(plan, {}, "me"))
    del base._REGISTRY["unit.there"]

    sweep(sandbox._coordinator)
    lenient = CompiledPlan(plan, lenient=True)
    from longshore.orchestration.runs import report

    run, steps = sandbox.store.everything("r")
    rebuilt = report.build("r", lenient, run, steps, 0)
    assert rebuilt.error is not None
    assert "unknown operation 'unit.there'" in rebuilt.error.message

    sandbox.store.command("r", "cancel")
    sweep(sandbox._coordinator)
    assert sandbox.store.state("r") == "cancelled"


# --- plan errors -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ("when: \"{{ params.t }} == 'yes'\"", "renders to text, which is always true"),
        ("when: \"steps.a.status == 'failed'\"", "step 'a' ends the run on failure: set on_error: continue on it"),
        ("foreach: 3", "foreach: must be a list, or a template that gives one"),
        ('foreach: "x {{ 1 }}"', "the template renders to text, not a list"),
        ("target: role=web", "target: must be _any, _all, a host's name, or a label as key:value"),
        ("tolerate: 200%", "tolerate: must be a number of items or hosts, or a part of them: 2, or 10%"),
        ("when: true", "when: must be an expression, as text"),
        ("irreversible: true, always: true", "an irreversible step cannot be an always step: remove one of the two"),
        ("retry: {attempts: 2}, op: approval.wait.execute", "is never retried: remove retry"),
        ("op: celery.task.execute, with: {task: x}", "needs a timeout"),
        ("op: plan.run.execute, with: {plan: nowhere}", "no plan 'nowhere'"),
        ("max_parallel: 2", "max_parallel requires a foreach or several hosts"),
        ('with: {data: "{{ item }}"}', "item requires a foreach"),
        ("irreversible: true, undo: {op: noop.execute}", "an irreversible step is never undone: remove undo"),
    ],
)
def test_plan_error_is_one_line(step: str, message: str) -> None:
    op = "" if "op: celery" in step or "op: plan" in step or "op: approval" in step else "op: noop.execute, "
    text = f"name: p\nparams: {{t: string}}\nsteps:\n  a: {{op: noop.execute}}\n  b: {{{op}after: a, {step}}}\n"
    with pytest.raises(PlanError) as caught:
        parse(text)
    messages = [str(problem) for problem in caught.value.problems]
    assert any(message in line and line.startswith("line 5, step 'b'") for line in messages), messages
    assert len(messages) == 1, messages


def test_point_of_no_return_is_unique_and_precedes_no_undo() -> None:
    plan = Plan("p")
    plan.step("point", "noop.execute").irreversible()
    plan.step("beside", "noop.execute")
    plan.step("after", "noop.execute").after("point").undo("noop.execute")
    with pytest.raises(PlanError) as caught:
        validate(plan)
    messages = " / ".join(map(str, caught.value.problems))
    assert "must be alone in its level, but beside would run beside it" in messages
    assert "the undo would never run after 'point', the point of no return" in messages


def test_unknown_undo_operation_is_a_plan_error() -> None:
    @operation("unit.half", undo="unit.nowhere")
    def half() -> None: ...

    plan = Plan("p")
    plan.step("a", "unit.half")
    with pytest.raises(PlanError, match=r"the undo of unit.half is the unknown operation 'unit.nowhere'"):
        validate(plan)


def test_recursive_child_plans_are_refused(tmp_path: Path) -> None:
    (tmp_path / "loop.yaml").write_text(
        "name: loop\nsteps:\n  again: {op: plan.run.execute, with: {plan: loop.yaml}}\n"
    )
    from longshore.orchestration import load

    with pytest.raises(PlanError, match="plans are nested more than 8 deep"):
        load(str(tmp_path / "loop.yaml"))

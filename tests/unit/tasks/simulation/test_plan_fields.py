"""Policies, items, results and approvals of a plan, in the sandbox."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from pydantic import BaseModel

from longshore.orchestration import (
    Context,
    DecodeError,
    E,
    Hooks,
    HostResult,
    Plan,
    PlanError,
    Report,
    Result,
    operation,
    parse,
)
from longshore.orchestration.testing import Sandbox

pytestmark = pytest.mark.usefixtures("own_registry")


class Bill(BaseModel):
    customer: str
    amount: int


@dataclasses.dataclass
class Count:
    number: int


@pytest.fixture(autouse=True)
def bank(own_registry: None) -> None:
    """Operations of an application."""

    @operation("unit.charge", retry_on=(ConnectionError,))
    def charge(ctx: Context, bill: Bill, away: int = 0) -> Bill:
        """Charge the bill; the first `away` attempts fail."""
        if ctx.attempt <= away:
            raise ConnectionError("the bank is away")
        return bill

    @operation("unit.sum", read_only=True)
    def total(ctx: Context, steps: list[str]) -> Count:
        return Count(sum(ctx.results[name].decode(Bill).amount for name in steps))

    @operation("unit.returns")
    def returns(what: str) -> Any:
        if what == "raise":
            raise ZeroDivisionError("by a mistake")
        bill = Bill(customer="ann", amount=1)
        return {"nothing": None, "false": False, "list": [1, 2], "model": bill}.get(what, object())

    @operation("unit.hosts", read_only=True)
    def hosts(answers: dict[str, str]) -> Result:
        def answer(item: tuple[str, str]) -> HostResult:
            host, status = item
            return HostResult(host, changed=True) if status == "changed" else HostResult(host, error=status)

        return Result.from_hosts(answers.items(), answer)


def statuses(report: Report) -> dict[str, str]:
    return {step.name: str(step.status) for step in report.steps}


# --- policies --------------------------------------------------------------------------------------------


def test_continue_runs_independent_steps_and_the_recovery() -> None:
    plan = Plan("continue", on_error="continue")
    plan.step("boom", "noop.execute", fail=True)
    plan.step("child", "noop.execute").after("boom")
    plan.step("grandchild", "noop.execute").after("child")
    plan.step("recover", "noop.execute").after("boom").only_if_failed()
    plan.step("other", "noop.execute")
    plan.step("other2", "noop.execute").after("other")

    report = Sandbox().run(plan)

    assert statuses(report) == {
        "boom": "failed", "child": "skipped", "grandchild": "skipped", "recover": "changed", "other": "changed",
        "other2": "changed",
    }  # fmt: skip
    assert {report.step(name).reason for name in ("child", "grandchild")} == {"dependency failed"}
    assert (report.state, report.exit_code) == ("partial", 3)


def test_failed_host_fails_the_step() -> None:
    plan = Plan("levels", on_error="continue")
    plan.step("one_host", "unit.hosts", answers={"a": "changed", "b": "broken"})
    plan.step("all_hosts", "unit.hosts", answers={"a": "broken", "b": "broken"})

    report = Sandbox().run(plan)

    assert statuses(report) == {"one_host": "failed", "all_hosts": "failed"}
    assert report.step("one_host").error == "1 of 2 hosts failed; the first: b: broken"
    assert [(h.host, h.status, h.changed) for h in report.step("one_host").hosts] == [
        ("a", "changed", True), ("b", "failed", False),
    ]  # fmt: skip


@pytest.mark.parametrize(("failures", "status", "state"), [(3, "changed", "succeeded"), (5, "failed", "partial")])
def test_retry_counts_attempts_and_waits_between_them(failures: int, status: str, state: str) -> None:
    """`retry` and `on_error` are independent of each other."""
    plan = parse(
        f"""
        name: retry
        on_error: continue
        retry: {{attempts: 4, initial: 100ms, maximum: 300ms}}
        steps:
          flaky: {{op: unit.charge, with: {{bill: {{customer: ann, amount: 5}}, away: {failures}}}}}
          other: {{op: noop.execute}}
        """
    )
    called: list[tuple[str, int, str]] = []
    sandbox = Sandbox()

    report = sandbox.run(plan, hooks=Hooks(on_retry=lambda *args: called.append(args)))

    assert (report.step("flaky").status, report.step("flaky").attempts, report.state) == (status, 4, state)
    assert called == [("flaky", n, "ConnectionError: the bank is away") for n in (1, 2, 3)]
    delays = [int(event.fields["delay_ms"]) for event in sandbox.events(report.run_id) if event.name == "step_retrying"]
    for delay, full in zip(delays, (100, 200, 300), strict=True):
        assert full / 2 <= delay <= full


def test_retry_without_backoff_is_immediate() -> None:
    plan = Plan("retry")
    plan.step("flaky", "unit.charge", bill={"customer": "ann", "amount": 5}, away=2).retry(2)
    sandbox = Sandbox()

    report = sandbox.run(plan)

    assert report.step("flaky").attempts == 3
    retries = [event for event in sandbox.events(report.run_id) if event.name == "step_retrying"]
    assert [event.fields["delay_ms"] for event in retries] == ["0", "0"]


def test_failed_always_step_is_reported_and_stops_no_other() -> None:
    plan = Plan("always")
    plan.step("boom", "noop.execute", fail=True)
    plan.step("bad", "noop.execute", fail=True).after("boom").always()
    plan.step("good", "noop.execute").after("bad").always()

    report = Sandbox().run(plan)

    assert statuses(report) == {"boom": "failed", "bad": "failed", "good": "changed"}
    assert (report.state, report.exit_code) == ("undone", 3)


def test_always_step_of_a_succeeding_run_runs_in_its_level() -> None:
    plan = Plan("level")
    plan.step("first", "noop.execute")
    plan.step("lights", "noop.execute").after("first").always()
    plan.step("last", "noop.execute").after("lights")
    sandbox = Sandbox()

    assert sandbox.run(plan).exit_code == 0
    assert sandbox.done == ["first", "lights", "last"]


def test_run_past_its_point_of_no_return_is_not_undone() -> None:
    plan = Plan("point")
    plan.step("before", "noop.execute")
    plan.step("point", "noop.execute").after("before").irreversible().undo("none")
    plan.step("boom", "noop.execute", fail=True).after("point")
    sandbox = Sandbox()

    report = sandbox.run(plan)

    assert (report.state, report.exit_code) == ("failed", 3)
    assert (report.step("before").undo, sandbox.undone) == (None, [])


# --- items -----------------------------------------------------------------------------------------------


def test_items_without_tolerance_are_all_undone() -> None:
    plan = Plan("many")
    plan.step("each", "noop.execute", fail="{{ item == 5 }}").foreach(list(range(10)))

    report = Sandbox().run(plan)

    each = report.step("each")
    assert (each.status, report.state, report.exit_code) == ("failed", "undone", 1)
    assert {str(item.undo.status) for item in each.items if item.undo} == {"undone"}
    assert all(item.undo for item in each.items if item.attempts)


def test_foreach_over_an_empty_list_is_skipped_with_a_reason() -> None:
    plan = Plan("empty")
    none = plan.step("none", "noop.execute", data={"all": []})
    plan.step("each", "noop.execute").after(none).foreach(none.data.all)
    plan.step("after", "noop.execute").after("each")

    report = Sandbox().run(plan)

    assert report.step("each").reason == "foreach: the list is empty"
    assert statuses(report)["after"] == "changed"


# --- results ---------------------------------------------------------------------------------------------


def test_results_keep_their_types_and_decode_to_models() -> None:
    plan = Plan("types")
    a = plan.step("a", "noop.execute", data={"n": 3, "t": "1.10", "l": [1, {"x": None}], "b": True})
    plan.step("b", "noop.execute", data={"same": a.data, "n": a.data.n, "text": f"{a.data.n} of {a.data.t}"}).after(a)
    plan.step("c", "unit.charge", bill={"customer": "ann", "amount": a.data.n}).after(a)

    report = Sandbox().run(plan)

    assert report.step("b").data == {
        "same": {"n": 3, "t": "1.10", "l": [1, {"x": None}], "b": True}, "n": 3, "text": "3 of 1.10",
    }  # fmt: skip
    assert report.decode("c", Bill) == Bill(customer="ann", amount=3)
    with pytest.raises(DecodeError, match="no result for 'zzz'"):
        report.decode("zzz", Bill)
    with pytest.raises(DecodeError, match="the data of step 'a' does not match Bill: customer"):
        report.step("a").decode(Bill)


def test_results_come_from_the_record_by_unique_step_names() -> None:
    plan = Plan("names")
    for n in range(4):
        plan.step(f"c{n}", "unit.charge", bill={"customer": "ann", "amount": n})
    plan.step("sum", "unit.sum", steps=["c0", "c1", "c2", "c3"]).after("c0", "c1", "c2", "c3")
    with pytest.raises(PlanError, match="a step of this name"):
        plan.step("sum", "noop.execute")

    assert Sandbox().run(plan).step("sum").decode(Count).number == 6


@pytest.mark.parametrize(
    ("what", "status"), [("nothing", "changed"), ("false", "unchanged"), ("list", "changed"), ("model", "changed")]
)
def test_function_may_return_nothing(what: str, status: str) -> None:
    plan = Plan("returns")
    plan.step("f", "unit.returns", what=what).undo("none")

    step = Sandbox().run(plan).step("f")

    assert (step.status, step.error) == (status, None)
    assert step.data == {"list": {"result": [1, 2]}, "model": {"customer": "ann", "amount": 1}}.get(what, {})


@pytest.mark.parametrize(("what", "error"), [("raise", "ZeroDivisionError: by a mistake"), ("object", "JSON")])
def test_failed_function_fails_only_its_step(what: str, error: str) -> None:
    plan = Plan("returns", on_error="continue")
    plan.step("f", "unit.returns", what=what)
    plan.step("g", "noop.execute")

    report = Sandbox().run(plan)

    assert error in (report.step("f").error or "")
    assert report.step("g").status == "changed"


def test_step_with_target_any_reports_one_host() -> None:
    plan = Plan("any")
    plan.step("a", "noop.execute")
    assert [host.status for host in Sandbox().run(plan).step("a").hosts] == ["changed"]


def test_report_as_json_has_the_documented_fields() -> None:
    plan = Plan("json")
    plan.step("each", "noop.execute", data={"i": E.item}).foreach([1, 2])
    data = json.loads(Sandbox().run(plan).model_dump_json())
    (step,) = data["steps"]
    assert [item["item"] for item in step["items"]] == [1, 2]
    assert step["hosts"][0]["status"] == "changed"


# --- approvals -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("on_timeout", "state"), [("fail", "undone"), ("approve", "succeeded")])
def test_approval_timeout_follows_its_policy(on_timeout: Any, state: str) -> None:
    plan = Plan("asking")
    before = plan.step("before", "noop.execute")
    plan.approval("ask", "go on?", timeout="500ms", on_timeout=on_timeout).after(before)

    report = Sandbox().run(plan)

    assert report.state == state
    if state == "undone":
        assert report.step("ask").error == "no approval within 500ms"

"""Generated plans with failures, guards and policies follow the rules for each step in the sandbox, which runs the
reducer, the scripts, the coordinator and the runner in memory.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from longshore.orchestration import Plan, Report, validate
from longshore.orchestration.errors import PlanError
from longshore.orchestration.testing import Sandbox

pytest.importorskip("lupa")

LONG = os.environ.get("LONGSHORE_FAULTS") == "long"
EXAMPLES = 1000 if LONG else 50
GUARDS = ("changed", "all_changed", "failed", "any_host_failed", "all_hosts_failed", "any_host_changed",
          "all_hosts_changed")  # fmt: skip
#: A `when`, and whether the condition reads the status of a step.
WHENS = (
    "steps.{}.changed",
    "steps.{}.status == 'failed'",
    "steps.{}.status != 'changed'",
    "params.yes",
    "not params.yes",
)


@dataclass
class Spec:
    """A generated step."""

    name: str
    after: list[str]
    #: The outcome of the attempts, or of each item: changed, unchanged, failed, flaky.
    ends: list[str]
    items: bool = False
    tolerate: int = 0
    on_error: str | None = None
    always: bool = False
    retries: int = 0
    only_if: list[str] = field(default_factory=list)
    when: str = ""
    undo: str = "own"


@st.composite
def specs(draw: st.DrawFn) -> list[Spec]:
    found: list[Spec] = []
    for n in range(draw(st.integers(1, 7))):
        before = [spec.name for spec in found]
        after = draw(st.lists(st.sampled_from(before), unique=True, max_size=3)) if before else []
        items = draw(st.booleans()) and draw(st.booleans())
        ends = st.sampled_from(["changed", "changed", "unchanged", "failed", "flaky"])
        always = draw(st.integers(0, 5)) == 0 and not items
        spec = Spec(
            name=f"s{n}",
            after=after,
            ends=draw(st.lists(ends, min_size=0 if items else 1, max_size=3 if items else 1)),
            items=items,
            tolerate=draw(st.integers(0, 1)) if items else 0,
            on_error=draw(st.sampled_from([None, "stop", "continue"])),
            always=always,
            retries=draw(st.integers(0, 2)),
            only_if=draw(st.lists(st.sampled_from(GUARDS), unique=True, max_size=2)) if draw(st.booleans()) else [],
            undo=draw(st.sampled_from(["own", "own", "none"])),
        )
        if draw(st.integers(0, 2)) == 0:
            spec.when = draw(st.sampled_from(WHENS if after else WHENS[3:])).format(*(after[:1]))
        found.append(spec)
    return found


def plan_of(drawn: list[Spec], on_error: str, on_failure: str) -> Plan:
    plan = Plan("any", params={"yes": bool}, on_error=on_error, on_failure=on_failure)
    for spec in drawn:
        step = plan.step(spec.name, "noop.execute").after(*spec.after).retry(spec.retries)
        if spec.items:
            step.foreach([str(n) for n in range(len(spec.ends))]).tolerate(spec.tolerate)
        if spec.on_error:
            step.on_error(spec.on_error)  # type: ignore[arg-type]
        if spec.always:
            step.always()
        if spec.only_if:
            step.only_if(*spec.only_if)
        if spec.when:
            step.when(spec.when)
        if spec.undo == "none":
            step.undo("none")
    return plan


def sandbox_for(drawn: list[Spec]) -> Sandbox:
    sandbox = Sandbox()
    for spec in drawn:
        for n, end in enumerate(spec.ends):
            name = f"{spec.name}[{n}]" if spec.items else spec.name
            if end == "failed":
                sandbox.fail(name)
            elif end == "flaky":
                sandbox.fail(name, times=1)
            else:
                sandbox.give(name, {}, changed=end == "changed")
    return sandbox


FAILS = Spec("s0", [], ["failed"], on_error="continue")
#: A failure guard permits this step after `FAILS`, and another condition skips the step and so its dependents.
GUARDED = Spec("s1", ["s0"], ["changed"], only_if=["failed"], when="not params.yes")
PARTLY = Spec("s0", [], ["failed", "changed"], items=True, tolerate=1)


# --- the rules -------------------------------------------------------------------------------------------

BAD = {"failed", "cancelled"}
GOOD = {"changed", "unchanged"}


@dataclass
class Rules:
    """The rules of the plan language, checked against a report: earlier steps determine the outcome of a step.

    The rules do not define an order within a level: a failure may cancel a step of the same level or not.
    """

    drawn: list[Spec]
    on_error: str
    keep: bool
    yes: bool
    report: Report

    def __post_init__(self) -> None:
        self.specs = {spec.name: spec for spec in self.drawn}
        self.steps = {step.name: step for step in self.report.steps}
        self.level: dict[str, int] = {}
        for spec in self.drawn:
            self.level[spec.name] = 1 + max((self.level[name] for name in spec.after), default=-1)
        stopping = [self.level[spec.name] for spec in self.drawn if self.status(spec) == "failed" and self.stops(spec)]
        #: The level in which a failure ended the run.
        self.last = min(stopping, default=max(self.level.values()))
        self.stopped = bool(stopping)

    def status(self, spec: Spec) -> str:
        return str(self.steps[spec.name].status)

    def stops(self, spec: Spec) -> bool:
        return (spec.on_error or self.on_error) == "stop" and not spec.always

    def check(self) -> None:
        assert list(self.steps) == list(self.specs), "a step is missing in the report"
        for spec in self.drawn:
            reached = self.level[spec.name] <= self.last
            if reached or spec.always:
                self.check_begin(spec, in_place=reached)
            else:
                assert self.status(spec) == "not_run", spec
            self.check_undo(spec)
        self.check_end()

    def check_begin(self, spec: Spec, *, in_place: bool) -> None:
        """Check that a step is skipped for a failed dependency or a guard, or has the outcome of its attempts."""
        step = self.steps[spec.name]
        broken = in_place and any(self.skips_dependents(name) for name in spec.after)
        if broken and not spec.always and not self.looks_at_failure(spec):
            assert (self.status(spec), step.reason) == ("skipped", "dependency failed"), spec
        elif not self.guards_hold(spec):
            assert self.status(spec) == "skipped", spec
            assert step.reason
            assert step.reason != "dependency failed"
        elif spec.items and not spec.ends:
            assert (self.status(spec), step.reason) == ("skipped", "foreach: the list is empty")
        else:
            self.check_outcome(spec)

    def check_outcome(self, spec: Spec) -> None:
        step = self.steps[spec.name]
        possible = [{self.outcome(end, spec.retries)} for end in spec.ends]
        if self.stopped and self.level[spec.name] == self.last and not spec.always:
            possible = [outcomes | {"cancelled"} for outcomes in possible]
        if not spec.items:
            assert self.status(spec) in possible[0], spec
            return
        units = [str(item.status) for item in step.items]
        assert all(unit in outcomes for unit, outcomes in zip(units, possible, strict=True)), spec
        if units.count("failed") > spec.tolerate:
            assert self.status(spec) == "failed"
        else:
            words = (word for word in ("cancelled", "changed") if word in units)
            assert self.status(spec) == next(words, "unchanged")

    @staticmethod
    def outcome(end: str, retries: int) -> str:
        return ("changed" if retries else "failed") if end == "flaky" else end

    def skips_dependents(self, name: str) -> bool:
        """Report whether dependents are skipped: after a failure, or after a step skipped because of a failure."""
        if str(self.steps[name].status) in BAD:
            return True
        skipped = str(self.steps[name].status) == "skipped"
        return skipped and any(self.skips_dependents(before) for before in self.specs[name].after)

    @staticmethod
    def looks_at_failure(spec: Spec) -> bool:
        return bool({"failed", "any_host_failed", "all_hosts_failed"} & set(spec.only_if)) or ".status" in spec.when

    def guards_hold(self, spec: Spec) -> bool:
        return all(self.holds(guard, spec.after) for guard in spec.only_if) and self.when_holds(spec)

    def holds(self, guard: str, after: list[str]) -> bool:
        hosts = [self.on_its_host(name) for name in after]
        flat = [host for each in hosts for host in each]
        full = bool(after) and all(hosts)
        return {
            "changed": any(map(self.changed, after)),
            "all_changed": bool(after) and all(map(self.changed, after)),
            "failed": any(str(self.steps[name].status) == "failed" for name in after),
            "any_host_failed": any("failed" in units for units in flat),
            "all_hosts_failed": full and all("failed" in units for units in flat),
            "any_host_changed": any("changed" in units for units in flat),
            "all_hosts_changed": full and all("changed" in units for units in flat),
        }[guard]

    def on_its_host(self, name: str) -> list[set[str]]:
        """The outcomes of the units of a step on the single host; empty if no unit ran."""
        step = self.steps[name]
        units = {str(item.status) for item in step.items} or {str(step.status)}
        ran = units & (GOOD | {"failed"})
        return [ran] if ran else []

    def changed(self, name: str) -> bool:
        step = self.steps[name]
        return "changed" in {str(step.status), *(str(item.status) for item in step.items)}

    def when_holds(self, spec: Spec) -> bool:
        if not spec.when:
            return True
        if "params" in spec.when:
            return self.yes != spec.when.startswith("not")
        name = spec.when.split(".")[1]
        if spec.when.endswith(".changed"):
            return self.changed(name)
        status = str(self.steps[name].status)
        return status == "failed" if "==" in spec.when else status != "changed"

    def check_undo(self, spec: Spec) -> None:
        """Check that, after a failure has stopped the run, exactly the steps that may have acted are compensated."""
        step = self.steps[spec.name]
        units = [str(item.status) for item in step.items] or [self.status(spec)]
        undone = step.undo is not None and step.undo.status == "undone"
        may = self.stopped and not self.keep and not spec.always and spec.undo == "own"
        acted = "changed" in units or "failed" in units
        if may and acted:
            assert undone, spec
        if undone:
            assert may, spec
            assert acted or "cancelled" in units, spec

    def check_end(self) -> None:
        if self.stopped:
            assert self.report.state == ("failed" if self.keep else "undone")
            return
        bad = any(self.status(spec) in BAD for spec in self.drawn)
        good = any(self.status(spec) in GOOD for spec in self.drawn if not spec.always)
        assert self.report.state == ("succeeded" if not bad else "partial" if good else "failed")


def reachable(drawn: list[Spec], on_error: str) -> bool:
    """Report whether each failure guard can hold; otherwise the plan is refused."""
    names = {spec.name: spec for spec in drawn}

    def may_fail(name: str, *, in_units: bool = False) -> bool:
        spec = names[name]
        return spec.always or (in_units and spec.items) or (spec.on_error or on_error) == "continue"

    def can_hold(spec: Spec, word: str) -> bool:
        if word not in {"failed", "any_host_failed", "all_hosts_failed"} or not spec.after:
            return True
        return any(may_fail(name, in_units=word != "failed") for name in spec.after)

    return all(
        spec.always
        or (
            all(can_hold(spec, word) for word in spec.only_if)
            and ("== 'failed'" not in spec.when or may_fail(spec.when.split(".")[1]))
        )
        for spec in drawn
    )


@pytest.mark.timeout(3600 if LONG else 180)
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@example([FAILS, Spec("s1", ["s0"], ["changed"], only_if=["failed"])], "stop", "undo", True)
@example([FAILS, GUARDED, Spec("s2", ["s1"], ["changed"])], "stop", "undo", True)
@example([PARTLY, Spec("s1", ["s0"], ["changed"], only_if=["any_host_failed"])], "stop", "undo", True)
@example([PARTLY, Spec("s1", ["s0"], ["changed"], only_if=["all_hosts_failed"])], "stop", "undo", True)
@example([Spec("s0", [], ["failed"]), Spec("s1", ["s0"], ["changed"], always=True)], "stop", "undo", True)
@example([Spec("s0", [], ["flaky"], retries=1), Spec("s1", ["s0"], ["failed"])], "stop", "undo", True)
@given(specs(), st.sampled_from(["stop", "continue"]), st.sampled_from(["undo", "undo", "keep"]), st.booleans())
def test_every_step_of_a_generated_run_follows_the_rules(
    drawn: list[Spec], on_error: str, on_failure: str, yes: bool
) -> None:
    plan = plan_of(drawn, on_error, on_failure)
    if not reachable(drawn, on_error):
        with pytest.raises(PlanError, match="can never hold"):
            validate(plan)
        return

    report = sandbox_for(drawn).run(plan, {"yes": yes})

    Rules(drawn, on_error, on_failure == "keep", yes, report).check()

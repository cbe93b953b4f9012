"""Any plan with any failures, guards and policies ends as the rules say: those of DESIGN §3, computed once more.

The model below was written from the rules, and knows neither the reducer nor the scripts. What it is held
against is the real thing on the bench: reducer, scripts, driver and runner.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from longshore.orchestration import Plan, Report
from longshore.orchestration.testing import Bench

pytest.importorskip("lupa")

GUARDS = ("changed", "all_changed", "failed", "any_host_failed", "all_hosts_failed", "any_host_changed",
          "all_hosts_changed")  # fmt: skip
#: A `when`, and whether it looks at how a step ended.
WHENS = (
    "steps.{}.changed",
    "steps.{}.status == 'failed'",
    "steps.{}.status != 'changed'",
    "params.yes",
    "not params.yes",
)


@dataclass
class Spec:
    """One step, as it was drawn."""

    name: str
    after: list[str]
    #: Outcome of its attempts, or of each of its items: changed, unchanged, failed, flaky.
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


def bench_for(drawn: list[Spec]) -> Bench:
    bench = Bench()
    for spec in drawn:
        for n, end in enumerate(spec.ends):
            name = f"{spec.name}[{n}]" if spec.items else spec.name
            if end == "failed":
                bench.fail(name)
            elif end == "flaky":
                bench.fail(name, times=1)
            else:
                bench.give(name, {}, changed=end == "changed")
    return bench


# --- the model -------------------------------------------------------------------------------------------

BAD = {"failed", "cancelled"}
GOOD = {"changed", "unchanged"}


@dataclass
class Told:
    """What the model says of a step."""

    status: str = "not_run"
    reason: str | None = None
    tainted: bool = False
    units: list[str] = field(default_factory=list)
    acted: bool = False
    undone: bool = False


class Model:
    """The rules, step by step."""

    def __init__(self, drawn: list[Spec], on_error: str, on_failure: str, *, yes: bool) -> None:
        self.specs = {spec.name: spec for spec in drawn}
        self.on_error, self.keep, self.yes = on_error, on_failure == "keep", yes
        self.told = {spec.name: Told() for spec in drawn}
        self.levels: list[list[Spec]] = []
        level: dict[str, int] = {}
        for spec in drawn:
            level[spec.name] = 1 + max((level[name] for name in spec.after), default=-1)
        for number in range(max(level.values()) + 1):
            self.levels.append([spec for spec in drawn if level[spec.name] == number])
        self.state = self._run()

    def _run(self) -> str:
        for level in self.levels:
            if not self._forward(level):
                return self._end_early()
        bad = [told for told in self.told.values() if told.status in BAD]
        good = any(told.status in GOOD for name, told in self.told.items() if not self.specs[name].always)
        return "succeeded" if not bad else "partial" if good else "failed"

    def _forward(self, level: list[Spec]) -> bool:
        """A level; False where it ended the run. Plain steps are begun before items."""
        begun = []
        for spec in level:
            told = self.told[spec.name]
            broken = any(self.told[name].status in BAD or self.told[name].tainted for name in spec.after)
            if broken and not spec.always and not self._looks_at_failure(spec):
                told.status, told.reason, told.tainted = "skipped", "dependency failed", True
            elif not self._guards_hold(spec):
                told.status, told.reason, told.tainted = "skipped", "guard", broken
            elif spec.items and not spec.ends:
                told.status, told.reason, told.tainted = "skipped", "foreach: the list is empty", broken
            else:
                begun.append(spec)
        return self._work_off([spec for spec in begun if not spec.items] + [spec for spec in begun if spec.items])

    def _work_off(self, begun: list[Spec]) -> bool:
        """One attempt after the other, those that are tried again behind the others; False where a failure ends it."""
        waiting = deque((spec, n, 1) for spec in begun for n in range(len(spec.ends)))
        units = {spec.name: [""] * len(spec.ends) for spec in begun}
        tried = {spec.name: [0] * len(spec.ends) for spec in begun}
        stopped = False
        while waiting:
            spec, n, attempt = waiting.popleft()
            if stopped:
                units[spec.name][n] = "cancelled"
                continue
            tried[spec.name][n] = attempt
            end = spec.ends[n]
            failed = end == "failed" or (end == "flaky" and attempt == 1)
            if failed and attempt <= spec.retries:
                waiting.append((spec, n, attempt + 1))
                continue
            units[spec.name][n] = "failed" if failed else "changed" if end == "flaky" else end
            if "" not in units[spec.name]:
                status = self._whole(spec, units[spec.name])
                stops = (spec.on_error or self.on_error) == "stop" and not spec.always
                stopped = status == "failed" and stops
        for spec in begun:
            told = self.told[spec.name]
            if spec.always and "cancelled" in units[spec.name]:
                continue  # it has its turn at the end
            told.status = self._whole(spec, units[spec.name])
            told.units = units[spec.name] if spec.items else []
            told.acted = any(
                unit in {"changed", "failed"} or (unit == "cancelled" and attempts)
                for unit, attempts in zip(units[spec.name], tried[spec.name], strict=True)
            )
        return not stopped

    @staticmethod
    def _whole(spec: Spec, units: list[str]) -> str:
        if not spec.items:
            return units[0]
        if units.count("failed") > spec.tolerate:
            return "failed"
        return next((word for word in ("cancelled", "changed") if word in units), "unchanged")

    def _looks_at_failure(self, spec: Spec) -> bool:
        family = {"failed", "any_host_failed", "all_hosts_failed"}
        return bool(family & set(spec.only_if)) or ".status" in spec.when

    def _hosts(self, name: str) -> list[tuple[bool, bool]]:
        """Of the one host on the bench: whether anything failed there, and changed there."""
        told = self.told[name]
        units = told.units or ([told.status] if told.status in {"changed", "unchanged", "failed"} else [])
        units = [unit for unit in units if unit != "cancelled"]
        return [("failed" in units, "changed" in units)] if units else []

    def _changed(self, name: str) -> bool:
        return self.told[name].status == "changed" or "changed" in self.told[name].units

    def _guards_hold(self, spec: Spec) -> bool:
        return all(self._holds(guard, spec.after) for guard in spec.only_if) and self._when(spec)

    def _holds(self, guard: str, after: list[str]) -> bool:
        hosts = [self._hosts(name) for name in after]
        flat = [host for each in hosts for host in each]
        full = bool(after) and all(hosts)
        return {
            "changed": any(self._changed(name) for name in after),
            "all_changed": bool(after) and all(self._changed(name) for name in after),
            "failed": any(self.told[name].status == "failed" for name in after),
            "any_host_failed": any(failed for failed, _ in flat),
            "all_hosts_failed": full and all(failed for failed, _ in flat),
            "any_host_changed": any(changed for _, changed in flat),
            "all_hosts_changed": full and all(changed for _, changed in flat),
        }[guard]

    def _when(self, spec: Spec) -> bool:
        if not spec.when:
            return True
        if "params" in spec.when:
            return self.yes != spec.when.startswith("not")
        name = spec.when.split(".")[1]
        if spec.when.endswith(".changed"):
            return self._changed(name)
        told = self.told[name]
        return (told.status == "failed") if "==" in spec.when else (told.status != "changed")

    def _end_early(self) -> str:
        """Everything that may have acted is undone, then the always steps that were not reached run."""
        if not self.keep:
            for name, told in self.told.items():
                told.undone = told.acted and not self.specs[name].always and self.specs[name].undo == "own"
        for level in self.levels:
            for spec in level:
                if spec.always and self.told[spec.name].status == "not_run":
                    if self._guards_hold(spec):
                        self._work_off([spec])
                    else:
                        self.told[spec.name].status, self.told[spec.name].reason = "skipped", "guard"
        return "failed" if self.keep else "undone"


def check(report: Report, model: Model) -> None:
    assert report.state == model.state
    assert [step.name for step in report.steps] == list(model.specs), "no step is missing"
    for step in report.steps:
        told = model.told[step.name]
        assert step.status == told.status, step
        if told.reason == "guard":
            assert step.reason
            assert step.reason != "dependency failed"
        elif told.reason:
            assert step.reason == told.reason
        assert (step.undo is not None and step.undo.status == "undone") == told.undone, step
        if told.units:
            assert [str(item.status) for item in step.items] == told.units


def reachable(drawn: list[Spec], on_error: str) -> bool:
    """The plan is refused if a failure guard can never hold."""
    names = {spec.name: spec for spec in drawn}
    family = {"failed", "any_host_failed", "all_hosts_failed"}

    def may_fail(name: str) -> bool:
        return names[name].always or names[name].items or (names[name].on_error or on_error) == "continue"

    return all(
        spec.always
        or (
            (not spec.after or not family & set(spec.only_if) or any(map(may_fail, spec.after)))
            and ("== 'failed'" not in spec.when or may_fail(spec.when.split(".")[1]))
        )
        for spec in drawn
    )


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(specs(), st.sampled_from(["stop", "continue"]), st.sampled_from(["undo", "undo", "keep"]), st.booleans())
def test_any_run_ends_as_the_rules_say(drawn: list[Spec], on_error: str, on_failure: str, yes: bool) -> None:
    plan = plan_of(drawn, on_error, on_failure)
    if not reachable(drawn, on_error):
        with pytest.raises(Exception, match="can never hold"):
            plan.check()
        return
    bench = bench_for(drawn)
    given_: dict[str, Any] = {"yes": yes}

    check(bench.run(plan, given_), Model(drawn, on_error, on_failure, yes=yes))

"""Evaluate the guards, `foreach` and target of a step: whether it runs, for which items, and on which hosts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from longshore.orchestration.errors import StoreUnavailable, UnknownName
from longshore.orchestration.language import guards, templates
from longshore.orchestration.language.guards import RUNS, GuardDecision, Unit
from longshore.orchestration.language.targets import ANY, is_several
from longshore.orchestration.language.template_engine import Budget, spending
from longshore.orchestration.plans.compiled import CompiledStep, tolerated
from longshore.orchestration.plans.steps import When
from longshore.orchestration.runs import report
from longshore.orchestration.runs.step_report import StepReport
from longshore.orchestration.settings import MAX_UNITS
from longshore.orchestration.store.hosts import Host, Hosts
from longshore.orchestration.store.placement import hosts_of, left_out
from longshore.orchestration.store.run_store import Store
from longshore.tasks.attempts.scope import of_steps
from longshore.tasks.loaded_runs import Loaded

#: Evaluation steps of templates that each step of a level adds to the budget of the level.
_STEPS_MORE = 500


class _Impossible(Exception):
    """The step cannot begin."""


class StepPlanner:
    """Decides about the steps of one level for the reducer. Reads each earlier step once."""

    def __init__(self, store: Store, loaded: Loaded, run_id: str) -> None:
        self._store = store
        self._loaded = loaded
        self._run_id = run_id
        self._seen: dict[int, StepReport] = {}
        self._hosts: dict[str, Host] | None = None
        self._budget = Budget()

    def __call__(self, index: int) -> GuardDecision:
        step = self._loaded.plan.steps[index]
        if step.plain:
            return RUNS
        # One budget for the level: a plan with many costly guards must not block the worker for other runs.
        self._budget.left += _STEPS_MORE
        try:
            with spending(self._budget):
                if reason := self._guards(step):
                    return GuardDecision(skip=reason)
                return self._parts(step)
        except _Impossible as error:
            return GuardDecision(fail=str(error))
        except StoreUnavailable:
            raise
        except Exception as error:  # noqa: BLE001 - a run must end whatever its plan's own expressions do
            return GuardDecision(fail=f"the step cannot begin: {type(error).__name__}: {error}")

    # --- guards -----------------------------------------------------------------------------------

    def _guards(self, step: CompiledStep) -> str:
        """The reason to skip the whole step; '' where all guards hold that do not depend on a part of it."""
        if step.step.only_if:
            found = self._read(step.needs)
            before = [found[i] for i in step.needs]
            for condition in step.step.only_if:
                if not guards.holds(condition, before):
                    return guards.REASONS[condition]
        return self._whens(step, [guard for guard in step.step.when if not guard.of_part], {})

    def _whens(self, step: CompiledStep, conditions: Sequence[When], more: dict[str, Any]) -> str:
        for guard in conditions:
            try:
                holds = templates.truth(guard.if_, self._scope(templates.braced(guard.if_)) | more)
            except templates.TemplateProblem as error:
                if step.always:
                    continue  # a failing guard must not block an always step
                raise _Impossible(f"when: {error}") from None
            if not holds:
                return guard.reason or guards.WHEN_FALSE
        return ""

    def _read(self, indices: tuple[int, ...]) -> dict[int, StepReport]:
        missing = [i for i in indices if i not in self._seen]
        if missing:
            self._seen |= report.read(self._store, self._run_id, self._loaded.plan, missing)
        return self._seen

    def _scope(self, raw: Any) -> dict[str, Any]:
        index = self._loaded.plan.index
        named = tuple(index[name] for name in sorted(templates.references(raw).steps) if name in index)
        found = self._read(named)
        return of_steps(self._loaded, self._run_id, {i: found[i] for i in named}, "")

    # --- items and hosts --------------------------------------------------------------------------

    def _parts(self, step: CompiledStep) -> GuardDecision:
        target = self._render(step.target, "target")
        hosts = self._targets(step, target)
        if not hosts:
            return GuardDecision(skip=f"no host matches the target {target}")
        if step.step.foreach is None and not is_several(target):
            reason = self._why_skipped(step, Unit(), hosts[0], alone=True)
            return GuardDecision(skip=reason, host=hosts[0].name if hosts[0] else "")
        items = [""] if step.step.foreach is None else [_json(item) for item in self._items(step)]
        if not items:
            return GuardDecision(skip="foreach: the list is empty")
        if len(items) * len(hosts) > MAX_UNITS:
            raise _Impossible(f"{len(items) * len(hosts)} items and hosts exceed the {MAX_UNITS} of a step")
        parts = [(Unit(item, host.name if host else ""), host) for item in items for host in hosts]
        units = tuple(
            replace(unit, skip=self._why_skipped(step, unit, host, alone=not is_several(target)))
            for unit, host in parts
        )
        return GuardDecision(
            units=units,
            at_once=step.step.max_parallel or len(units),
            tolerated=tolerated(step.step.tolerate, sum(not unit.skip for unit in units)),
            canary=step.step.canary or 0,
        )

    def _items(self, step: CompiledStep) -> list[Any]:
        items = self._render(step.step.foreach, "foreach")
        if not isinstance(items, list):
            raise _Impossible(f"foreach: the expression gives no list but a {type(items).__name__}")
        return items

    def _known(self) -> dict[str, Host]:
        if self._hosts is None:
            self._hosts = Hosts(self._store).all()
        return self._hosts

    def _targets(self, step: CompiledStep, target: Any) -> list[Host | None]:
        """The hosts of the step's target, None for any host; empty where the step is skipped for lack of a host."""
        if not isinstance(target, str):
            raise _Impossible(f"target: the expression gives no host name but a {type(target).__name__}")
        if target == ANY:
            return [None]
        try:
            return list(hosts_of(self._known(), target, always=step.always))
        except UnknownName as error:
            if step.step.on_no_host == "skip":
                return []
            raise _Impossible(f"target: {error.message}") from None

    def _why_skipped(self, step: CompiledStep, unit: Unit, host: Host | None, *, alone: bool) -> str:
        """The reason to skip one part of a step, or ''. `alone`: the step has one host, and waits for it."""
        hosts = self._known() if step.step.when_fact is not None else {}
        if reason := left_out(step, host, hosts, alone=alone):
            return reason
        more: dict[str, Any] = {}
        if unit.item:
            more["item"] = json.loads(unit.item)
        if host is not None:
            more["host"] = {"name": host.name, "labels": host.labels, "facts": host.facts}
        return self._whens(step, [guard for guard in step.step.when if guard.of_part], more)

    def _render(self, value: Any, what: str) -> Any:
        try:
            return templates.render(value, self._scope(value))
        except templates.TemplateProblem as error:
            raise _Impossible(f"{what}: {error}") from None


def _json(item: Any) -> str:
    return json.dumps(item, ensure_ascii=False, separators=(",", ":"))

"""Whether a step whose turn has come runs, for which items, and where: its guards, its `foreach`, its target."""

from __future__ import annotations

import json
import math
from typing import Any

from longshore.orchestration import guards, report, templates
from longshore.orchestration.compiled import CompiledStep
from longshore.orchestration.errors import StoreUnavailable
from longshore.orchestration.guards import RUNS, Unit, Verdict
from longshore.orchestration.report import StepReport
from longshore.orchestration.settings import MAX_UNITS
from longshore.orchestration.store import Store
from longshore.tasks.plans import Loaded
from longshore.tasks.scope import of_steps


class _Impossible(Exception):
    """The step cannot even begin."""


class Gate:
    """Asked by the reducer about the steps of one level. Reads each step before them once."""

    def __init__(self, store: Store, loaded: Loaded, run_id: str) -> None:
        self._store = store
        self._loaded = loaded
        self._run_id = run_id
        self._seen: dict[int, StepReport] = {}
        self._hosts: dict[str, bool] | None = None

    def __call__(self, index: int) -> Verdict:
        step = self._loaded.plan.steps[index]
        if step.plain:
            return RUNS
        try:
            if reason := self._guards(step):
                return Verdict(skip=reason)
            return self._parts(step)
        except _Impossible as error:
            return Verdict(fail=str(error))
        except StoreUnavailable:
            raise
        except Exception as error:  # noqa: BLE001 - whatever a plan's own expression does, its run must end
            return Verdict(fail=f"it cannot begin: {type(error).__name__}: {error}")

    # --- guards -----------------------------------------------------------------------------------

    def _guards(self, step: CompiledStep) -> str:
        """Why the step is skipped; '' where all of its guards hold."""
        if step.step.only_if:
            found = self._read(step.needs)
            before = [found[i] for i in step.needs]
            for condition in step.step.only_if:
                if not guards.holds(condition, before):
                    return guards.REASONS[condition]
        for guard in step.step.when:
            try:
                holds = templates.truth(guard.if_, self._scope(templates.braced(guard.if_)))
            except templates.TemplateProblem as error:
                if step.always:
                    continue  # a guard that errs must not hold up what always runs (SEMANTICS 16)
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

    def _parts(self, step: CompiledStep) -> Verdict:
        hosts = self._targets(step)
        if not step.fans_out:
            return Verdict(host=hosts[0])
        items = [""] if step.step.foreach is None else [_json(item) for item in self._items(step)]
        if not items:
            return Verdict(skip="foreach: the list is empty")
        units = tuple(Unit(item, host) for item in items for host in hosts)
        if len(units) > MAX_UNITS:
            raise _Impossible(f"{len(units)} items and hosts are more than the {MAX_UNITS} that a step may have")
        at_once = step.step.max_parallel or len(units)
        return Verdict(units=units, at_once=at_once, tolerated=tolerated(step.step.tolerate, len(units)))

    def _items(self, step: CompiledStep) -> list[Any]:
        items = self._render(step.step.foreach, "foreach")
        if not isinstance(items, list):
            raise _Impossible(f"foreach: it gives no list but a {type(items).__name__}")
        return items

    def _targets(self, step: CompiledStep) -> list[str]:
        target = self._render(step.target, "target")
        if not isinstance(target, str):
            raise _Impossible(f"target: it gives no name of a host but a {type(target).__name__}")
        if target == "_any":
            return [""]
        if self._hosts is None:
            self._hosts = self._store.hosts()
        if target == "_all":
            alive = [name for name, alive in self._hosts.items() if alive]
            if not alive:
                raise _Impossible("target: no host has a worker")
            return alive
        if target not in self._hosts:
            known = ", ".join(self._hosts) or "none"
            raise _Impossible(f"target: no worker was ever seen on a host {target!r} (there are: {known})")
        return [str(target)]

    def _render(self, value: Any, what: str) -> Any:
        try:
            return templates.render(value, self._scope(value))
        except templates.TemplateProblem as error:
            raise _Impossible(f"{what}: {error}") from None


def tolerated(written: str | None, units: int) -> int:
    """How many of so many units may fail."""
    if written is None:
        return 0
    if written.endswith("%"):
        return math.floor(units * float(written[:-1]) / 100 + 1e-9)
    return int(written)


def _json(item: Any) -> str:
    return json.dumps(item, ensure_ascii=False, separators=(",", ":"))

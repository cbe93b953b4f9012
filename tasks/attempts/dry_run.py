"""Predict the effect of a step: the worker's part of a dry run. Only reads."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from longshore.orchestration.authoring.context import HostFacts
from longshore.orchestration.errors import LongshoreError
from longshore.orchestration.language import guards, templates
from longshore.orchestration.language.secrets import Redaction
from longshore.orchestration.plans.steps import UndoSpec
from longshore.orchestration.store.caches import Caches
from longshore.orchestration.store.objects import Objects
from longshore.orchestration.store.run_store import Store
from longshore.tasks.attempts.params import render_step, reveal_params
from longshore.tasks.attempts.run_secrets import redaction_of
from longshore.tasks.attempts.scope import of_steps
from longshore.tasks.host import policy
from longshore.tasks.host.facts import facts, labels
from longshore.tasks.implementation import Context, Prediction, implementation, would_fail
from longshore.tasks.loaded_runs import Loaded, Plans


def dry_run_step(body: dict[str, Any], index: int, host: str, store: Store) -> dict[str, Any]:
    """The prediction for one step: its action, whether that is a change, and its compensation."""
    loaded = Plans.load(body)
    step = loaded.plan.steps[index]
    templated = step.operation.templated(step.step.with_)
    unknown = sorted(templates.references(templated).steps)
    redaction = redaction_of(loaded)
    try:
        prediction = _guarded(loaded, index, _predict(loaded, index, unknown, host, store, redaction), host)
    except (LongshoreError, templates.TemplateProblem) as error:
        # Results of earlier steps are missing in a dry run: an error of a step that needs them is no proof.
        certain = not step.needs
        prediction = Prediction(f"unknown: {error}", changed=None, impossible=str(error) if certain else None)
    except Exception as error:  # noqa: BLE001 - a client waits for the answer
        prediction = Prediction(f"unknown: {type(error).__name__}: {error}", changed=None)
    prediction = replace(
        prediction,
        action=redaction.text(prediction.action),
        undo=redaction.text(prediction.undo) if prediction.undo else prediction.undo,
        impossible=redaction.text(prediction.impossible) if prediction.impossible else None,
    )
    undo = prediction.undo
    if isinstance(step.step.undo, UndoSpec):
        undo = f"run {step.step.undo.op}"
    elif step.step.undo == "none" or step.read_only:
        undo = "nothing to undo"
    elif not step.has_undo:
        undo = "none: the effect would remain"
    return {
        "index": index,
        "host": host,
        "action": prediction.action,
        "changed": prediction.changed,
        "undo": undo if prediction.changed is not False else "nothing to undo",
        "impossible": prediction.impossible,
        "data": prediction.data,
    }


def _guarded(loaded: Loaded, index: int, prediction: Prediction, host: str) -> Prediction:
    """Decide each guard whose values are known now; list the others as conditions of the prediction."""
    step = loaded.plan.steps[index]
    depends = [f"only_if {condition}" for condition in step.step.only_if]
    for guard in step.step.when:
        expression = templates.braced(guard.if_)
        if templates.references(expression).steps or "item" in templates.references(expression).unknown:
            depends.append(f"when {guard.if_}")
        elif not templates.truth(expression, of_steps(loaded, "dry-run", {}, host)):
            why = guard.reason or guards.WHEN_FALSE
            return Prediction(f"would be skipped: {why}", changed=False)
    if not depends:
        return prediction
    return replace(
        prediction,
        action=f"{prediction.action}; depends on {', '.join(depends)}",
        changed=None if prediction.changed else prediction.changed,
        impossible=None,
    )


def _predict(
    loaded: Loaded, index: int, unknown: list[str], host: str, store: Store, redaction: Redaction
) -> Prediction:
    step = loaded.plan.steps[index]
    raw = step.step.with_
    if unknown:
        shown = re.sub(r"\s+", " ", ", ".join(f"{key}={value}" for key, value in raw.items()))
        return Prediction(
            f"would run {step.operation.name} with {shown}; values are known after step {', '.join(unknown)}",
            changed=None,
        )
    scope = of_steps(loaded, "dry-run", {}, host)
    templated = step.operation.templated(raw)
    if step.step.foreach is not None:
        return _for_each(loaded, index, scope)
    rendered = render_step(raw, templated, step.inside, scope)
    params, inside = reveal_params(step.operation, rendered, step.inside, redaction)
    context = Context(
        run_id="dry-run",
        step=step.name,
        plan=loaded.plan.plan.name,
        dry_run=True,
        has_upstream=bool(step.needs),
        files=loaded.file,
        host=HostFacts(host, labels(), facts()),
        container=inside,
        redact=redaction.text,
        objects=lambda: Objects(store),
        caches=lambda: Caches(store),
    )
    policy.check_operation(step.operation.name)
    return implementation(step.operation.name).predict(context, params)


def _for_each(loaded: Loaded, index: int, scope: dict[str, Any]) -> Prediction:
    step = loaded.plan.steps[index]
    if before := sorted(templates.references(step.step.foreach).steps):
        action = f"would run {step.operation.name} for each item; the items are known after step {', '.join(before)}"
        return Prediction(action, changed=None)
    items = templates.render(step.step.foreach, scope)
    if not isinstance(items, list):
        return would_fail(f"foreach: the expression gives no list but a {type(items).__name__}")
    if not items:
        return Prediction("would be skipped: foreach: the list is empty", changed=False)
    shown = ", ".join(map(str, items[:3])) + (", …" if len(items) > 3 else "")
    return Prediction(f"would run {step.operation.name} for {len(items)} items: {shown}", changed=None)

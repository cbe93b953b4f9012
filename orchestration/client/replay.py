"""Replay: applies recorded effects again, on a host or service that has lost its data.

The recorded parameters of every step whose effect stands go into one plan, in the order in which the steps ended, and
that plan runs like any other. Only convergent operations are applied again; the others are listed as left out.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from longshore.orchestration.errors import LongshoreError, UsageError
from longshore.orchestration.language import secrets, templates
from longshore.orchestration.language.params import Param
from longshore.orchestration.operations import Kind, Operation, Waits
from longshore.orchestration.operations.base import service_of
from longshore.orchestration.plans.compiled import CompiledPlan, CompiledStep, StepId
from longshore.orchestration.plans.labels import REPLAY_LABEL
from longshore.orchestration.plans.model import Plan
from longshore.orchestration.plans.steps import INSIDE
from longshore.orchestration.settings import MAX_STEPS
from longshore.orchestration.states import STEP_GOOD, StepState, UndoState
from longshore.orchestration.store.keys import Field

if TYPE_CHECKING:
    from longshore.orchestration.store.run_store import Store

#: States in which a step may have had all of its effect, or a part of it.
_IN_DOUBT = frozenset({StepState.UNKNOWN, StepState.FAILED})


@dataclass(frozen=True)
class LeftOut:
    """An effect that cannot be applied again, and why."""

    run_id: str
    step: str
    why: str

    def __str__(self) -> str:
        return f"run {self.run_id} step {self.step}: {self.why}"


@dataclass(frozen=True)
class _Effect:
    """The recorded effect of one step or unit."""

    run_id: str
    step: str
    operation: Operation
    params: dict[str, Any]
    files: Mapping[str, str]
    host: str
    ended: int
    timeout: float | None = None
    #: The container that the step ran in.
    inside: str = ""
    #: The word that identifies marks of secrets in `params`.
    word: str = ""


@dataclass
class Replay:
    """The plan of a replay, its parameters, and the effects that it leaves out.

    The caller calls `close` once the plan was started, which deletes the temporary files.
    """

    plan: Plan
    params: dict[str, Any] = field(default_factory=dict)
    left_out: list[LeftOut] = field(default_factory=list)
    #: By step of the plan, the run and step of origin.
    sources: dict[str, str] = field(default_factory=dict)
    _folder: TemporaryDirectory[str] | None = None

    def close(self) -> None:
        if self._folder is not None:
            self._folder.cleanup()


def collect(store: Store, *, host: str = "", service: str = "", since: int = 0) -> Replay:
    """Collect the effects to apply again, of runs created at or after `since` (ms of Redis's clock).

    Raises UsageError unless exactly one of `host` and `service` is given, and for more steps than a plan may have.
    """
    if bool(host) == bool(service):
        why = "both a host and a service are given" if host else "neither a host nor a service is given"
        raise UsageError(f"replay: {why}", remedy="give one of --host NAME and --service NAME")
    effects: list[_Effect] = []
    left_out: list[LeftOut] = []
    for run_id in store.created_since(since):
        for found in _of_run(store, run_id, host, service):
            if isinstance(found, LeftOut):
                left_out.append(found)
            else:
                effects.append(found)
    effects.sort(key=lambda effect: effect.ended)
    if len(effects) > MAX_STEPS:
        raise UsageError(
            f"replay: {len(effects)} steps exceed the {MAX_STEPS} that a plan may have",
            remedy="limit the replay to later runs: --since",
        )
    return _as_plan(effects, left_out, host, service)


def _of_run(store: Store, run_id: str, host: str, service: str) -> Iterator[_Effect | LeftOut]:
    try:
        body = store.body(run_id)
        if body is None:
            return
        plan = CompiledPlan(Plan.model_validate(body["plan"]), lenient=True)
    except (ValidationError, LongshoreError) as error:
        yield LeftOut(run_id, "*", f"the plan of the run cannot be read: {error}")
        return
    _, fields = store.everything(run_id)
    for step in plan.steps:
        # The effect of a replayed step is counted with its origin, as long as that run is recorded.
        origin = step.step.description.split() if REPLAY_LABEL in plan.plan.labels else []
        if len(origin) == 4 and store.body(origin[1]) is not None:
            continue
        units = int(fields.get(f"{Field.UNITS}:{step.index}", 0))
        ids: list[StepId] = [f"{step.index}.{n}" for n in range(units)] if units else [step.index]
        for step_id in ids:
            yield from _of_step(run_id, plan, step, step_id, fields, body["files"], host, service)


def _of_step(
    run_id: str,
    plan: CompiledPlan,
    step: CompiledStep,
    step_id: StepId,
    fields: Mapping[str, str],
    files: Mapping[str, str],
    host: str,
    service: str,
) -> Iterator[_Effect | LeftOut]:
    outcome = json.loads(fields.get(f"{Field.OUTCOME}:{step_id}") or "{}")
    # The outcome of a step that a person has resolved, or whose worker was lost, names no host.
    hosts = (outcome.get("host"), *(fields.get(f"{name}:{step_id}") for name in (Field.HOST, Field.DONE_AT)))
    there = next((known for known in hosts if known), "")
    if (host and there != host) or (service and service_of(step.operation, there) != service):
        return
    status = StepState(fields.get(f"{Field.STATUS}:{step_id}") or "pending")
    undo, name = fields.get(f"u{Field.STATUS}:{step_id}"), plan.name_of(step_id)
    changes = not step.read_only and step.operation.effect and step.waits is not Waits.PERSON
    if not changes or undo == UndoState.UNDONE or status not in STEP_GOOD | _IN_DOUBT:
        return
    if status in _IN_DOUBT:
        if not fields.get(f"{Field.NO_EFFECT}:{step_id}"):
            yield LeftOut(run_id, name, f"the step is {status}: its effect is not known")
        return
    if undo:
        yield LeftOut(run_id, name, f"the undo of the step is {undo}")
        return
    if not _converges(step.operation, step.step.with_):
        # An unchanged step had no effect that could be lost.
        if status is StepState.CHANGED and step.waits is not Waits.RUN:
            yield LeftOut(run_id, name, f"{step.operation.name} is not convergent: it acts each time")
        return
    rendered = fields.get(f"{Field.RENDERED}:{step_id}")
    params = json.loads(rendered) if rendered else dict(step.step.with_)
    word = params.pop(secrets.WORD, "")
    inside = params.pop(INSIDE, step.inside)
    if not rendered and templates.has_template(step.operation.templated(params)):
        yield LeftOut(run_id, name, f"its parameters are not known: {_why_unknown(fields, step_id)}")
        return
    ended = int(fields.get(f"{Field.ENDED}:{step_id}") or 0)
    target = fields.get(f"{Field.HOST}:{step_id}") or (there if host else "")
    yield _Effect(run_id, name, step.operation, params, files, target, ended, step.step.timeout, inside, word)


def _why_unknown(fields: Mapping[str, str], step_id: StepId) -> str:
    """Why the record has no rendered parameters of a step that has them as templates."""
    # Only a resolution gives a reason to a step that is done.
    if fields.get(f"{Field.DECISION}:{step_id}") or fields.get(f"{Field.REASON}:{step_id}"):
        return "a person has resolved the step as done"
    # Each attempt journals the parameters before it acts.
    return "Redis has lost them"


def _converges(operation: Operation, params: dict[str, Any]) -> bool:
    """Report whether a second call would change nothing while the effect stands."""
    if operation.kind is Kind.CONVERGES:
        return True
    own = operation.function is not None or operation.queue == "command"
    return own and operation.repeatable(params)


def _as_plan(effects: list[_Effect], left_out: list[LeftOut], host: str, service: str) -> Replay:
    shown = re.sub(r"[^A-Za-z0-9._-]", "-", host or service)[:50]
    plan = Plan(f"replay-{shown}", on_failure="keep", sequential=True, labels={REPLAY_LABEL: host or service})
    replay = Replay(plan, left_out=left_out)
    for number, effect in enumerate(effects):
        with_ = dict(effect.params)
        if isinstance(source := with_.get("source"), str) and source in effect.files:
            with_["source"] = _carried(replay, number, effect.files[source])
        literal = effect.operation.literal(with_)
        given = {
            key: value if key in literal else _as_it_is(replay, number, key, value, effect.word)
            for key, value in with_.items()
        }
        step = plan.step(f"s{number:05}", effect.operation.name, **given)
        step.describe(f"run {effect.run_id} step {effect.step}")
        if effect.inside:
            step.inside(effect.inside)
        if effect.timeout is not None:
            step.timeout(effect.timeout)
        if effect.host:
            step.target(effect.host)
        replay.sources[step.name] = f"run {effect.run_id} step {effect.step}"
    return replay


def _as_it_is(replay: Replay, number: int, key: str, value: Any, word: str) -> Any:
    """A rendered value as a value of the new plan: braces in it stay literal, and marks become secret references."""
    if word and secrets.marked(value, word):
        if isinstance(value, Mapping):
            return {
                name: _as_it_is(replay, number, f"{key}_{n}", one, word) for n, (name, one) in enumerate(value.items())
            }
        if isinstance(value, list):
            return [_as_it_is(replay, number, f"{key}_{n}", one, word) for n, one in enumerate(value)]
        pieces = secrets.pieces(value, word)
        return "".join(
            f"{{{{ secret({piece!r}) }}}}" if mark else str(_as_it_is(replay, number, f"{key}_{n}", piece, ""))
            for n, (mark, piece) in enumerate(pieces)
        )
    if not templates.has_template(value):
        return value
    name = f"v{number}_{key}"
    replay.plan.params[name] = Param.model_validate(type(value))
    replay.params[name] = value
    return f"{{{{ params.{name} }}}}"


def _carried(replay: Replay, number: int, content: str) -> str:
    """Write a carried file into the folder of the new plan, and return its name."""
    if replay._folder is None:
        replay._folder = TemporaryDirectory(prefix="longshore-replay-")
        replay.plan._base_dir = replay._folder.name
    name = f"file-{number}"
    (Path(replay._folder.name) / name).write_bytes(base64.b64decode(content))
    return name

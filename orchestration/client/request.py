"""The request of a run: its plan, parameters, files and sub-plans, as stored before anything else."""

from __future__ import annotations

import base64
import secrets
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from longshore.orchestration.errors import PlanError, Problem
from longshore.orchestration.language import templates
from longshore.orchestration.language.params import resolve
from longshore.orchestration.messaging import trace_context
from longshore.orchestration.operations import known
from longshore.orchestration.plans import subplans
from longshore.orchestration.plans.checked import CheckedPlan, checked
from longshore.orchestration.plans.labels import RECONSTRUCTED_LABEL
from longshore.orchestration.plans.model import Plan, digest_of
from longshore.orchestration.settings import MAX_FILE_BYTES
from longshore.orchestration.store.admission import JOBS
from longshore.orchestration.store.records import SCHEMA_VERSION

#: Characters of a rendered concurrency key.
_LONGEST_KEY = 256
#: The prefix of the operations of jobs, and the operation by which a plan begins a job rather than only finishes one.
_JOB, _BEGINS = "job.", "job.worker.execute"


def request_body(
    plan: Plan, given: Mapping[str, Any], who: str, origin: str = "", *, valid: CheckedPlan | None = None
) -> dict[str, Any]:
    """The request as stored: the normalised plan, its parameters, and the files and plans that it names.

    `valid`: the plan, where the caller has checked it. Raises PlanError and ParamsError.
    """
    valid = valid or checked(plan)
    params = resolve(plan.params, given)
    files = _local_files(plan, params) | subplans.pinned(plan, _local_files)
    body: dict[str, Any] = {
        "v": SCHEMA_VERSION,
        "plan": valid.data,
        "params": params,
        "files": files,
        "digest": digest_of(valid.canonical, params, files),
        "actor": who,
        "origin": origin,
        # Tells two runs of one id apart, where the first was deleted.
        "instance_id": secrets.token_hex(8),
    }
    trace = {"trace": trace_context.current_traceparent()} if "opentelemetry" in sys.modules else {}
    return body | shared(plan, params) | trace


def shared(plan: Plan, params: dict[str, Any]) -> dict[str, Any]:
    """The part of the request that admission reads: concurrency key, locks and group."""
    locks = sorted(set(_projects(plan, params)))
    begins = any(step.op == _BEGINS for step in plan.steps.values()) and RECONSTRUCTED_LABEL not in plan.labels
    group = {"group": JOBS} if begins else {}
    return _concurrency(plan, params) | ({"locks": locks} if locks else {}) | group


def _projects(plan: Plan, params: dict[str, Any]) -> Iterator[str]:
    """The locks of the run, as `host/project`: what its steps change on hosts that the plan names.

    Where only the results determine host or project, the step itself takes the lock.
    """
    for step in plan.steps.values():
        target, project = step.target or plan.target, step.with_.get("project")
        operation = known(step.op)
        if step.op.startswith(_JOB) and target[:1] != "_":
            stacks = [*step.with_.get("stacks", ()), *step.with_.get("beside", ())]
            yield from (f"{target}/{stack}" for stack in stacks)
            yield from (f"{target}/container {name}" for name in step.with_.get("containers", ()))
            continue
        if operation is None or operation.queue != "compose" or operation.is_read_only(step.with_):
            continue
        try:
            named = [str(templates.render(value, {"params": params})) for value in (target, project or "")]
        except templates.TemplateProblem:
            continue  # depends on results: locked by its step
        if named[0][:1] != "_" and named[1]:
            yield "/".join(named)


def _concurrency(plan: Plan, params: dict[str, Any]) -> dict[str, Any]:
    """The concurrency limit of the run, with its key rendered. Raises PlanError for an invalid key."""
    if plan.concurrency is None:
        return {}
    try:
        key = str(templates.render(plan.concurrency.key, {"params": params}))
    except templates.TemplateProblem as error:
        raise PlanError([Problem(f"concurrency: {error}", path=("concurrency", "key"))]) from None
    if not 0 < len(key) <= _LONGEST_KEY:
        why = f"concurrency: the key has {len(key)} characters; 1 to {_LONGEST_KEY} are allowed"
        raise PlanError([Problem(why, path=("concurrency", "key"))])
    return {"concurrency": plan.concurrency.model_dump() | {"key": key}}


#: The operations whose `source` is a file beside the plan.
_CARRY = frozenset({"file.deploy.execute", "file.upload", "file.changed.get"})


def _local_files(plan: Plan, params: dict[str, Any]) -> dict[str, str]:
    """The local files that steps name as `source`, in base64, by the path written in the plan. Raises PlanError."""
    found: dict[str, str] = {}
    for name, step in plan.steps.items():
        source = step.with_.get("source")
        if step.op not in _CARRY or not isinstance(source, str):
            continue
        path = ("steps", name, "with", "source")
        try:
            rendered = str(templates.render(source, {"params": params}))
        except templates.TemplateProblem as error:
            raise PlanError([Problem(f"source may use only params: {error}", step=name, path=path)]) from None
        try:
            data = (Path(plan._base_dir) / rendered).read_bytes()
        except OSError as error:
            raise PlanError([Problem(f"source {rendered}: {error.strerror}", step=name, path=path)]) from None
        if len(data) > MAX_FILE_BYTES:
            raise PlanError(
                [
                    Problem(
                        f"source {rendered} has {len(data)} bytes; a plan carries at most {MAX_FILE_BYTES}",
                        step=name,
                    )
                ]
            )
        found[rendered] = base64.b64encode(data).decode("ascii")
    return found

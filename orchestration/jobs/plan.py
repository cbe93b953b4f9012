"""The plan of a job, used alike to show it, to dry-run it and to run it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from typing import Any, TypedDict, cast

from longshore.orchestration.errors import UsageError
from longshore.orchestration.jobs.labels import Job
from longshore.orchestration.language.durations import parse_duration
from longshore.orchestration.plans.handles import StepHandle
from longshore.orchestration.plans.labels import JOB_LABEL, RECONSTRUCTED_LABEL
from longshore.orchestration.plans.model import Concurrency, Plan

#: Seconds added to the time limits of the steps `work` and `healthy`, for engine calls and output.
_MARGIN = 120.0


class JobOptions(TypedDict, total=False):
    """Options of one start, which override those of the job. Times in seconds, or as text ("90s").

    `keep_stopped` does not restart the stack; `keep_failed_worker` keeps the container of a failed worker.
    """

    timeout: float | str | None
    stop_timeout: float | str | None
    start_timeout: float | str | None
    keep_stopped: bool
    keep_failed_worker: bool


def _with_times(job: Job, options: JobOptions) -> Job:
    """The job with the times of the options. Raises UsageError for an invalid one."""
    given: dict[str, Any] = {}
    for name in ("timeout", "stop_timeout", "start_timeout"):
        value = options.get(name)
        if value is None:
            continue
        try:
            seconds = parse_duration(value)
        except ValueError as error:
            raise UsageError(f"{name}: {error}") from None
        if seconds <= 0:
            raise UsageError(f"{name} must be positive, not {value!r}")
        given[name] = seconds
    return replace(job, **given)


def job_plan(
    job: Job, options: JobOptions | None = None, *, reconstructed: bool = False, begin: bool = True, host: str = ""
) -> Plan:
    """The plan of a job.

    `reconstructed`: the job container exists, and its image is not pulled. `begin`: whether that worker is started,
    and the stack stopped for it, if it never was. `host` overrides the host of the job.

    The plan creates the worker before it stops anything, and records the running containers in its labels, so that the
    engine keeps the list of what to restart.
    """
    options = options or {}
    job = _with_times(job, options)
    plan = _plan(job, host, {RECONSTRUCTED_LABEL: "true"} if reconstructed else {}, waits=reconstructed)
    around = _around(job)
    # Every variant has the same steps in the same order, because run records refer to steps by index.
    image = plan.step("image", "docker.pull.execute", image=_literal(job.image), policy=job.pull).undo("none")
    image.describe("Pull the image before anything is stopped")
    if reconstructed:
        image.when("false", reason="the job container exists")
    create = {"make": False} if reconstructed else {}
    worker = plan.step("worker", "job.worker.execute", **around, **_worker(job, options), **create).undo("none")
    worker.after(image)
    stop = plan.step("stop", "job.stop.execute", **around, timeout=job.stop_timeout).after(worker).undo("none")
    late: dict[str, Any] = {} if begin else {"begin": False}
    if not begin:
        stop.when("false", reason="the worker is not started")
    late |= {"timeout": job.timeout, "grace": job.grace}
    late |= {"env": _templates(job)} if job.templated else {}
    work = plan.step("work", "job.work.execute", **around, stop_timeout=job.stop_timeout, **late)
    work.after(stop).undo("none").timeout(job.timeout + job.grace + _MARGIN)
    last = work
    if not options.get("keep_stopped"):
        work.irreversible()
        last = _start(plan, job, around).after(work)
        last = _healthy(plan, job, around).after(last)
    _remove(plan, around, options).after(last)
    return plan


def restart_plan(job: Job, options: JobOptions, run_id: str, host: str = "") -> Plan:
    """The plan that restarts the stack after a run failed to: the steps of a job after the work."""
    plan, around = _plan(job, host, {}, waits=True), _around(job) | {"run": run_id}
    start = _start(plan, job, around)
    healthy = _healthy(plan, job, around).after(start)
    _remove(plan, around, options).after(healthy)
    return plan


def _plan(job: Job, host: str, labels: dict[str, str], *, waits: bool) -> Plan:
    """The plan without steps. `waits`: its run queues, whatever the overlap policy of the job."""
    return Plan(
        f"job.{job.name}"[:64],
        labels={JOB_LABEL: job.name} | labels,
        target=host or job.host or "_any",
        concurrency=Concurrency(
            key=_literal(f"job {job.host}/{job.name}"), limit=1, on_limit="queue" if waits else job.overlap
        ),
    )


def _around(job: Job) -> dict[str, Any]:
    stacks = () if job.scope == "containers" else job.stacks
    beside = sorted({*job.stacks, *job.projects} - set(stacks))
    common = {"job": job.name, "stacks": _literals(stacks), "containers": _literals(job.standalone)}
    return common | ({"beside": _literals(beside)} if beside else {})


def _literals(names: Iterable[str]) -> list[str]:
    return [_literal(name) for name in names]


def _start(plan: Plan, job: Job, around: dict[str, Any]) -> StepHandle:
    step = plan.step(
        "start",
        "job.start.execute",
        **around,
        timeout=job.start_timeout,
        grace=job.grace,
        stop_timeout=job.stop_timeout,
    )
    return step.always().undo("none")


def _healthy(plan: Plan, job: Job, around: dict[str, Any]) -> StepHandle:
    step = plan.step("healthy", "job.healthy.get", **around, timeout=job.start_timeout)
    return step.always().timeout(job.start_timeout + _MARGIN)


def _remove(plan: Plan, around: dict[str, Any], options: JobOptions) -> StepHandle:
    step = plan.step("remove", "job.remove.execute", **around, keep_failed=options.get("keep_failed_worker", False))
    return step.always().undo("none")


def _templates(job: Job) -> dict[str, str]:
    """The environment variables from a file, which may refer to secrets."""
    return {name: value for name, value in job.env.items() if name in job.templated}


def _worker(job: Job, options: JobOptions) -> dict[str, Any]:
    env = {name: value if name in job.templated else _literal(value) for name, value in job.env.items()}
    return {
        "image": _literal(job.image),
        "command": [_literal(word) for word in job.command],
        "env": env,
        "mounts": [asdict(mount) | {"path": _literal(mount.path)} for mount in job.mounts],
        "plan_record": plan_record(job, options),
    } | ({"no_way_back": job.no_way_back} if job.no_way_back != "refuse" else {})


#: Fields that restore the run if Redis loses it: all but those that only the creation of the worker needs.
_KEPT: tuple[str, ...] = (
    *("name", "image", "stacks", "projects", "targets", "loose", "scope", "host", "overlap"),
    *("stop_timeout", "start_timeout", "timeout", "grace"),
)
#: Options of the start that are stored beside these fields.
_FLAGS = ("keep_stopped", "keep_failed_worker")


def plan_record(job: Job, options: JobOptions) -> str:
    """The job and its options as text, for a label of the job container."""
    kept = {name: getattr(job, name) for name in _KEPT} | {"env": _templates(job)}
    kept |= {name: options.get(name, False) for name in _FLAGS}
    return _literal(json.dumps(kept))


def plan_from_record(text: str) -> tuple[Job, JobOptions]:
    """The job and options of `plan_record`, with defaults for missing fields. Raises ValueError for other text."""
    kept: Mapping[str, Any] = json.loads(text)
    found: dict[str, Any] = {
        name: tuple(kept[name]) if isinstance(kept[name], list) else kept[name] for name in _KEPT if name in kept
    }
    if not {"name", "image"} <= found.keys():
        raise ValueError("the record has no job name or no image")
    env = dict(kept.get("env", {}))
    options = cast("JobOptions", {name: True for name in _FLAGS if kept.get(name)})
    return Job(**found, env=env, templated=frozenset(env)), options


def _literal(text: str) -> str:
    """Escape text so that templates in it are not rendered: labels are data."""
    if not any(mark in text for mark in ("{{", "{%", "{#")):
        return text
    return "{{ " + json.dumps(text, ensure_ascii=False) + " }}"

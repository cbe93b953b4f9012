"""A job as the plan that it is run by: what is shown, rehearsed and done is the same."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from longshore.orchestration.errors import UsageError
from longshore.orchestration.jobs.labels import Job
from longshore.orchestration.language.durations import parse_duration
from longshore.orchestration.plans.labels import JOB_LABEL, RECONSTRUCTED_LABEL
from longshore.orchestration.plans.model import Concurrency, Plan, StepHandle

#: Seconds of an attempt at the work beyond the work itself: for its end, its output, and the engine.
_AROUND = 120.0


@dataclass(frozen=True)
class JobOptions:
    """What one start of a job may have otherwise than the job says. Times in seconds, or with their unit."""

    timeout: float | str | None = None
    stop_timeout: float | str | None = None
    start_timeout: float | str | None = None
    #: The stack stays as the worker leaves it.
    keep_stopped: bool = False
    #: A worker that failed is not removed.
    keep_failed_worker: bool = False

    def of(self, job: Job) -> Job:
        """The job with these times. UsageError for one that is none."""
        given: dict[str, Any] = {}
        for name in ("timeout", "stop_timeout", "start_timeout"):
            said = getattr(self, name)
            if said is None:
                continue
            try:
                seconds = parse_duration(said)
            except ValueError as error:
                raise UsageError(f"{name}: {error}") from None
            if seconds <= 0:
                raise UsageError(f"{name}: {said!r} is no time to wait")
            given[name] = seconds
        return replace(job, **given)


def job_plan(
    job: Job, choices: JobOptions | None = None, *, reconstructed: bool = False, begin: bool = True, host: str = ""
) -> Plan:
    """The plan of a job.

    `reconstructed`: its worker is there already, and the image is not asked for. `begin`: whether that worker is
    started, if it never was, so that the stack has to stand still for it. `host`: where, if not where the job says.

    The worker is made before anything is stopped, and carries what ran: from then on the engine itself remembers
    what has to be started again.
    """
    chosen = choices or JobOptions()
    job = chosen.of(job)
    plan = _plan(job, host, {RECONSTRUCTED_LABEL: "true"} if reconstructed else {}, waits=reconstructed)
    around = _around(job)
    # All of its steps are there in any case: whoever has the plan that it had before reads its record by their order.
    image = plan.step("image", "docker.pull.execute", image=_literal(job.image), policy=job.pull).undo("none")
    image.describe("The image is there before anything is stopped")
    if reconstructed:
        image.when("false", reason="its worker is there")
    made = {"make": False} if reconstructed else {}
    worker = plan.step("worker", "job.worker.execute", **around, **_worker(job, chosen), **made).undo("none")
    worker.after(image)
    stop = plan.step("stop", "job.stop.execute", **around, timeout=job.stop_timeout).after(worker).undo("none")
    late: dict[str, Any] = {} if begin else {"begin": False}
    if not begin:
        stop.when("false", reason="its worker is not begun any more")
    late |= {"timeout": job.timeout, "grace": job.grace}
    late |= {"env": _templates(job)} if job.templated else {}
    work = plan.step("work", "job.work.execute", **around, stop_timeout=job.stop_timeout, **late)
    work.after(stop).undo("none").timeout(job.timeout + job.grace + _AROUND)
    last = work
    if not chosen.keep_stopped:
        work.irreversible()
        last = _start(plan, job, around).after(work)
        last = _healthy(plan, job, around).after(last)
    _remove(plan, around, chosen).after(last)
    return plan


def restart_plan(job: Job, choices: JobOptions, run_id: str, host: str = "") -> Plan:
    """Once more for a stack that a run could not bring up: what of the job comes after the work."""
    plan, around = _plan(job, host, {}, waits=True), _around(job) | {"run": run_id}
    start = _start(plan, job, around)
    healthy = _healthy(plan, job, around).after(start)
    _remove(plan, around, choices).after(healthy)
    return plan


def _plan(job: Job, host: str, labels: dict[str, str], *, waits: bool) -> Plan:
    """Without its steps. `waits`: it has its turn whatever the job says of overlaps."""
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
    said = {"job": job.name, "stacks": _literals(stacks), "containers": _literals(job.alone)}
    return said | ({"beside": _literals(beside)} if beside else {})


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
    return step.always().timeout(job.start_timeout + _AROUND)


def _remove(plan: Plan, around: dict[str, Any], choices: JobOptions) -> StepHandle:
    step = plan.step("remove", "job.remove.execute", **around, keep_failed=choices.keep_failed_worker)
    return step.always().undo("none")


def _templates(job: Job) -> dict[str, str]:
    """Of its environment, what a file has given: there may be secrets in it."""
    return {name: value for name, value in job.env.items() if name in job.templated}


def _worker(job: Job, choices: JobOptions) -> dict[str, Any]:
    env = {name: value if name in job.templated else _literal(value) for name, value in job.env.items()}
    return {
        "image": _literal(job.image),
        "command": [_literal(word) for word in job.command],
        "env": env,
        "mounts": [asdict(mount) | {"path": _literal(mount.path)} for mount in job.mounts],
        "plan_record": plan_record(job, choices),
    }


#: What a run is made again by, should Redis lose it: all but what the worker, which is there, was made of.
_KEPT: tuple[str, ...] = (
    *("name", "image", "stacks", "projects", "targets", "loose", "scope", "host", "overlap"),
    *("stop_timeout", "start_timeout", "timeout", "grace"),
)


def plan_record(job: Job, choices: JobOptions) -> str:
    """What the worker's label keeps of a job."""
    kept = {name: getattr(job, name) for name in _KEPT} | {"env": _templates(job)}
    kept |= {"keep_stopped": choices.keep_stopped, "keep_failed_worker": choices.keep_failed_worker}
    return _literal(json.dumps(kept))


def plan_from_record(text: str) -> tuple[Job, JobOptions]:
    """The other way round; what an older version has not kept has its default. ValueError for what is none."""
    kept: Mapping[str, Any] = json.loads(text)
    found: dict[str, Any] = {
        name: tuple(kept[name]) if isinstance(kept[name], list) else kept[name] for name in _KEPT if name in kept
    }
    if not {"name", "image"} <= found.keys():
        raise ValueError("it names no job, or no image")
    env = dict(kept.get("env", {}))
    return Job(**found, env=env, templated=frozenset(env)), JobOptions(
        keep_stopped=bool(kept.get("keep_stopped")), keep_failed_worker=bool(kept.get("keep_failed_worker"))
    )


def _literal(text: str) -> str:
    """Text that stands for itself, whatever it holds: labels are data, and no templates."""
    if not any(mark in text for mark in ("{{", "{%", "{#")):
        return text
    return "{{ " + json.dumps(text, ensure_ascii=False) + " }}"

"""`longshore job …`: what is described on the hosts, shown and run."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from longshore.orchestration.cli.common import client, command, current, leave, say, say_lines, show_table
from longshore.orchestration.cli.run import begin_job, show_dry_run
from longshore.orchestration.errors import UsageError

if TYPE_CHECKING:
    from longshore.orchestration.jobs.discovery import JobListing
    from longshore.orchestration.jobs.labels import Finding, Job

_FILE = click.option("-f", "--file", "files", multiple=True, metavar="FILE", help="Jobs that a file describes, too.")
_STRICT = click.option("--strict", is_flag=True, help="Whatever is wrong with a description is an error, exit code 2.")
_HOST = click.option("--host", metavar="HOST", help="The host, where a job is described on several.")


@click.group("job")
def job_group() -> None:
    """Stop a stack, run a worker on its volumes, always start the stack again."""


@command(job_group, "ls")
@_FILE
@_STRICT
def ls(files: tuple[str, ...], strict: bool) -> None:
    """The jobs that labels and files describe, and when they run next."""
    from longshore.orchestration.jobs.jobs import Jobs  # noqa: PLC0415 - see cli.common

    made = client()
    known, now = Jobs(made).list(files=files), made.store.now()
    options = current()
    if options.json:
        options.show({"jobs": [_as_data(job, now) for job in known.jobs], "findings": _findings(known.findings)})
    else:
        _table(known, now)
    _tell(known.findings, strict=strict)


@command(job_group, "show")
@click.argument("name")
@_HOST
@_FILE
@_STRICT
def show(name: str, host: str | None, files: tuple[str, ...], strict: bool) -> None:
    """A job, and the plan that it is run by."""
    from longshore.orchestration.jobs import job_plan  # noqa: PLC0415
    from longshore.orchestration.jobs.jobs import Jobs  # noqa: PLC0415 - see cli.common
    from longshore.orchestration.plans.compiled import CompiledPlan  # noqa: PLC0415 - see cli.common
    from longshore.orchestration.plans.explain import explain  # noqa: PLC0415

    made, options = client(), current()
    known = Jobs(made).list(files=files)
    wrong = known.findings_of(name)
    try:
        job, now = known.job(name, host), made.store.now()
    except UsageError:
        _tell(wrong, strict=strict)
        raise
    plan = job_plan(job)
    if options.json:
        options.show({"job": _as_data(job, now), "plan": plan.to_dict(), "findings": _findings(wrong)})
    else:
        for key, value in _as_data(job, now).items():
            if value not in ("", None, [], {}):
                say(f"{key + ':':15} {_shown(value)}")
        say()
        say_lines(explain(CompiledPlan(plan)))
    _tell(wrong, strict=strict)


@command(job_group, "run")
@click.argument("name")
@click.option("--timeout", metavar="TIME", help="Of the work, e.g. 90s or 2h.")
@click.option("--stop-timeout", metavar="TIME", help="Of each container's stop, until it is killed.")
@click.option("--start-timeout", metavar="TIME", help="Until what was stopped is well again.")
@click.option("--keep-stopped", is_flag=True, help="Leave the stack stopped.")
@click.option("--keep-failed-worker", is_flag=True, help="Leave the worker container, if it fails.")
@click.option("--run-id", metavar="ID", help="The same id attaches to the run that is there.")
@click.option("--detach", is_flag=True, help="Print the run's id and leave it running.")
@_HOST
@_FILE
def run(name: str, host: str | None, files: tuple[str, ...], run_id: str | None, detach: bool, **choices: Any) -> None:
    """Run a job and watch it: its worker's output, then what became of it.

    Exit codes: 0 the work succeeded and the stack is up; 1 it did not, and the stack is up; 2 there is no such job;
    3 the stack is not fully up, whatever became of the work.
    """
    from longshore.orchestration.jobs.jobs import Jobs  # noqa: PLC0415 - see cli.common
    from longshore.orchestration.jobs.plan import JobOptions, job_plan  # noqa: PLC0415 - see cli.common

    made = client()
    known = Jobs(made).list(files=files)
    plan = job_plan(known.job(name, host), JobOptions(**choices))
    _tell(known.findings_of(name), strict=False)
    if current().dry_run:
        return leave(show_dry_run(plan, {}))
    return begin_job(made, plan, run_id, detach=detach)


def _as_data(job: Job, now: int) -> dict[str, Any]:
    from longshore.orchestration.jobs.schedule import upcoming  # noqa: PLC0415 - see cli.common

    following = upcoming(job, now)
    hidden = {"templated", "loose", "projects"}
    said = {key: value for key, value in dataclasses.asdict(job).items() if key not in hidden}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in said.items()} | {
        "next": following.isoformat() if following else None
    }


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}={said}" for key, said in value.items())
    if isinstance(value, list):
        mounts = [
            f"{one['volume']} at {one['path']} ({one['mode']})" if isinstance(one, dict) else one for one in value
        ]
        return ", ".join(mounts)
    return f"{value:g} s" if isinstance(value, float) else str(value)


def _table(known: JobListing, now: int) -> None:
    if not known.jobs:
        say("no job is described")
        return
    rows = [("NAME", "HOST", "STACKS", "IMAGE", "SCHEDULE", "OVERLAP", "NEXT")]
    for job in known.jobs:
        said = _as_data(job, now)
        schedule = f"{job.schedule} {job.timezone}" if job.schedule else "-"
        where = ", ".join([*job.stacks, *job.standalone]) or "-"
        rows.append((job.name, job.host, where, job.image, schedule, job.overlap, said["next"] or "-"))
    show_table(rows)


def _findings(findings: Sequence[Finding]) -> list[dict[str, Any]]:
    return [dataclasses.asdict(finding) for finding in findings]


def _tell(findings: Sequence[Finding], *, strict: bool) -> None:
    for finding in findings:
        word = "error" if strict or not finding.warning else "warning"
        say(f"{word}: {finding}", err=True)
    if strict and findings:
        leave(2)


__all__ = ["job_group"]

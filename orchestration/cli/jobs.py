"""`longshore job …`: jobs that labels and files describe."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, cast

import click

from longshore.orchestration.cli.common import command, current_options, exit_with, print_line, print_lines, print_table
from longshore.orchestration.cli.inputs import client
from longshore.orchestration.cli.run import show_dry_run, start_job
from longshore.orchestration.errors import UsageError
from longshore.orchestration.jobs.discovery import JobListing
from longshore.orchestration.jobs.jobs import Jobs
from longshore.orchestration.jobs.labels import Finding, Job
from longshore.orchestration.jobs.plan import JobOptions, job_plan
from longshore.orchestration.jobs.schedule import upcoming
from longshore.orchestration.plans.compiled import CompiledPlan
from longshore.orchestration.plans.explain import explain

_FILE = click.option(
    "-f",
    "--file",
    "files",
    multiple=True,
    metavar="FILE",
    help="Also read jobs from FILE, besides LONGSHORE_JOBS; repeatable.",
)
_STRICT = click.option("--strict", is_flag=True, help="Exit with 2 if a description has a warning or an error.")
_HOST = click.option("--host", metavar="HOST", help="Host of the job; required if several hosts describe the job.")


@click.group("job")
def job_group() -> None:
    """List, show and run jobs.

    A job, such as a backup, stops a stack, runs a job container on the volumes of the stack, and then starts the stack
    again, even if the job container fails.

    """


@command(job_group, "ls")
@_FILE
@_STRICT
def ls(files: tuple[str, ...], strict: bool) -> None:
    """List the jobs that labels and files describe, with the next start.

    NEXT ignores a pause of the schedule, an open breaker of the job, and whether the workers read the file of the job.
    """
    connected = client()
    listing, now = Jobs(connected).list(files=files), connected.store.now()
    options = current_options()
    if options.json:
        options.show(
            {"jobs": [_job_data(job, now) for job in listing.jobs], "findings": _findings_data(listing.findings)}
        )
    else:
        _print_jobs(listing, now)
    _print_findings(listing.findings, strict=strict)


@command(job_group, "show")
@click.argument("name")
@_HOST
@_FILE
@_STRICT
def show(name: str, host: str | None, files: tuple[str, ...], strict: bool) -> None:
    """Print the job NAME and its plan."""
    connected, options = client(), current_options()
    listing = Jobs(connected).list(files=files)
    findings = listing.findings_of(name)
    try:
        job, now = listing.job(name, host), connected.store.now()
    except UsageError:
        _print_findings(findings, strict=strict)
        raise
    plan = job_plan(job)
    if options.json:
        options.show({"job": _job_data(job, now), "plan": plan.to_dict(), "findings": _findings_data(findings)})
    else:
        for key, value in _job_data(job, now).items():
            if value not in ("", None, [], {}):
                print_line(f"{key + ':':15} {_format_value(value)}")
        print_line()
        print_lines(explain(CompiledPlan(plan)))
    _print_findings(findings, strict=strict)


@command(job_group, "run")
@click.argument("name")
@click.option("--timeout", metavar="TIME", help="Time limit of the job container, such as 90s or 2h.")
@click.option("--stop-timeout", metavar="TIME", help="Time for each container to stop before Docker kills it.")
@click.option("--start-timeout", metavar="TIME", help="Time for the containers of the stack to become healthy again.")
@click.option("--keep-stopped", is_flag=True, help="Do not start the stack again.")
@click.option("--keep-failed-worker", is_flag=True, help="Do not remove the job container if it fails.")
@click.option(
    "--run-id",
    metavar="ID",
    help="Id of the run. An existing run with this id, the same job and options is watched, not started again.",
)
@click.option("--detach", is_flag=True, help="Print the id of the run and return at once.")
@_HOST
@_FILE
def run(name: str, host: str | None, files: tuple[str, ...], run_id: str | None, detach: bool, **options: Any) -> None:
    """Run the job NAME, and print the output of its job container.

    If another run of the job is active, the overlap policy of the job decides: the new run waits, is cancelled, or
    cancels the other run.

    Ctrl-C ends the command after two seconds, and the run continues. A second Ctrl-C in this time cancels the run.

    After exit code 3, workers try to start the stack again, up to three times within about half an hour.

    \b
    Exit codes:
      0  the job container succeeded, and the stack is up again
         (with --keep-stopped: down)
      1  the job container failed or did not run, and the stack is up
         (with --keep-stopped: up or down)
      1  Redis does not answer, or has lost the run (the job may continue)
      3  the stack is not fully up, even if the job container succeeded
         (never with --keep-stopped)
    """
    connected = client()
    listing = Jobs(connected).list(files=files)
    plan = job_plan(listing.job(name, host), cast("JobOptions", options))
    _print_findings(listing.findings_of(name), strict=False)
    if current_options().dry_run:
        return exit_with(show_dry_run(plan, {}))
    return start_job(connected, plan, run_id, detach=detach)


def _job_data(job: Job, now: int) -> dict[str, Any]:
    following = upcoming(job, now)
    hidden = {"templated", "loose", "projects"}
    shown = {key: value for key, value in dataclasses.asdict(job).items() if key not in hidden}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in shown.items()} | {
        "next": following.isoformat() if following else None
    }


def _format_value(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}={inner}" for key, inner in value.items())
    if isinstance(value, list):
        mounts = [
            f"{one['volume']} at {one['path']} ({one['mode']})" if isinstance(one, dict) else one for one in value
        ]
        return ", ".join(mounts)
    return f"{value:g} s" if isinstance(value, float) else str(value)


def _print_jobs(listing: JobListing, now: int) -> None:
    if not listing.jobs:
        print_line("no jobs")
        return
    rows = [("NAME", "HOST", "STACKS", "IMAGE", "SCHEDULE", "OVERLAP", "NEXT")]
    for job in listing.jobs:
        data = _job_data(job, now)
        schedule = f"{job.schedule} {job.timezone}" if job.schedule else "-"
        where = ", ".join([*job.stacks, *job.standalone]) or "-"
        rows.append((job.name, job.host, where, job.image, schedule, job.overlap, data["next"] or "-"))
    print_table(rows)


def _findings_data(findings: Sequence[Finding]) -> list[dict[str, Any]]:
    return [dataclasses.asdict(finding) for finding in findings]


def _print_findings(findings: Sequence[Finding], *, strict: bool) -> None:
    for finding in findings:
        word = "error" if strict or not finding.warning else "warning"
        print_line(f"{word}: {finding}", err=True)
    if strict and findings:
        exit_with(2)

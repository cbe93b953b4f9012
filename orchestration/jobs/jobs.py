"""The facade of jobs: list, plan, start and run the jobs of an installation."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TextIO, Unpack

from longshore.orchestration.client.client import Client
from longshore.orchestration.client.run import Run
from longshore.orchestration.errors import (
    ImageMissing,
    JobCancelled,
    JobFailed,
    JobTimeout,
    RunLost,
    StartFailed,
    StopFailed,
    WorkerFailed,
)
from longshore.orchestration.jobs.discovery import JobDiscovery, JobListing, declared_in, job_files
from longshore.orchestration.jobs.plan import JobOptions, job_plan
from longshore.orchestration.plans.model import Plan
from longshore.orchestration.runs.report import Report


def failure(report: Report) -> JobFailed | None:
    """The JobFailed for the outcome of a job; None where the job succeeded."""
    job, code = report.job, report.exit_code
    if job is None or not code:
        return None
    why = report.error.message if report.error else report.summary
    step = report.error.step if report.error else None
    message = f"job {job.name}, run {report.run_id}: {why}"
    if job.restart == "failed":
        down = f"; still stopped: {', '.join(job.down)}" if job.down else ""
        return StartFailed(f"{message}{down}", report=report, exit_code=code)
    by_result: dict[str | None, type[JobFailed]] = {"timed_out": JobTimeout, "cancelled": JobCancelled}
    by_step: dict[str | None, type[JobFailed]] = {"image": ImageMissing, "stop": StopFailed, "work": WorkerFailed}
    kind = by_result.get(job.result) or by_step.get(step, JobFailed)
    return kind(message, report=report, exit_code=code)


#: Seconds between two reads of a run that a worker is to restore.
_POLL = 0.2


class Jobs:
    """Lists jobs, returns their plans, and starts jobs, with or without a wait for the end.

    Labels and files on the hosts describe the jobs.
    """

    def __init__(self, client: Client) -> None:
        self._client = client

    def list(self, *, files: Iterable[str | Path] = ()) -> JobListing:
        """The jobs that labels and files describe now. Queries each host with an engine.

        `files` are read in addition to the files of the setting `jobs`. Raises WaitTimeout if no host answers, and
        ConfigError for an invalid file.
        """
        self._client.ensure_server()
        paths = [*job_files(self._client.settings), *map(Path, files)]
        return JobDiscovery(self._client.store).refresh(declared_in(paths))

    def plan(
        self, name: str, *, host: str | None = None, files: Iterable[str | Path] = (), **options: Unpack[JobOptions]
    ) -> Plan:
        """The plan of a job, for example for `Client.dry_run`. Raises JobNotFound, and as `list` does."""
        return job_plan(self.list(files=files).job(name, host), options)

    def start(
        self,
        name: str,
        *,
        host: str | None = None,
        run_id: str | None = None,
        files: Iterable[str | Path] = (),
        **options: Unpack[JobOptions],
    ) -> Run:
        """Start a job and return its run at once. Raises as `plan` and `Client.start` do."""
        return self._client.start(self.plan(name, host=host, files=files, **options), run_id=run_id)

    def run(
        self,
        name: str,
        *,
        host: str | None = None,
        run_id: str | None = None,
        files: Iterable[str | Path] = (),
        log: Callable[[str], object] | TextIO | None = None,
        check: bool = True,
        **options: Unpack[JobOptions],
    ) -> Report:
        """Run a job to its end: stop the stack, run the job container, start the stack. `report.job` has the outcome.

        `log`, a function or a file, receives each line of the output of the job container. With `check`, raises a
        JobFailed if the job does not succeed: ImageMissing, StopFailed, WorkerFailed, JobTimeout, JobCancelled or
        StartFailed.
        """
        run = self.start(name, host=host, run_id=run_id, files=files, **options)
        write = _lines_to(log) if log is not None and not callable(log) else log
        while True:
            try:
                if write is not None:
                    for stream, line in run.output("work", follow=True):
                        if stream:
                            write(line)
                report = run.wait()
                break
            except RunLost:
                run = self.recover(run.id)
        if check and (error := failure(report)) is not None:
            raise error
        return report

    def recover(self, run_id: str, timeout: float = 60.0) -> Run:
        """Wait until a worker has restored a run that Redis has lost, and return the run.

        The worker reads the labels of the job container. Raises RunLost after `timeout` seconds, for example because
        the run had created no job container.
        """
        until = time.monotonic() + timeout
        while time.monotonic() < until:
            if self._client.store.body(run_id) is not None:
                return self._client.get(run_id)
            time.sleep(_POLL)
        raise RunLost(
            f"run {run_id} is gone: Redis has lost it, and no worker has found its container",
            remedy="check with longshore doctor whether Redis persists its data",
        )


def _lines_to(file: TextIO) -> Callable[[str], object]:
    def write(line: str) -> None:
        file.write(f"{line}\n")
        file.flush()

    return write

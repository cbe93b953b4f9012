"""Suggestions of commands after a run has failed or while it waits: only commands that the run accepts."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from longshore.orchestration import saga
from longshore.orchestration.cli.common import current_options, print_line
from longshore.orchestration.client.run import Run
from longshore.orchestration.operations import Waits
from longshore.orchestration.runs.report import Report
from longshore.orchestration.runs.step_report import ItemReport, StepReport
from longshore.orchestration.states import STEP_BAD, TERMINAL, UNDO_OPEN, RunState, StepState


def print_next(run: Run, report: Report, *, shown: bool = False) -> None:
    """Print the next commands to stderr, unless the output is quiet or JSON. `shown`: all steps are printed already."""
    options = current_options()
    if options.quiet or options.json or not (report.exit_code or report.state not in TERMINAL):
        return
    found = list(next_commands(run, report, shown=shown))
    if not found:
        return
    width = max(len(line) for line, _ in found)
    print_line("next:", err=True)
    for line, purpose in found:
        print_line(f"  {line:<{width}}  {purpose}", err=True)


def next_commands(run: Run, report: Report, *, shown: bool = False) -> Iterator[tuple[str, str]]:
    """The commands that the run accepts in its state, with the purpose of each."""
    if report.state in TERMINAL and not shown:
        yield _runs("show", run), "all steps, with their errors"
    if (failed := _with_output(run, report)) is not None:
        yield _runs("logs", run, failed), "the output of the failed step"
    yield from _decisions(run, report)
    yield from _undo_and_resume(run, report)


def _runs(command: str, run: Run, *arguments: str) -> str:
    return shlex.join(["longshore", "runs", command, run.id, *arguments])


def _parts(step: StepReport) -> Iterator[tuple[str, StepReport | ItemReport]]:
    """The step by its name; of a step that was fanned out, its items."""
    if step.items:
        yield from ((f"{step.name}[{number}]", item) for number, item in enumerate(step.items))
    else:
        yield step.name, step


def _with_output(run: Run, report: Report) -> str | None:
    """The failed step with recorded output, the step of the run's error first."""
    cause = report.error.step if report.error else None
    for step in sorted(report.steps, key=lambda step: step.name != cause):
        for name, part in _parts(step):
            if part.status in STEP_BAD and any(True for _ in run.output(name)):
                return name
    return None


def _decisions(run: Run, report: Report) -> Iterator[tuple[str, str]]:
    """The decisions that steps wait for, and the records of real outcomes."""
    for step in report.steps:
        for name, part in _parts(step):
            if part.status is StepState.WAITING:
                if run.plan.steps[run.plan.index[step.name]].waits is Waits.PERSON:
                    yield _runs("approve", run, name), "approve the step; --reject rejects it"
                elif report.state is RunState.SUSPENDED and run.store.fields(run.id).get("hold") == "unknown":
                    yield _runs("resolve", run, name, "--done"), "if the step had its effect; otherwise --undone"
            elif part.status is StepState.UNKNOWN and report.state in {RunState.FAILED, RunState.PARTIAL}:
                yield _runs("resolve", run, name, "--done"), "if the step had its effect"
            elif report.state is RunState.UNDO_FAILED and part.undo and part.undo.status in UNDO_OPEN:
                yield _runs("resolve", run, name, "--undone"), "after you have removed the effect of the step by hand"


def _undo_and_resume(run: Run, report: Report) -> Iterator[tuple[str, str]]:
    if report.state is RunState.UNDO_FAILED:
        if any(part.undo and part.undo.status in UNDO_OPEN for step in report.steps for _, part in _parts(step)):
            yield _runs("resume", run), "try the failed undos again"
    elif report.state is RunState.SUSPENDED:
        if run.store.fields(run.id).get("hold") != "unknown":
            yield _runs("resume", run), "continue now"
    elif report.state is RunState.CANCELLED:
        yield _runs("resume", run), "begin the run after all"
    elif report.state in {RunState.FAILED, RunState.PARTIAL}:
        records = run.store.step_records(run.id, range(len(run.plan)))
        if again := saga.resumed(run.plan, records).steps:
            yield _runs("resume", run), f"continue with {run.plan.name_of(again[0])}, once the cause is removed"
        if not saga.past_return(run.plan, records) and any(_is_undoable(run, step) for step in report.steps):
            yield _runs("undo", run), "undo the changes of the run"


def _is_undoable(run: Run, step: StepReport) -> bool:
    """Whether the step has changed something that its undo would take back."""
    open_undo = step.undo is None or step.undo.status in UNDO_OPEN
    return step.changed and open_undo and run.plan.steps[run.plan.index[step.name]].has_undo

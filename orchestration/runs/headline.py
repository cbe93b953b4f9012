"""The outcome of a run in one sentence: the failure, the undone steps, and the changes that remain."""

from __future__ import annotations

from collections.abc import Sequence

from longshore.orchestration.runs.report import Report
from longshore.orchestration.states import STEP_BAD, STEP_FINAL, UNDO_OPEN, Cause, RunState, StepState, UndoState

_R = RunState
#: Names in a sentence; the others are counted.
_NAMED = 3


def headline(report: Report, waits_for: Sequence[str] = ()) -> str:
    """One sentence about the state of a run. `waits_for` are the reasons why the run does not continue now."""
    why, undone = _why(report), _undone(report)
    failed_undos = [step.name for step in report.steps if step.undo and step.undo.status in UNDO_OPEN]
    reason = report.error.message if report.error else "; ".join(waits_for)
    match report.state:
        case _R.PENDING:
            if reason.startswith("the run "):
                return _end(reason[0].upper() + reason[1:])
            return _end(f"The run has not begun: {reason}") if reason else "No worker has begun the run yet."
        case _R.SUSPENDED:
            return _end(f"The run is suspended: {reason}")
        case _R.RUNNING | _R.FINISHING:
            return _progress(report, waits_for)
        case _R.ABORTING:
            return f"{why}; no new step starts, and running steps are awaited."
        case _R.UNDOING:
            return f"{why}; completed steps are being undone, {undone} so far."
        case _R.SUCCEEDED:
            return _success(report)
        case _R.UNDONE:
            undone_steps = f"{_steps(undone)} undone, and " if undone else ""
            return f"{why}; {undone_steps}{_remains(report)}."
        case _R.UNDO_FAILED:
            left = _names(report.left_over or failed_undos)
            return f"{why}, and the undo failed: changes of {left} remain."
    return f"{why}; {_remains(report)}."


def _remains(report: Report) -> str:
    if report.left_over:
        return f"changes of {_names(report.left_over)} remain"
    doubts = len(report.in_doubt)
    if doubts:
        return "1 effect is in doubt" if doubts == 1 else f"{doubts} effects are in doubt"
    return "no change remains"


def _why(report: Report) -> str:
    failed = [step.name for step in report.steps if step.status in STEP_BAD]
    if report.cause is Cause.CANCEL:
        return "The run was cancelled"
    if report.cause is Cause.DEADLINE:
        return "The run exceeded its time limit"
    if report.cause is Cause.OPERATOR and not failed:
        return "An operator undid the run"
    first = report.error.step if report.error and report.error.step else None
    names = list(dict.fromkeys([*([first] if first else []), *failed]))
    return f"{'Step' if len(names) == 1 else 'Steps'} {_names(names)} failed" if names else "The run failed"


def _undone(report: Report) -> int:
    return sum(step.undo is not None and step.undo.status is UndoState.UNDONE for step in report.steps)


def _progress(report: Report, waits_for: Sequence[str]) -> str:
    ended = sum(step.status in STEP_FINAL for step in report.steps)
    begin = f"{ended} of {_steps(len(report.steps), verb='have')} ended"
    waiting = [step for step in report.steps if step.status is StepState.WAITING]
    running = [step.name for step in report.steps if step.status in {StepState.RUNNING, StepState.RETRYING}]
    if waits_for:
        return _end(f"{begin}; the run waits: {'; '.join(waits_for)}")
    if waiting and not running:
        return _end(f"{begin}; {waiting[0].name} {waiting[0].reason or 'waits'}")
    return f"{begin}; {_names(running)} {'runs' if len(running) == 1 else 'run'} now." if running else f"{begin}."


def _success(report: Report) -> str:
    changed = sum(step.changed for step in report.steps)
    not_run = sum(step.status in {StepState.SKIPPED, StepState.NOT_RUN} for step in report.steps)
    done = len(report.steps) - not_run
    what = ": nothing had to be changed" if not changed else f": {changed} changed something"
    what = ", each with a change" if changed == done > 1 else what
    skipped = f", and {not_run} did not have to run" if not_run else ""
    return f"{_steps(done, verb='')} succeeded{what}{skipped}."


def _end(sentence: str) -> str:
    """The sentence with its full stop, unless a quoted text ends it."""
    return sentence if sentence.endswith((".", "!", "?")) else f"{sentence}."


def _steps(count: int, verb: str = "were") -> str:
    """`1 step was`, `3 steps were`."""
    one = {"were": "was", "have": "has", "": ""}[verb]
    return f"{count} step{'' if count == 1 else 's'} {one if count == 1 else verb}".rstrip()


def _names(names: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b, c and 4 more`."""
    shown = list(names[:_NAMED]) + ([f"{len(names) - _NAMED} more"] if len(names) > _NAMED else [])
    return " and ".join([*([", ".join(shown[:-1])] if shown[1:] else []), *shown[-1:]])

"""The output of the commands for stacks: checks, selections and outcomes, as text and as JSON."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from longshore.orchestration.cli.common import current_options, exit_with, print_line, print_table
from longshore.orchestration.stacks.orchestrate import Checked, Orchestrated
from longshore.orchestration.stacks.selection import Selection


def check_lines(checked: Checked, *, stale_only: bool = False) -> Iterable[str]:
    for one in checked.hosts:
        if one.valid and stale_only:
            continue
        if one.valid:
            yield f"{one.host}: cache valid (generation {one.generation}, {one.age_s or 0:.0f} s old)"
        elif not one.error:
            yield f"{one.host}: cache needs rebuild: {one.reason}"


def check_json(checked: Checked, found: Selection | None) -> dict[str, Any]:
    document: dict[str, Any] = {"valid": checked.valid, "reason": checked.reason or None, "timestamp": timestamp()}
    document |= {"hosts": [one.as_json() for one in checked.hosts], "exit_code": checked.exit_code}
    return document | ({"deployments": deployments(found)} if found is not None else {})


def timestamp() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def deployments(found: Selection) -> list[dict[str, Any]]:
    return [one.as_json() | {"name": found.name(one)} for one in found.chosen]


def selection_json(found: Selection) -> dict[str, Any]:
    left_alone, notes = (
        [
            {"host": one.host, "project": one.project, "service": one.service or None, "text": one.text}
            for one in found.notes
            if one.general is general
        ]
        for general in (False, True)
    )
    wrong = {f"{one.host}:{one.project}": one.text for one in found.undetermined}
    document = {"deployments": deployments(found), "count": len(found.chosen), "left_alone": left_alone}
    return document | {"notes": notes, "errors": found.errors | wrong}


def print_selection(found: Selection) -> None:
    if not found.chosen:
        print_line("no services selected")
    else:
        rows = [("HOST", "PROJECT", "SERVICE", "ACTION", "REASON")]
        rows += [(o.host, o.project, o.service, o.action, ", ".join(map(str, o.reasons))) for o in found.chosen]
        print_table(rows)
    _print_notes(found)


def _print_notes(found: Selection) -> None:
    """Print the notes; those about services that the selection does not restart begin with `left alone`."""
    restarted = {(one.host, one.project, one.service) for one in found.chosen}
    for note in found.notes:
        is_left_alone = not note.general and (note.host, note.project, note.service) not in restarted
        print_line(f"{'left alone' if is_left_alone else 'note'}: {note}")


def finish(done: Orchestrated) -> None:
    """Print the result and end the command with its exit code."""
    options = current_options()
    if options.json:
        report = done.report.model_dump(mode="json") if done.report is not None else None
        stacks = {"up_to_date": list(done.stacks.up_to_date), "failed": done.stacks.failed}
        options.show({"phase": done.phase, "message": done.message, "exit_code": done.exit_code,
                      "rebuilt": list(done.rebuilt), "stacks": stacks, "select": selection_json(done.selection),
                      "report": report})  # fmt: skip
    else:
        if not options.quiet:
            _print_notes(done.selection)
        if done.exit_code or not options.quiet:
            print_line(done.message, err=done.exit_code != 0)
    return exit_with(done.exit_code)

"""`longshore explain`: the meaning, causes and remedy of an error code."""

from __future__ import annotations

import re
from difflib import get_close_matches

import click
from click.shell_completion import CompletionItem

from longshore.orchestration.cli.common import current_options, global_options, print_line, print_lines
from longshore.orchestration.cli.error_texts import ERRORS, error_text
from longshore.orchestration.errors import UnknownName
from longshore.orchestration.states import RunState, StepState, UndoState

#: The lists of effects that remain, in a report.
_REPORTED = {"left_over", "in_doubt"}


def _complete_code(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(code, help=ERRORS[code].means) for code in ERRORS if code.startswith(incomplete)]


@click.command()
@click.argument("code", required=False, shell_complete=_complete_code)
@global_options
def explain(code: str | None) -> None:
    """Explain an error code, such as run-conflict.

    The command prints the meaning, usual causes and remedy of CODE. Without CODE, the command lists all codes.
    """
    options = current_options()
    if code is None:
        if options.json:
            options.show([_entry(each) for each in ERRORS])
            return
        for each, entry in ERRORS.items():
            print_line(f"{each:<18} {entry.means.partition('. ')[0].removesuffix('.').replace('`', '')}")
        return
    found = _code(code)
    if options.json:
        options.show(_entry(found))
    else:
        print_lines(error_text(found))


def _entry(code: str) -> dict[str, str]:
    entry = ERRORS[code]
    return {
        "code": code,
        "exit_codes": entry.exit_codes,
        "means": entry.means,
        "causes": entry.raised,
        "remedy": entry.remedy,
    }


def _code(text: str) -> str:
    """The code in a text such as `run-conflict`, `error[run-conflict]` or `RUN_CONFLICT`. Raises UnknownName."""
    inside = re.search(r"\[(.+)\]", text)
    code = (inside[1] if inside else text).strip().lower().replace("_", "-")
    if code in ERRORS:
        return code
    if (state := code.replace("-", "_")) in {*RunState, *StepState, *UndoState, *_REPORTED}:
        where = "for the steps of a run: longshore runs show RUN; for the meaning: the page 'The states of a run'"
        raise UnknownName(f"{state!r} is a state, not an error code", remedy=where)
    near = get_close_matches(code, ERRORS, n=3, cutoff=0.5) or [each for each in ERRORS if code and code in each]
    choices = f"did you mean {' or '.join(near)}?" if near else "list all codes: longshore explain"
    raise UnknownName(f"unknown error code {text!r}", remedy=choices)

"""Writes docs/reference/faults.md: the latest figures of `make faults`, and the guards of the scripts."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tests.faults.conftest import FIGURES
from tests.store.guards.marks import mutants

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "faults.md"
HEAD = """\
# Fault injection

`make faults` injects faults into real workers, messages, connections and Redis, and writes this page. Each section has
the latest results of one test. `make help` shows how to repeat the faults of a seed. `make test` runs a
short form of the tests.

The operations of the runs write each effect into a log outside of Redis. A report that contradicts this log, or a run
that has not ended, is a *broken rule*. Where a section has final states of many runs, except for random plans, every
third run fails on purpose and ends `undone`. A run with a step of unknown outcome ends `undone`, too.

"""
CRASHES = """\
## Crash points

At each point of the code (`tasks/crash_points.py`), the process of a worker is killed, once for each kind of step.
*recovered*: the run then ends in the right state, without a lost or duplicated effect. An empty cell: this kind of step
does not reach the point.

"""
GUARDS = """\
## The guards of the scripts

A [guard](../contributing.md#guards-of-the-scripts) is a condition that keeps a script from a wrong change.
`tests/store/test_guards.py` removes each guard in turn; the scenario with the name of the rule then fails.

| script | rule | guard |
|---|---|---|
"""


def figures(folder: Path) -> str:
    """A section for each test of the latest long form."""
    parts = []
    crashes: dict[str, dict[str, str]] = {}
    for path in sorted(folder.glob("*.json")):
        stored = json.loads(path.read_text())
        stored["figures"].pop("took", None)
        if stored["test"].startswith("run recovers from a crash at"):
            crashes[stored["test"].partition("[")[2].rstrip("]")] = stored["figures"]
            continue
        if stored["test"].startswith("suspended run recovers from a crash at"):
            crashes.update({point: {"a suspended or resumed run": what} for point, what in stored["figures"].items()})
            continue
        rows = "\n".join(f"| {name} | {_cell(value)} |" for name, value in stored["figures"].items())
        about = f"{stored['about']}\n\n" if stored["about"] else ""
        parts.append(f"## {stored['test'].capitalize()}\n\n{about}| seed | {stored['seed']} |\n|---|---|\n{rows}\n")
    return "\n".join([*parts, *_matrix(crashes)])


def _matrix(crashes: dict[str, dict[str, str]]) -> list[str]:
    """The result of each kind of step at each point; empty if the step does not reach the point."""
    if not crashes:
        return []
    kinds = list(dict.fromkeys(kind for row in crashes.values() for kind in row))
    rows = [f"| `{point}` | {' | '.join(row.get(kind, '') for kind in kinds)} |" for point, row in crashes.items()]
    head = f"| a process dies at | {' | '.join(kinds)} |\n|{'---|' * (len(kinds) + 1)}"
    return [CRASHES + "\n".join([head, *rows]) + "\n"]


def _cell(value: object) -> str:
    if isinstance(value, dict):
        value = ", ".join(f"{name} {number}" for name, number in value.items())
    lines = [line.strip() for line in str(value).splitlines() if line.strip()]
    return "<br>".join(f"`{line}`" for line in lines) if len(lines) > 1 else str(value).replace("|", "\\|")


def guards() -> str:
    """The table of the marked guards of the scripts."""
    rows = [f"| {m.script} | {m.rule} | `{m.guard.replace('|', chr(92) + '|')}` |" for m in mutants()]
    return GUARDS + "\n".join(rows) + "\n"


def page(measured: str) -> str:
    return f"{HEAD}{measured}\n{guards()}"


if __name__ == "__main__":
    PAGE.write_text(page(figures(FIGURES)))
    sys.stdout.write(f"wrote {PAGE.name}\n")

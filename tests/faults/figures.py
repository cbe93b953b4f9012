"""Writes docs/reference/faults.md from what `make faults` has left: the last figures, and the guards of the scripts."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tests.faults.conftest import FIGURES
from tests.store.guards.marks import mutants

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "faults.md"
HEAD = """\
# Fault injection

`make faults` injects faults into real workers, messages, connections and Redis, prints its seed and these results, and
writes this page. `make test` runs a short form of each test. The operations of the runs write a log of their own,
outside of Redis; the tests compare the rules with this log.

"""
GUARDS = """\
## The guards of the scripts

`tests/store/test_guards.py` removes each guard in turn, and a scenario of the rule's name fails without it.

| script | rule | guard |
|---|---|---|
"""


def figures(folder: Path) -> str:
    """A section for each test of the last long form."""
    parts = []
    crashes: dict[str, dict[str, str]] = {}
    for path in sorted(folder.glob("*.json")):
        kept = json.loads(path.read_text())
        kept["figures"].pop("took", None)
        if kept["test"].startswith("a crash at"):
            crashes[kept["test"].partition("[")[2].rstrip("]")] = kept["figures"]
            continue
        if kept["test"].startswith("a crash of"):
            crashes.update({point: {"a run that is held": what} for point, what in kept["figures"].items()})
            continue
        rows = "\n".join(f"| {name} | {_cell(value)} |" for name, value in kept["figures"].items())
        parts.append(f"## {kept['test'].capitalize()}\n\nSeed {kept['seed']}.\n\n| | |\n|---|---|\n{rows}\n")
    return "\n".join([*parts, *_matrix(crashes)])


def _matrix(crashes: dict[str, dict[str, str]]) -> list[str]:
    """What became of each kind of step at each point; nothing where it does not come by."""
    if not crashes:
        return []
    kinds = list(dict.fromkeys(kind for row in crashes.values() for kind in row))
    rows = [f"| `{point}` | {' | '.join(row.get(kind, '') for kind in kinds)} |" for point, row in crashes.items()]
    head = f"| a process dies at | {' | '.join(kinds)} |\n|{'---|' * (len(kinds) + 1)}"
    return ["## Crash points\n\n" + "\n".join([head, *rows]) + "\n"]


def _cell(value: object) -> str:
    if isinstance(value, dict):
        value = ", ".join(f"{number} {name}" for name, number in value.items())
    lines = [line.strip() for line in str(value).splitlines() if line.strip()]
    return "<br>".join(f"`{line}`" for line in lines) if len(lines) > 1 else str(value).replace("|", "\\|")


def guards() -> str:
    """The table of the guards that are marked in the scripts."""
    rows = [f"| {m.script} | {m.rule} | `{m.guard.replace('|', chr(92) + '|')}` |" for m in mutants()]
    return GUARDS + "\n".join(rows) + "\n"


def page(measured: str) -> str:
    return f"{HEAD}{measured}\n{guards()}"


if __name__ == "__main__":
    PAGE.write_text(page(figures(FIGURES)))
    sys.stdout.write(f"wrote {PAGE.name}\n")

"""Writes docs/reference/faults.md: the latest figures of `make faults`, and the guards of the scripts."""

from __future__ import annotations

import json
import re
import sys
import textwrap
from collections import Counter
from pathlib import Path

from longshore.orchestration.store import lua
from tests.faults.conftest import FIGURES
from tests.store.guards.marks import mutants

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "faults.md"
HEAD = """\
# Fault injection

`make faults` injects faults into real workers, messages, connections and Redis, and writes this page. Each section has
the latest results of one test. `make help` names the variable that repeats the random choices of a seed. `make test`
runs a short form of the tests.

The operations of the runs write each effect into a log outside of Redis. The sections have these terms:

- A *broken rule* is, for example, a run that has not ended, or a report that contradicts this log.
- A *stopped* worker or process gets SIGSTOP, and continues a few seconds later. The *main process* of a worker renews
  the leases, and a *pool process* runs the steps. A stopped worker is stopped with all of its processes.
- A *doubled* message is sent twice. A *reordered* message becomes the last one of its queue.

In sections with the final states of many runs, every third run fails on purpose and ends `undone`. A run with a step of
unknown outcome ends `undone`, too. The section on random plans is an exception: its runs end in any state except
`undo_failed`, because the test resumes a run in this state.

"""
CRASHES = """\
## Crash points

The process of a worker is killed at each point of a step or run in `tasks/crash_points.py`, once for each kind of step.
For example, at `step.acted`, the operation has acted, and the outcome is not recorded yet. *recovered*: the run then
ends in the right state, without a lost or repeated effect. An empty cell was not tried, because this kind of step does
not reach the point. The last column is an exception: only the last three points were tried in a run that is suspended,
fails and is resumed.

"""
GUARDS = """\
## The guards of the scripts

A [guard](../contributing.md#guards-of-the-scripts) is a condition that keeps a Lua script of Longshore from a wrong
change in Redis. `tests/store/test_guards.py` removes each guard in turn. A test with the name of the guard then fails.

| script in `orchestration/store/lua` | purpose | guards |
|---|---|---|
"""
#: The headings of the tests, by name of the test.
TITLES = {
    "killed client leaves a complete run or none": "Clients are killed while they start runs",
    "random plans survive lost writes stopped workers and clock jumps": (
        "Random plans outlive lost writes, stopped workers and clock jumps"
    ),
    "rolling restart of workers under load repeats no step": "A rolling restart of all workers repeats no step",
    "run ends after its only worker is killed and restarted": "The only worker is killed in a step and started again",
    "run stays consistent under random commands of eight processes": "Eight processes send random commands to one run",
    "runs continue after redis is down for longer than leases": "Redis is down for longer than a lease",
    "runs of a blocked service resume at different times": "Fifty runs wait for a service that is down",
    "runs survive a full redis": "Redis is full for a second at a time",
    "runs survive all faults at once": "Runs outlive everything at once",
    "runs survive cut connections": "Connections to Redis are cut again and again",
    "runs survive killed workers a redis restart and duplicated messages": (
        "Runs outlive killed workers, a Redis restart and doubled messages"
    ),
    "step longer than the visibility timeout runs once": "A step longer than the visibility timeout runs once",
}


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
        about = f"{_wrapped(stored['about'])}\n\n" if stored["about"] else ""
        title = TITLES.get(stored["test"], stored["test"].capitalize())
        parts.append(f"## {title}\n\n{about}| seed | {stored['seed']} |\n|---|---|\n{rows}\n")
    return "\n".join([*parts, *_matrix(crashes)])


def _matrix(crashes: dict[str, dict[str, str]]) -> list[str]:
    """The result of each kind of step at each point; empty if the step does not reach the point."""
    if not crashes:
        return []
    kinds = list(dict.fromkeys(kind for row in crashes.values() for kind in row))
    rows = [f"| `{point}` | {' | '.join(row.get(kind, '') for kind in kinds)} |" for point, row in crashes.items()]
    head = f"| a process dies at | {' | '.join(kinds)} |\n|{'---|' * (len(kinds) + 1)}"
    return [CRASHES + "\n".join([head, *rows]) + "\n"]


def _wrapped(text: str) -> str:
    return textwrap.fill(" ".join(text.split()), 120, break_long_words=False, break_on_hyphens=False)


def _cell(value: object) -> str:
    if isinstance(value, dict):
        value = ", ".join(f"{name} {number}" for name, number in value.items())
    lines = [line.strip() for line in str(value).splitlines() if line.strip()]
    return "<br>".join(f"`{line}`" for line in lines) if len(lines) > 1 else str(value).replace("|", "\\|")


def guards() -> str:
    """The section on the marked guards, with their number for each script."""
    found = Counter(mutant.script for mutant in mutants())
    return GUARDS + "".join(f"| `{script}` | {_purpose(script)} | {number} |\n" for script, number in found.items())


def _purpose(script: str) -> str:
    """The beginning of the header of a script."""
    first = re.split(r"[:,.;]", lua.text(script).removeprefix("-- "), maxsplit=1)[0]
    return " ".join(first.replace("\n--", " ").split())


def page(measured: str) -> str:
    return f"{HEAD}{measured}\n{guards()}"


if __name__ == "__main__":
    PAGE.write_text(page(figures(FIGURES)))
    sys.stdout.write(f"wrote {PAGE.name}\n")

"""Guards that are marked in the scripts, their mutants, and the scenarios that kill them.

A mark is a comment on the line above the guard, `-- guard: <rule>`, and names the scenario of the same words. The
mutant of a mark is the script without the guard:

- a condition, `if … then` or `elseif … then`, becomes false;
- one operand of a condition, alone on its line, becomes true beside `and`, and false beside `or`;
- any other statement is removed.

`-- guard: <rule>; without it: <Lua>` puts the Lua in place of the condition, of the operand, of the right side of
an assignment or a `return`, or of the statement. A line may have several marks, each of which is a mutant.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from longshore.orchestration.store import lua
from tests.store.stored_run import StoredRun

Scenario = Callable[[StoredRun], None]
FOLDER = Path(lua.__file__).parent
#: By rule.
SCENARIOS: dict[str, Scenario] = {}

_MARK = re.compile(r" *-- guard: (?P<rule>[a-z0-9 ]+)(?:; without it: (?P<other>.+))?")
_CONDITION = re.compile(r"( *(?:if|elseif) )(.+)( then)")
_OPERAND = re.compile(r"( *(if|elseif|and|or) )(.+?)( then)?")
_VALUE = re.compile(r"( *(?:return|(?:local )?\w+ =) ).+")
_STATEMENT = re.compile(r"( *).+")


def scenario(function: Scenario) -> Scenario:
    """Register a scenario under the rule that its name states."""
    rule = function.__name__.replace("_", " ")
    assert rule not in SCENARIOS, f"two scenarios of one name: {rule}"
    SCENARIOS[rule] = function
    return function


@dataclass(frozen=True)
class Mutant:
    """A script without one of its guards."""

    #: Path of the script without its suffix.
    script: str
    rule: str
    #: The guard as it is in the script.
    guard: str
    text: str

    def __str__(self) -> str:
        return f"{self.script}: {self.rule}"


def mutants() -> list[Mutant]:
    """All mutants, in the order of the scripts and of the marks in each."""
    found = []
    for path in sorted(FOLDER.rglob("*.lua")):
        found += mutants_of(path.relative_to(FOLDER).with_suffix("").as_posix(), path.read_text())
    return found


def mutants_of(script: str, text: str) -> list[Mutant]:
    lines = text.splitlines()
    code = [n for n, line in enumerate(lines) if line.strip() and not line.lstrip().startswith("--")]
    follower = dict(pairwise(code))
    found = []
    for n, line in enumerate(lines):
        if "-- guard" not in line:
            continue
        mark = _MARK.fullmatch(line)
        assert mark, f"{script}.lua:{n + 1}: expected `-- guard: <rule>` or `-- guard: <rule>; without it: <Lua>`"
        at = next(number for number in code if number > n)
        changed = lines.copy()
        changed[at] = without_guard(lines[at], lines[follower.get(at, at)], mark["other"])
        found.append(Mutant(script, mark["rule"], lines[at].strip(), "\n".join(changed)))
    return found


def without_guard(line: str, following: str, other: str | None) -> str:
    """The line with `other`, or what removes the guard, in place of its guard; `following` is the next line of code."""
    if condition := _CONDITION.fullmatch(line):
        return condition[1] + (other or "false") + condition[3]
    if operand := _OPERAND.fullmatch(line):
        word = operand[2] if operand[2] in {"and", "or"} else following.split(maxsplit=1)[0]
        assert word in {"and", "or"}, f"neither a condition nor one operand of it: {line}"
        return operand[1] + (other or {"and": "true", "or": "false"}[word]) + (operand[4] or "")
    assert line.count("(") == line.count(")"), f"a guard has to be one line: {line}"
    if other is None:
        return ""
    statement = _VALUE.fullmatch(line) or _STATEMENT.fullmatch(line)
    return (statement[1] if statement else "") + other

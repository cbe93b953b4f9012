"""The reference names each event, hook, setting and operation of the code, and no other."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from docs._site.reference import FOLDER, exit_codes_of, runnable
from longshore.orchestration.cli.main import call, cli
from longshore.orchestration.runs.hooks import Hooks
from longshore.orchestration.settings import Settings
from tests.store.guards.marks import mutants

TESTS = Path(__file__).resolve().parents[1]
LUA = TESTS.parent / "orchestration" / "store" / "lua"
CONCEPTS = FOLDER.parent / "concepts"
EVENTS = (FOLDER / "events.md").read_text()

_EACH = ("step_", "item_", "undo_")
#: The values of computed names.
COMPUTED = {
    "kind(p, i) .. 'started'": {f"{each}started" for each in _EACH},
    "kind(p, i) .. 'ended'": {f"{each}ended" for each in _EACH},
    "prefix == 'u' and 'undo_ended' or 'item_ended'": {"undo_ended", "item_ended"},
    "prefix == 'u' and 'undo_ended' or 'step_ended'": {"undo_ended", "step_ended"},
    "kind(p, i) .. 'waiting'": {f"{each}waiting" for each in _EACH},
    "kind(p, i) .. 'retrying'": {f"{each}retrying" for each in _EACH},
    "(p == '' and '' or 'undo_') .. 'task_started'": {"task_started", "undo_task_started"},
    "whole_of(i) and 'item_found' or 'step_found'": {"item_found", "step_found"},
    "undo == 'held_back' and 'undo_held_back' or 'undo_impossible'": {"undo_held_back", "undo_impossible"},
    # A level changes the state only for the first `always` steps after an abort.
    "'run_' .. ARGV[3]": {"run_finishing"},
}
#: Lua expressions whose value is the name of an event.
PASSED_ON = {"name", "unpack(event)"}


def arguments(text: str) -> list[str]:
    """The arguments of a call in Lua, from the text after the opening bracket."""
    found, depth, quoted, current = [], 0, False, ""
    for character in text:
        quoted ^= character == "'"
        if not quoted:
            if character in ")}" and not depth:
                break
            depth += (character in "({") - (character in ")}")
            if character == "," and not depth:
                found.append(current.strip())
                current = ""
                continue
        current += character
    return [*found, current.strip()]


def emitted(script: str) -> Iterator[tuple[str, set[str]]]:
    """The name of each event that a script emits, as written there, with its fields."""
    code = re.sub(r"--.*", "", script)
    for match in re.finditer(r"(?<!function )\bemit(_as)?\(|\blater\[#later \+ 1\] = \{", code):
        name, *fields = arguments(code[match.end() :])[1 if match[1] else 0 :]
        yield name, {field.strip("'") for field in fields[::2]}


def events_of_the_scripts() -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for path in sorted(LUA.rglob("*.lua")):
        for name, fields in emitted(path.read_text()):
            if name in PASSED_ON:
                continue
            literal = re.fullmatch(r"'(\w+)'", name)
            for each in {literal[1]} if literal else COMPUTED[name]:
                found.setdefault(each, set()).update(fields)
    return found


def rows(page: str, heading: str) -> list[list[str]]:
    """The cells of each row of the tables with this heading in the first column."""
    tables = re.findall(rf"^\| {heading} \|.*\n\|[-|]+\|\n((?:\|.*\n)+)", page, re.M)
    return [[cell.strip() for cell in line.strip("| ").split(" |")] for table in tables for line in table.splitlines()]


def names(cell: str) -> set[str]:
    return set(re.findall(r"`(\w+)`", cell))


def test_events_page_names_each_event_of_the_scripts_with_its_fields() -> None:
    page = {name: names(fields) for first, fields, *_ in rows(EVENTS, "event") for name in names(first)}

    assert page == events_of_the_scripts()


def test_events_page_names_each_hook_and_existing_events() -> None:
    hooks = rows(EVENTS, "hook")

    assert {name for first, *_ in hooks for name in names(first)} == {
        field.name for field in dataclasses.fields(Hooks) if field.name != "event"
    }
    assert {name for *_, events in hooks for name in names(events)} <= set(events_of_the_scripts())


def test_reference_names_each_setting_and_operation() -> None:
    settings, operations = (FOLDER / "settings.md").read_text(), (FOLDER / "operations.md").read_text()

    described = dict(re.findall(r"^\| `LONGSHORE_(\w+)` \|.*\| *(\w[^|]*) \|$", settings, re.M))
    assert [name for name in Settings.model_fields if name.upper() not in described] == []
    # In a separate process, because other tests register operations.
    code = "from longshore.orchestration.operations import all_operations; print(*all_operations())"
    known = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert len(known) > 50
    assert [name for name in known if f"## {name}\n" not in operations] == []


def test_tests_and_guards_named_as_proofs_exist() -> None:
    promises = rows((CONCEPTS / "promises.md").read_text(), "promise")
    named = {name for _, proof in promises for name in re.findall(r"`(test_\w+)`", proof)}
    guards = {name for _, proof in promises for name in re.findall(r"`([a-z]+ [a-z ]+)`", proof)}
    sources = [path.read_text() for path in TESTS.rglob("test_*.py")]

    assert len(promises) > 10
    assert [promise for promise, proof in promises if "`test_" not in proof] == []
    assert named - {name for source in sources for name in re.findall(r"^def (test_\w+)\(", source, re.M)} == set()
    assert guards <= {mutant.rule for mutant in mutants()}


def test_measured_table_of_the_comparison_has_the_figures_of_the_benchmarks() -> None:
    measured = {name: line for line in (FOLDER / "benchmarks.md").read_text().splitlines()[::-1]
                if (name := line.removeprefix("| ").partition(" |")[0])}  # fmt: skip
    table = rows((CONCEPTS / "comparison.md").read_text(), "figure")

    assert len(table) > 5
    for first, *cells in table:
        assert [cell for cell in cells if f"{cell} " not in f"{measured[first]} ".replace(";", " ")] == [], first


COMMANDS = dict(runnable())


@pytest.mark.parametrize("name", COMMANDS)
def test_documented_exit_codes_include_the_exit_codes_in_the_code(name: str) -> None:
    callback = inspect.unwrap(COMMANDS[name].callback)  # type: ignore[arg-type]
    tree = ast.parse(textwrap.dedent(inspect.getsource(callback)))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == "exit_with"]
    literal = {node.value for one in calls for node in ast.walk(one) if isinstance(node, ast.Constant)}

    assert {code for code in literal if isinstance(code, int)} <= exit_codes_of(COMMANDS[name])


def test_wrong_usage_exits_with_2_and_an_interrupt_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    assert call(["plan", "validate", "--no-such-option"]) == 2
    assert call(["plan", "validate", "no-such-plan.yaml"]) == 2
    monkeypatch.setattr(cli, "main", interrupted)
    assert call(["plan", "validate", "plan.yaml"]) == 130

"""Mutation tests of the scripts: a guard's scenario passes with the script, and fails without the guard."""

from __future__ import annotations

import pytest

from longshore.orchestration.store import lua
from tests.faults.figures import PAGE, guards
from tests.servers import RedisServer
from tests.store.guards import admission, attempts, clock, commands, levels, receipts, recovery, tasks
from tests.store.guards.marks import FOLDER, SCENARIOS, Mutant, mutants, mutants_of
from tests.store.stored_run import StoredRun

pytestmark = pytest.mark.store

MODULES = (admission, attempts, clock, commands, levels, receipts, recovery, tasks)
MUTANTS = mutants()


@pytest.mark.parametrize("rule", SCENARIOS)
def test_scenario_holds(rule: str, stored: StoredRun) -> None:
    SCENARIOS[rule](stored)


@pytest.mark.parametrize("mutant", MUTANTS, ids=str)
def test_removing_a_guard_breaks_its_scenario(
    mutant: Mutant, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = lua.text
    monkeypatch.setattr(lua, "text", lambda path: mutant.text if path == mutant.script else text(path))
    # Bypass the caches, which contain the unchanged scripts.
    monkeypatch.setattr(lua, "source", lua.source.__wrapped__)
    monkeypatch.setattr(lua, "installation_source", lua.installation_source.__wrapped__)
    redis_server.flush()  # otherwise data of another scenario could fail this one
    stored = StoredRun(redis_server.url, client=redis_server.shared_client)

    with pytest.raises((AssertionError, pytest.fail.Exception)):
        SCENARIOS[mutant.rule](stored)


def test_marks_and_scenarios_match() -> None:
    assert {mutant.rule for mutant in MUTANTS} == set(SCENARIOS)


def test_each_script_has_a_guard() -> None:
    scripts = {path.relative_to(FOLDER).with_suffix("").as_posix() for path in FOLDER.rglob("*.lua")}

    assert {mutant.script for mutant in MUTANTS} == scripts


def test_every_guard_has_a_scenario() -> None:
    assert len(MUTANTS) >= 148


def test_documentation_has_the_number_of_guards() -> None:
    assert guards() in PAGE.read_text()


def test_mark_removes_a_condition_operand_or_statement() -> None:
    script = """\
-- guard: a condition
if a and b then
-- guard: the first operand
if a
    -- guard: another operand
    and (b or c) then
-- guard: a value; without it: 1
local n = math.min(1, later)
-- guard: a statement
redis.call('DEL', run)
return 1
"""

    found = {mutant.rule: mutant.text.splitlines() for mutant in mutants_of("any", script)}

    assert found["a condition"][1] == "if false then"
    assert found["the first operand"][3] == "if true"
    assert found["another operand"][5] == "    and true then"
    assert found["a value"][7] == "local n = 1"
    assert found["a statement"][9] == ""


@pytest.mark.parametrize(
    "line", ["-- guard a rule", "-- guard: A rule.", "-- guard: a rule; without: x", "return 1  -- guard: a rule"]
)
def test_invalid_mark_is_refused(line: str) -> None:
    with pytest.raises(AssertionError, match=r"any\.lua:1: expected"):
        mutants_of("any", f"{line}\nreturn 1\n")

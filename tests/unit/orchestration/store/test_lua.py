"""The Lua files: each declares its contract and is called by the store."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path

import pytest

from longshore.orchestration import states
from longshore.orchestration.store import keys, lua

ROOT = Path(__file__).resolve().parents[4]
FOLDER = ROOT / "orchestration" / "store" / "lua"


def head(name: str) -> str:
    """The comment at the head of a script."""
    lines = (FOLDER / f"{name}.lua").read_text().splitlines()
    end = next(n for n, line in enumerate(lines) if not line.startswith("--"))
    return "\n".join(lines[:end])


def body(name: str) -> str:
    """A script without its comments."""
    return re.sub(r"--.*", "", (FOLDER / f"{name}.lua").read_text())


def test_every_lua_file_is_a_packaged_script() -> None:
    in_folder = {path.stem for path in FOLDER.glob("*.lua")} - {"prelude"}

    assert set(lua.names()) == in_folder
    assert lua.names() == sorted(in_folder)
    assert {entry.name for entry in files(lua).iterdir() if entry.name.endswith(".lua")} >= {
        f"{name}.lua" for name in in_folder
    }


@pytest.mark.parametrize("name", lua.names())
def test_script_declares_states_and_arguments(name: str) -> None:
    documented = head(name)

    first, second, *_ = documented.splitlines()
    assert re.fullmatch(r"-- [A-Z][^:]*[.?]|-- [A-Z].*: .*", first), "the head does not begin with the purpose"
    assert second == "--" or second.startswith("-- ")
    for word in ("FROM", "ARGV", "RETURNS", "EVENTS"):
        assert re.search(rf"^-- {word}\b", documented, re.MULTILINE), f"{name}.lua has no line {word}"


@pytest.mark.parametrize("name", lua.names())
def test_script_documents_every_argument(name: str) -> None:
    used = {int(number) for number in re.findall(r"ARGV\[(\d+)\]", body(name))}
    documented = {int(number) for number in re.findall(r"ARGV\[(\d+)", head(name))}

    # The arguments after a fixed number form a list, described in text.
    assert {number for number in used if number <= max(documented, default=0)} <= documented
    assert not used or documented or "-- ARGV" in head(name)


@pytest.mark.parametrize("name", lua.names())
def test_script_declares_its_events(name: str) -> None:
    written = set(re.findall(r"emit(?:_as)?\((?:[\w+ ]+, )?'(\w+)'", body(name)))

    assert all(event in head(name) or name == "command" for event in written)


@pytest.mark.parametrize("name", lua.names())
def test_script_uses_only_portable_redis_functions(name: str) -> None:
    code = body(name)

    assert "cjson" not in code
    assert "cmsgpack" not in code
    assert "KEYS" not in code, "the script reads KEYS instead of the names of the prelude"
    assert not re.search(r"\b(loadstring|load|dofile|require|os|io)\b\s*[.(]", code)


def test_store_calls_every_script_and_no_other() -> None:
    texts = [path.read_text() for path in (ROOT / "orchestration" / "store").glob("*.py")]
    called = re.findall(r'(?:_run|_call_of)\((?:\s|#.*)*"(\w+)"', "\n".join(texts))

    assert set(called) == set(lua.names())


def test_prelude_precedes_every_script() -> None:
    prelude = (FOLDER / "prelude.lua").read_text()

    for name in lua.names():
        assert lua.source(name) == lua.without_comments(prelude + (FOLDER / f"{name}.lua").read_text())
    for number, key in enumerate(("run", "steps", "leases", "events", "waits"), start=1):
        assert re.search(rf"^-- KEYS\[{number}\] {key}\b", prelude, re.MULTILINE)


def test_stripped_scripts_keep_line_numbers() -> None:
    commented = "-- a contract\nif a then\n  -- guard: a rule\n  return 'a -- b'  -- why\nend\n"

    assert lua.without_comments(commented) == "\nif a then\n\n  return 'a -- b'  -- why\nend\n"
    for name in lua.names():
        assert "-- guard" not in lua.source(name)


def test_scripts_use_only_known_states() -> None:
    known = {str(s) for kind in (states.RunState, states.StepState, states.UndoState) for s in kind}

    for name in lua.names():
        set_to = re.findall(r"'HSET', run, 'state', '(\w+)'", body(name))
        set_to += re.findall(r"'s:' \.\. [^,]+, '(\w+)'", body(name))
        assert set(set_to) <= known, name


def test_scripts_use_only_declared_fields() -> None:
    fields = set(keys.Field)

    for name in [*lua.names(), "prelude"]:
        used = set(re.findall(r"'u?([a-z]{1,2}):'", body(name)))
        assert used <= fields, name

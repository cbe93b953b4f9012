"""Loading plans from files and by name: accepted forms, and errors with their lines."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from longshore.orchestration import Plan, PlanError, UnknownName, load, parse
from longshore.orchestration.plans import loading as source_module
from longshore.orchestration.plans.loading import read_mapping, stored
from longshore.orchestration.settings import get_settings
from tests.unit.plans import diamond

HEAD = "name: p\nsteps:\n"
STEP = HEAD + "  a:\n    op: noop.execute\n"  # the operation is in line 4

#: Name of the mistake: the text, the step, the line, and the message.
BAD: dict[str, tuple[str, str | None, int | None, str]] = {
    "a cycle": (
        HEAD + "  a: {op: noop.execute, after: [c]}\n  b: {op: noop.execute, after: a}\n"
        "  c:\n    op: noop.execute\n    after: [b]\n",
        "a",
        3,
        "the steps form a cycle: a → c → b → a",
    ),
    "an unknown operation": (HEAD + "  a:\n    op: noop.execut\n", "a", 4, "did you mean noop.execute"),
    "a wrong type": (STEP + "    with:\n      sleep: soon\n", "a", 6, "sleep: 'soon' is not a duration"),
    "a wrong type deep inside": (
        HEAD + "  a:\n    op: command.exec.execute\n    with:\n      argv:\n        - ls\n        - 5\n",
        "a",
        8,
        "argv.1: ",
    ),
    "an unknown parameter": (STEP + "    with:\n      sleep: 1\n      slep: 1\n", "a", 7, "has no parameter 'slep'"),
    "a missing parameter": (
        HEAD + "  a:\n    op: command.exec.execute\n    with: {cwd: /}\n",
        "a",
        5,
        "needs the parameter 'argv'",
    ),
    "a missing dependency": (STEP + "    after:\n      - b\n", "a", 5, "depends on 'b', which is not in the plan"),
    "an undefined variable": (
        STEP + '    with:\n      fail: "{{ item }}"\n',
        "a",
        6,
        "the template uses the unknown name 'item'",
    ),
    "an undefined parameter": (STEP + '    with:\n      fail: "{{ params.x }}"\n', "a", 6, "no parameter 'x'"),
    "a template of a step that is not upstream": (
        STEP + '    with:\n      fail: "{{ steps.b.status }}"\n  b: {op: noop.execute}\n',
        "a",
        6,
        "reads step 'b', which does not run before this step",
    ),
    "a broken template": (STEP + '    with:\n      fail: "{{ 1 + }}"\n', "a", 6, "broken template"),
    "a duplicate step": (STEP + "  a:\n    op: noop.execute\n", "a", 5, "duplicate step name"),
    "a duplicate field": (STEP + "    op: noop.execute\n", "a", 5, "duplicate key 'op'"),
    "a duplicate parameter": (STEP + "    with: {sleep: 1,\n      sleep: 2}\n", "a", 6, "duplicate key 'sleep'"),
    "a duplicate at the top": ("name: p\nname: q\n", None, 2, "duplicate key 'name'"),
    "nothing": ("", None, None, "the plan is empty"),
    "nothing but a comment": ("# later\n", None, None, "the plan is empty"),
    "a list": ("- a\n", None, None, "the plan is not a mapping"),
    "a word": ("plan\n", None, None, "the plan is not a mapping"),
    "no steps": ("name: p\nsteps: {}\n", None, 2, "the plan has no steps"),
    "no steps at all": ("name: p\n", None, 1, "the plan has no steps"),
    "steps that are a list": ("name: p\nsteps:\n  - op: x\n", None, 2, "steps: must be a mapping"),
    "steps that are nothing": ("name: p\nsteps:\n", None, 2, "steps: must be a mapping"),
    "a step that is nothing": (HEAD + "  a:\n", "a", 3, "must be a mapping"),
    "a step without an operation": (HEAD + "  a:\n    after: []\n", "a", 3, "the field 'op' is missing"),
    "no name": (STEP.partition("\n")[2], None, 1, "the field 'name' is missing"),
    "a bad name of the plan": ("name: a/b\n" + STEP.partition("\n")[2], None, 1, "the plan's name 'a/b' must match"),
    "a bad name of a step": (HEAD + "  a b:\n    op: noop.execute\n", "a b", 3, "the name must match"),
    "a name that ends a line": (HEAD + '  "a\\n":\n    op: noop.execute\n', "a\n", 3, "the name must match"),
    "10,001 steps": (
        HEAD + "".join(f"  s{n}: {{op: noop.execute}}\n" for n in range(10_001)),
        None,
        2,
        "10001 steps; at most 10000",
    ),
    "an unknown field": (STEP + "    atfer: [b]\n", "a", 5, "unknown field 'atfer'"),
    "an unknown field of the plan": ("name: p\nfoo: 1\n", None, 2, "unknown field 'foo'"),
    "an unknown field of a retry": (STEP + "    retry:\n      times: 3\n", "a", 6, "unknown field 'times'"),
    "an unknown field of an undo": (
        STEP + "    undo:\n      op: noop.execute\n      wiht: {}\n",
        "a",
        7,
        "unknown field 'wiht'",
    ),
    "an unknown policy": (STEP + "    on_error: explode\n", "a", 5, "on_error: "),
    "no attempts": ("name: p\nretry:\n  attempts: 0\n", None, 3, "retry.attempts: "),
    "an undo that is a word": (STEP + "    undo: nope\n", "a", 5, "undo: must be 'none', or an operation"),
    "an undo that is a list": (STEP + "    undo: [x]\n", "a", 5, "undo: must be a mapping"),
    "an unknown operation of an undo": (STEP + "    undo:\n      op: nope\n", "a", 6, "unknown operation 'nope'"),
    "an unknown type of input": ("name: p\nparams:\n  x: text\n", None, 3, "params.x.type: "),
    "an input with a bad default": (
        "name: p\nparams:\n  x:\n    type: integer\n    default: y\n",
        None,
        3,
        "params.x: default must be of type integer",
    ),
    "a label that is no text": ("name: p\nlabels:\n  a: 1\n", None, 3, "labels.a: "),
    "broken YAML": ("name: p\nsteps: [\n", None, 3, "invalid YAML: "),
    "a colon too many": ("name: p\nsteps: a: b\n", None, 2, "invalid YAML: "),
    "an open quote": ('name: "p\n', None, 2, "invalid YAML: "),
    "an alias of nothing": ("name: *x\n", None, 1, "invalid YAML: "),
    "two documents": ("name: p\n---\nname: q\n", None, 2, "invalid YAML: "),
    "tabs": ("name: p\nsteps:\n\ta:\n\t\top: noop.execute\n", None, 3, "invalid YAML: "),
    "a merge key": ("x: &x {a: 1}\nname: p\nsteps:\n  <<: *x\n", None, 4, "merge"),
    "a merge key deep inside": (STEP + "    with:\n      data: {<<: {a: 1}}\n", "a", 6, "merge"),
    "a key that is a list": ("name: p\n? [a]\n: b\n", None, 2, "a key must be a scalar"),
    "a key that is nothing": ("name: p\n~: b\n", None, 2, "a key must be a scalar"),
    "an object of Python": (
        STEP + "    description: !!python/name:os.system x\n",
        "a",
        5,
        "the tag tag:yaml.org,2002:python/name:os.system is not allowed",
    ),
    "a custom tag": (STEP + "    description: !mine x\n", "a", 5, "the tag !mine is not allowed"),
    "a call of Python": (
        STEP + '    with: {data: {x: !!python/object/apply:os.system ["touch /tmp/longshore-was-here"]}}\n',
        "a",
        5,
        "tag",
    ),
    "a mapping that is an object": (STEP + "    with: !!python/object:os.x {sleep: 1}\n", "a", 5, "tag"),
    "a set": (STEP + "    with: {data: {x: !!set {a, b}}}\n", "a", 5, "tag"),
    "an invalid date": (STEP + "    description: 2024-99-99\n", "a", 5, "month must be in 1..12"),
    "an infinite duration": (STEP + "    timeout: .inf\n", "a", 5, ".inf is not a valid JSON number"),
    "a sleep of NaN": (STEP + "    with: {sleep: .nan}\n", "a", 5, ".nan is not a valid JSON number"),
    "a value of NaN": (STEP + "    with: {data: {x: .nan}}\n", "a", 5, "nan"),
    "an infinite value": (STEP + "    with: {data: {x: [-.inf]}}\n", "a", 5, "inf"),
    "a bound of NaN": ("name: p\nparams: {x: {type: number, min: .nan}}\n", None, 2, "nan"),
    "an alias of itself": ("a: &a [*a]\n", None, 1, "the aliases expand to a file that is too large"),
    "deep nesting": (f"name:\n  {'[' * 500}{']' * 500}\n", None, 2, "nested too deeply"),
    "deep nesting in JSON": (
        '{"name": "p", "steps": {"a": {"op": "noop.execute", "with": {"data": {"x":\n'
        + "[" * 300
        + "]" * 300
        + "}}}}}",
        None,
        2,
        "nested too deeply",
    ),
    "a duplicate step in JSON": (
        '{"name": "p", "steps": {\n"a": {"op": "noop.execute"},\n"a": {"op": "noop.execute"}}}',
        "a",
        3,
        "duplicate step name",
    ),
    "half a character in JSON": (
        '{"name": "p",\n"description": "\\ud800", "steps": {"a": {"op": "noop.execute"}}}',
        None,
        2,
        "",
    ),
    "a control character": (f"name: {'é' * 9}\n\nlabels: \x1b\n\n", None, 3, "the character #x001b is not allowed"),
    "a step whose name looks like a type of pydantic's": (
        HEAD + "  function-deploy:\n    op: noop.execute\n    bogus: 1\n",
        "function-deploy",
        5,
        "unknown field 'bogus'",
    ),
    "steps of one name in two spellings": (
        HEAD + "  1: {op: noop.execute}\n  '1': {op: noop.execute}\n",
        "1",
        4,
        "duplicate step name",
    ),
    "a key with an end of line": (
        HEAD + '  a:\n    op: command.exec.execute\n    with: {argv: [x], env: {"A\\nB": 5}}\n',
        "a",
        5,
        "env",
    ),
}


def check_usage_error(error: PlanError) -> None:
    """Check that the refusal is a usage error of one line."""
    assert error.exit_code == 2
    assert len(str(error).splitlines()) == 1


def invalid_plans() -> list[Any]:
    return [pytest.param(*row, id=name) for name, row in BAD.items()]


@pytest.mark.parametrize(("text", "step", "line", "says"), invalid_plans())
def test_invalid_plan_is_refused_with_step_and_line(text: str, step: str | None, line: int | None, says: str) -> None:
    with pytest.raises(PlanError) as caught:
        parse(text, source="plan.yaml")

    check_usage_error(caught.value)
    first = caught.value.problems[0]
    assert says in first.message
    assert (first.step, first.line) == (step, line)
    assert str(caught.value).startswith("plan.yaml: " if line is None else f"plan.yaml: line {line}")
    if step is not None:
        assert f"step {step!r}" in str(caught.value)


@pytest.mark.parametrize("name", ["yes", "on", "no", "1", "1.0", "2024-01-01", "0x1f", "1_000"])
def test_yaml_keywords_as_names_stay_text(name: str) -> None:
    plan = parse(f"{HEAD}  {name}: {{op: noop.execute}}\n  b: {{op: noop.execute, after: '{name}'}}\n")

    assert list(plan.steps) == [name, "b"]


def test_names_equal_in_yaml_stay_distinct() -> None:
    plan = parse(HEAD + "  yes: {op: noop.execute}\n  on: {op: noop.execute}\n")

    assert list(plan.steps) == ["yes", "on"]


def test_all_problems_are_reported_the_first_in_the_message() -> None:
    text = HEAD + "  a:\n    op: nope\n  b:\n    op: noop.execute\n    with:\n      slep: 1\n      data: 1\n"

    with pytest.raises(PlanError) as caught:
        parse(text)

    check_usage_error(caught.value)
    assert [(problem.step, problem.line) for problem in caught.value.problems] == [("a", 4), ("b", 9), ("b", 8)]
    assert "(and 2 more: longshore plan validate)" in str(caught.value)


def test_alias_bomb_is_refused_before_expansion(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_module, "_MAX_EXPANDED", 2_000)
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n"
    bomb += "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 9))

    with pytest.raises(PlanError, match="the aliases expand to a file that is too large") as caught:
        parse(bomb)

    check_usage_error(caught.value)


def test_endless_nesting_does_not_crash() -> None:
    # The C parser of PyYAML 6.0.4 refuses a thousand levels itself, before it reports the first of them.
    openings = ["[", "- ", '{"a":', "a: [ 1, ["]
    code = (
        "from longshore.orchestration.plans.loading import parse\n"
        "from longshore.orchestration.errors import PlanError\n"
        f"for opening in {openings!r}:\n"
        "    try:\n        parse(opening * 5_000)\n    except PlanError as error:\n        print(error)\n"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == ["plan: line 1: nested too deeply"] * len(openings)


def test_syntax_error_with_many_brackets_keeps_the_parser_message() -> None:
    with pytest.raises(PlanError, match="invalid YAML: "):
        parse(f'name: "{"[" * 2000}\n')


@pytest.mark.parametrize("loader", [yaml.CSafeLoader, yaml.SafeLoader])
@pytest.mark.parametrize("ends", [200, 2_000])
def test_nesting_error_is_the_same_for_every_parser(loader: type, ends: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_module, "_LOADER", loader)

    with pytest.raises(PlanError) as caught:
        parse("name: p\nsteps:\n  " + "[" * ends)

    assert str(caught.value) == "plan: line 3: nested too deeply"


def test_yaml_aliases_are_resolved() -> None:
    plan = parse(HEAD + "  a: &same\n    op: noop.execute\n    with: {sleep: 1}\n  b: *same\n")

    assert plan.steps["a"] == plan.steps["b"]


JSON = '{\n\t"name": "p",\n\t"steps": {\n\t\t"a": {"op": "%s", "with": {"data": {"x": 1.5}}}\n\t}\n}\n'


def test_json_plan_errors_have_lines() -> None:
    plan = parse(JSON % "noop.execute")
    with pytest.raises(PlanError) as caught:
        parse(JSON % "noop.execut")

    assert plan.name == "p"
    check_usage_error(caught.value)
    assert caught.value.problems[0].line == 4


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_non_json_number_is_refused(number: float) -> None:
    plan = {"name": "p", "steps": {"a": {"op": "noop.execute", "with": {"data": {"x": number}}}}}

    with pytest.raises(PlanError) as caught:
        parse(json.dumps(plan))

    check_usage_error(caught.value)


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_file_is_read_with_or_without_a_bom(tmp_path: Path) -> None:
    plain = write(tmp_path, "plain.yaml", STEP)
    marked = write(tmp_path, "marked.yaml", b"\xef\xbb\xbf" + STEP.encode())

    assert load(str(plain)) == load(str(marked)) == parse(STEP)


def test_plan_has_the_folder_of_its_file(tmp_path: Path) -> None:
    path = write(tmp_path, "plan.yaml", STEP)

    assert load(str(path))._base_dir == str(tmp_path)


@pytest.mark.parametrize(
    ("content", "line", "says"),
    [
        (b"name: p\n# caf\xe9\n", 2, "the text is not UTF-8"),
        ("name: p\n".encode("utf-16"), 1, "the text is not UTF-8"),
        (b"\xff", 1, "the text is not UTF-8"),
        (b"\x1f\x8b\x08\x00" + b"\x00" * 20, 1, "the text is not UTF-8"),
    ],
)
def test_non_utf8_file_is_refused_with_the_line(tmp_path: Path, content: bytes, line: int, says: str) -> None:
    path = write(tmp_path, "plan.yaml", content)

    with pytest.raises(PlanError) as caught:
        load(str(path))

    check_usage_error(caught.value)
    assert str(caught.value) == f"{path}: line {line}: {says}"


def test_unreadable_file_is_named(tmp_path: Path) -> None:
    missing = tmp_path / "nope.yaml"
    for path, why in ((missing, "No such file or directory"), (tmp_path, "Is a directory")):
        with pytest.raises(PlanError) as caught:
            load(str(path))
        check_usage_error(caught.value)
        assert str(caught.value) == f"{path}: cannot be read: {why}"


def test_oversized_file_is_not_read_further(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_module, "MAX_PLAN_BYTES", 10)
    path = write(tmp_path, "plan.yaml", STEP)

    with pytest.raises(PlanError, match="at most 10 are allowed") as caught:
        load(str(path))

    check_usage_error(caught.value)


def test_stored_plan_is_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # given: two folders, one with a file that is not a plan
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    write(first, "release.yaml", STEP.replace("name: p", "name: first"))
    write(second, "release.yml", STEP.replace("name: p", "name: second"))
    write(second, "cleanup.json", diamond().to_json())
    write(second, "notes.txt", "none")
    monkeypatch.setenv("LONGSHORE_PLANS", f"{first}:{second}:{tmp_path / 'gone'}")
    get_settings.cache_clear()

    assert load("release").name == "first"
    assert load("cleanup") == diamond()
    assert stored() == ["cleanup", "release"]
    with pytest.raises(UnknownName) as caught:
        load("notes")
    assert caught.value.exit_code == 2
    assert str(caught.value) == (
        "no plan 'notes': neither a file nor a stored plan: "
        "give a file, or set LONGSHORE_PLANS (stored: cleanup, release)"
    )


def test_broken_stored_plan_is_reported_with_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, "release.yaml", HEAD + "  a:\n    op: nope\n")
    monkeypatch.setenv("LONGSHORE_PLANS", str(tmp_path))
    get_settings.cache_clear()

    with pytest.raises(PlanError, match="line 4, step 'a': unknown operation 'nope'") as caught:
        load("release")

    assert str(caught.value).startswith(f"{path}: ")


def test_local_file_precedes_a_stored_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "release", STEP)
    monkeypatch.chdir(tmp_path)

    assert load("release") == parse(STEP)


def test_package_may_provide_plans(monkeypatch: pytest.MonkeyPatch) -> None:
    class Entry:
        def __init__(self, name: str, offered: object) -> None:
            self.name = name
            self.offered = offered

        def load(self) -> object:
            return self.offered

    offered = [Entry("made", diamond()), Entry("function", diamond), Entry("empty", Plan("empty"))]
    monkeypatch.setattr(
        source_module,
        "entry_points",
        lambda *, group, name=None: [
            entry for entry in offered if group == "longshore.plans" and name in {None, entry.name}
        ],
    )

    assert load("made") == load("function") == diamond()
    assert stored() == ["empty", "function", "made"]
    with pytest.raises(PlanError, match="the plan has no steps"):
        load("empty")


def test_parameter_file_is_one_mapping(tmp_path: Path) -> None:
    good = write(tmp_path, "good.yaml", "tag: '1.10'\nreplicas: 3\n")
    bad_one = write(tmp_path, "bad.yaml", "- tag\n")
    broken = write(tmp_path, "broken.yaml", "tag: [\n")

    assert read_mapping(good) == {"tag": "1.10", "replicas": 3}
    for path, says in ((bad_one, "the file is not a mapping of parameters"), (broken, "line 2: invalid YAML")):
        with pytest.raises(PlanError, match=says) as caught:
            read_mapping(path)
        check_usage_error(caught.value)


def test_all_load_errors_are_reported_at_once() -> None:
    text = """
    name: bad
    typo: 1
    steps:
      a: {op: noop.execute, with: {sleeep: 1}, after: nowhere, wen: x}
      b: {op: noop.exec, after: a, foreach: abc, max_parallel: 2}
      c: {op: noop.execute, after: b, only_if: failed}
      d: {op: noop.execute, with: {data: "{{ steps.z.data }}"}, when: "params.x ==", max_parallel: 3}
      e: {op: noop.execute, foreach: [1, 2], tolerate: 1}
      f: {op: noop.execute, after: e, only_if: failed}
      g: {op: noop.execute, after: e, only_if: any_host_failed}
      h: {op: noop.execute, after: e, when: "steps.e.status == 'failed'"}
    """
    with pytest.raises(PlanError) as caught:
        parse(text)

    problems = [str(problem) for problem in caught.value.problems]
    for part in (
        "line 3: unknown field 'typo'",
        "step 'a': unknown field 'wen'",
        "step 'a': depends on 'nowhere'",
        "step 'a': noop.execute has no parameter 'sleeep'",
        "step 'b': unknown operation 'noop.exec'",
        "step 'b': foreach: expected a list, or a template",
        "step 'c': only_if: failed can never hold",
        "step 'd': data: the template reads step 'z'",
        "step 'd': when: 'params.x ==' is not a valid expression",
        "step 'd': max_parallel requires a foreach or several hosts",
        "step 'f': only_if: failed can never hold",
        "step 'h': when: the condition can never hold",
    ):
        assert any(part in line for line in problems), (part, problems)
    assert not any("step 'g'" in line for line in problems)

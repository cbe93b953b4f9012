"""The command line where it needs no server: looking at plans, and everything that can be said wrongly."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from longshore.orchestration.cli.common import read_params
from longshore.orchestration.cli.main import call, celery_plugin
from longshore.orchestration.plans.model import Plan
from tests.unit.orchestration.plans.test_loading import BAD
from tests.unit.plans import diamond

Captured = pytest.CaptureFixture[str]

PLAN = """\
name: shop
params: {tag: string, replicas: {type: integer, default: 1}}
steps:
  build:
    op: noop.execute
    with: {data: {tag: "{{ params.tag }}"}}
  test: {op: noop.execute, after: build}
  lint: {op: noop.execute, after: build}
  ship: {op: command.exec.execute, with: {argv: [ship]}, after: [test, lint]}
"""


@pytest.fixture
def plan(tmp_path: Path) -> str:
    path = tmp_path / "shop.yaml"
    path.write_text(PLAN)
    return str(path)


@pytest.fixture
def broken(tmp_path: Path) -> str:
    path = tmp_path / "broken.yaml"
    path.write_text(
        PLAN.replace("op: command.exec.execute", "op: command.exec").replace("after: build", "after: biuld")
    )
    return str(path)


def one_line(captured: Captured) -> str:
    """What was said of an error: one line on stderr, and nothing else anywhere."""
    out, err = captured.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1, err
    assert err.startswith("error: ")
    return err.strip()


# --- looking at a plan ----------------------------------------------------------------------------


def test_a_good_plan_is_told_to_be_good(plan: str, capsys: Captured) -> None:
    assert call(["plan", "validate", plan]) == 0
    assert capsys.readouterr().out == "shop: 4 steps, no problems\n"

    assert call(["plan", "validate", plan, "-o", "json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"valid": True, "plan": "shop", "steps": 4, "problems": []}


def test_every_problem_of_a_bad_plan_is_told_on_a_line_of_its_own(broken: str, capsys: Captured) -> None:
    assert call(["plan", "validate", broken]) == 2

    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        f"error: {broken}: line 7, step 'test': depends on 'biuld', which is not in the plan; did you mean 'build'?",
        f"error: {broken}: line 8, step 'lint': depends on 'biuld', which is not in the plan; did you mean 'build'?",
        f"error: {broken}: line 9, step 'ship': unknown operation 'command.exec': did you mean command.exec.execute?",
    ]


def test_problems_are_data_where_a_program_reads_them(broken: str, capsys: Captured) -> None:
    assert call(["-o", "json", "plan", "validate", broken]) == 2

    told = json.loads(capsys.readouterr().out)
    assert told["valid"] is False
    assert [(problem["step"], problem["line"]) for problem in told["problems"]] == [
        ("test", 7),
        ("lint", 8),
        ("ship", 9),
    ]


def test_levels_are_printed(plan: str, capsys: Captured) -> None:
    assert call(["plan", "levels", plan]) == 0
    assert capsys.readouterr().out == "0: build\n1: test, lint\n2: ship\n"

    assert call(["plan", "levels", plan, "--output", "json"]) == 0
    assert json.loads(capsys.readouterr().out) == [["build"], ["test", "lint"], ["ship"]]


def test_a_plan_is_explained(plan: str, capsys: Captured) -> None:
    assert call(["plan", "explain", plan]) == 0
    text = capsys.readouterr().out
    assert "  ship: command.exec.execute after test, lint" in text
    assert "  ship: WARNING: the step has no undo" in text

    assert call(["plan", "explain", plan, "-o", "json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"explanation": text.splitlines()}


@pytest.mark.parametrize(
    ("form", "begins"),
    [("text", "shop: 4 steps"), ("mermaid", "flowchart TD"), ("dot", 'digraph "shop"'), ("svg", "<svg ")],
)
def test_a_plan_is_drawn(form: str, begins: str, plan: str, capsys: Captured) -> None:
    assert call(["plan", "graph", plan, "--format", form]) == 0

    drawn = capsys.readouterr().out
    assert drawn.startswith(begins)
    if form == "svg":
        assert ET.fromstring(drawn).tag.endswith("svg")  # noqa: S314 - our own


def test_the_schema_is_printed(capsys: Captured) -> None:
    assert call(["plan", "schema"]) == 0

    assert json.loads(capsys.readouterr().out)["title"] == "Longshore plan"


def test_a_stored_plan_is_looked_at_by_its_name(plan: str, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    monkeypatch.setenv("LONGSHORE_PLANS", str(Path(plan).parent))

    assert call(["plan", "validate", "shop"]) == 0
    assert capsys.readouterr().out == "shop: 4 steps, no problems\n"


# --- what cannot be done --------------------------------------------------------------------------


#: Each bad plan with `run`, and each that is not a large one with a command that only looks.
CALLS = [("run", name) for name in BAD]
CALLS += [("plan levels", name) for command, name in CALLS if len(BAD[name][0]) < 10_000]


@pytest.mark.parametrize(("command", "bad"), CALLS)
def test_a_bad_plan_ends_every_command_with_one_line_before_anything_is_sent(
    command: str, bad: str, tmp_path: Path, capsys: Captured
) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(BAD[bad][0])

    assert call([*command.split(), str(path)]) == 2

    assert one_line(capsys).startswith(f"error: {path}: ")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["run", "nope"], "no plan 'nope': neither a file nor a stored plan"),
        (["plan", "validate", "nope"], "no plan 'nope'"),
        (["run", "nope.yaml"], "nope.yaml: cannot be read: No such file or directory"),
        (["plan", "graph", "./nope"], "nope: cannot be read: No such file or directory"),
        (["run", "{plan}", "-p", "tag"], "-p 'tag' is not name=value"),
        (["run", "{plan}", "-p", "=x"], "-p '=x' is not name=value"),
        (["run", "{plan}"], "parameter 'tag' is missing: give it with -p tag=…"),
        (["run", "{plan}", "-p", "tga=1"], "unknown parameter 'tga': use one of: tag, replicas"),
        (["run", "{plan}", "-p", "tag=1", "-p", "replicas=many"], "parameter 'replicas' must be of type integer"),
        (["run", "{plan}", "-p", "tag=1", "-p", "replicas=1.5"], "parameter 'replicas' must be of type integer"),
        (["run", "{plan}", "-p", "tag=1", "--dry-run", "-p", "x=1"], "unknown parameter 'x'"),
        (["run", "{plan}", "--params", "nope.yaml"], "nope.yaml: cannot be read"),
        (["run", "{plan}", "--params", "{folder}/list.yaml"], "list.yaml: the file is not a mapping of parameters"),
        (["run", "{plan}", "-p", "tag=1", "--run-id", "two words"], "run id 'two words' must match"),
        (["run", "{plan}", "-p", "tag=1", "--run-id", ""], "run id '' must match"),
        (["run", "{plan}", "-p", "tag=1", "--run-id", "x" * 129], "must match"),
        (["runs", "ls", "--config", "nope.yaml"], "configuration file nope.yaml does not exist"),
        (["dev"], "LONGSHORE_REDIS_URL is set: unset it for longshore dev, or start longshore worker"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_what_was_asked_wrongly_ends_with_2_and_one_line(
    arguments: list[str], says: str, plan: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Captured
) -> None:
    (tmp_path / "list.yaml").write_text("- tag\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LONGSHORE_CONFIG", "")  # --config sets it

    assert call([part.format(plan=plan, folder=tmp_path) for part in arguments]) == 2

    assert says in one_line(capsys)


@pytest.mark.parametrize(
    "arguments",
    [
        ["nope"],
        ["--nope"],
        ["run"],
        ["plan", "validate"],
        ["plan", "nope"],
        ["plan", "graph", "x.yaml", "--format", "png"],
        ["runs", "ls", "-n", "0"],
        ["runs", "ls", "-o", "xml"],
        ["runs", "show"],
    ],
    ids=" ".join,
)
def test_a_command_that_does_not_exist_or_is_not_complete_ends_with_2(arguments: list[str], capsys: Captured) -> None:
    assert call(arguments) == 2

    out, err = capsys.readouterr()
    assert out == ""
    assert "Error: " in err
    assert "Traceback" not in err


def test_a_wrong_setting_ends_a_command_with_2(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    monkeypatch.setenv("LONGSHORE_LEASE", "soon")

    assert call(["runs", "ls"]) == 2

    assert "setting lease" in one_line(capsys)


def test_a_redis_that_is_away_is_told_without_the_password(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    monkeypatch.setenv("LONGSHORE_REDIS_URL", "redis://ops:secret@127.0.0.1:1/0")

    assert call(["runs", "ls"]) == 1

    said = one_line(capsys)
    assert "redis://127.0.0.1:1/0" in said
    assert "LONGSHORE_REDIS_URL" in said
    assert "secret" not in said


def test_a_traceback_is_shown_where_it_is_asked_for(capsys: Captured) -> None:
    assert call(["-v", "run", "nope.yaml"]) == 2

    err = capsys.readouterr().err
    assert "Traceback" in err
    assert "PlanError: nope.yaml: cannot be read" in err


# --- parameters -----------------------------------------------------------------------------------


def test_parameters_on_the_command_line_come_before_those_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "values.yaml"
    file.write_text("tag: '1.0'\nreplicas: 2\n")
    plan = Plan("p", params={"tag": str, "replicas": int, "hosts": list})

    values = read_params(plan, ("replicas=3", 'hosts=["a", "b"]', "tag=a=b"), str(file))

    assert values == {"tag": "a=b", "replicas": 3, "hosts": ["a", "b"]}


def test_a_parameter_keeps_its_text_where_the_plan_says_text() -> None:
    plan = Plan("p", params={"tag": str})

    assert read_params(plan, ("tag=1.10",), None) == {"tag": "1.10"}
    assert read_params(plan, ("tag=",), None) == {"tag": ""}


# --- the parts ------------------------------------------------------------------------------------


def test_a_worker_needs_a_redis(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    monkeypatch.delenv("LONGSHORE_REDIS_URL")

    assert call(["worker"]) == 2
    assert "there is no LONGSHORE_REDIS_URL" in one_line(capsys)

    assert call(["dev", "--dry-run"]) == 0
    assert "would start a server, a worker, a beat and Flower" in capsys.readouterr().out


def test_a_worker_of_some_queues_takes_their_undo_first(capsys: Captured) -> None:
    assert call(["worker", "--dry-run", "-Q", "docker, file.undo,control,docker", "-c", "2", "-n", "w1"]) == 0

    said = capsys.readouterr().out.split()
    assert said[said.index("-Q") + 1] == "docker.undo,docker,file.undo,control"
    assert said[said.index("-n") + 1] == "w1@%h"
    assert said[said.index("-A") + 1] == "longshore.workers"

    assert call(["worker", "--dry-run", "-n", "w1", "-o", "json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["dry_run"], told["message"]) == (True, f"would run: {' '.join(told['arguments'])}")


# --- the root -------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["run", "--help"], ["plan", "-h"], ["runs", "cancel", "-h"]])
def test_help_is_there_for_every_command(arguments: list[str], capsys: Captured) -> None:
    assert call(arguments) == 0

    assert capsys.readouterr().out.startswith("Usage: longshore")


def test_the_version_is_the_packages(capsys: Captured) -> None:
    assert call(["--version"]) == 0

    assert capsys.readouterr().out == f"longshore, version {version('longshore')}\n"


def test_celery_has_the_commands_too(capsys: Captured) -> None:
    with pytest.raises(SystemExit) as ended:
        celery_plugin.main(["plan", "levels", "nope"], standalone_mode=False)

    assert ended.value.code == 2
    assert "no plan 'nope'" in one_line(capsys)


def test_help_does_not_load_what_only_running_needs() -> None:
    code = (
        "import sys\n"
        "from longshore.orchestration.cli.main import call\n"
        "call(['--help'])\n"
        "print(sorted({'celery', 'kombu', 'redis', 'rich', 'docker'} & set(sys.modules)), file=sys.stderr)\n"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stderr.strip() == "[]"


def test_a_plan_that_was_written_by_the_command_line_can_be_read_back(tmp_path: Path, capsys: Captured) -> None:
    path = tmp_path / "plan.json"
    path.write_text(diamond().to_json())

    assert call(["plan", "levels", str(path)]) == 0
    assert capsys.readouterr().out.splitlines()[1] == "1: test, lint"

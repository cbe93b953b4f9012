"""The command line without a server: plans, wrong usage, help and completion."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from xml.etree import ElementTree as ET

import click
import pytest

from longshore.orchestration.cli.inputs import read_params
from longshore.orchestration.cli.lazy import LazyCommand
from longshore.orchestration.cli.main import COMMANDS, call, celery_plugin, cli
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


def help_of(*names: str) -> str:
    """The help text of a command."""
    command: click.Command = cli
    for name in names:
        assert isinstance(command, click.Group)
        found = command.commands[name]
        command = found.load() if isinstance(found, LazyCommand) else found
    return " ".join((command.help or "").split())


def one_line(captured: Captured) -> str:
    """Return an error's text: one line on stderr, with no other output."""
    out, err = captured.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1, err
    assert re.match(r"error\[[a-z-]+\]: ", err), err
    return err.strip()


# --- plan commands --------------------------------------------------------------------------------


def test_valid_plan_is_reported_valid(plan: str, capsys: Captured) -> None:
    assert call(["plan", "validate", plan]) == 0
    assert capsys.readouterr().out == "shop: 4 steps, no problems\n"

    assert call(["plan", "validate", plan, "-o", "json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"valid": True, "plan": "shop", "steps": 4, "problems": []}


def test_each_plan_problem_is_printed_on_its_own_line(broken: str, capsys: Captured) -> None:
    assert call(["plan", "validate", broken]) == 2

    out, err = capsys.readouterr()
    assert out == ""
    assert [line.partition(f"error[plan-invalid]: {broken}: ")[2] for line in err.splitlines()] == [
        "line 7, step 'test': depends on 'biuld', which is not in the plan; did you mean 'build'?",
        "line 8, step 'lint': depends on 'biuld', which is not in the plan; did you mean 'build'?",
        "line 9, step 'ship': unknown operation 'command.exec': did you mean command.exec.execute?",
    ]


def test_json_output_lists_problems(broken: str, capsys: Captured) -> None:
    assert call(["-o", "json", "plan", "validate", broken]) == 2

    output = json.loads(capsys.readouterr().out)
    assert (output["valid"], output["code"]) == (False, "plan-invalid")
    assert [(problem["step"], problem["line"]) for problem in output["problems"]] == [
        ("test", 7),
        ("lint", 8),
        ("ship", 9),
    ]


def test_levels_are_printed(plan: str, capsys: Captured) -> None:
    assert call(["plan", "levels", plan]) == 0
    assert capsys.readouterr().out == "0: build\n1: test, lint\n2: ship\n"

    assert call(["plan", "levels", plan, "--output", "json"]) == 0
    assert json.loads(capsys.readouterr().out) == [["build"], ["test", "lint"], ["ship"]]


def test_plan_is_explained(plan: str, capsys: Captured) -> None:
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
def test_plan_is_drawn(form: str, begins: str, plan: str, capsys: Captured) -> None:
    assert call(["plan", "graph", plan, "--format", form]) == 0

    drawn = capsys.readouterr().out
    assert drawn.startswith(begins)
    if form == "svg":
        assert ET.fromstring(drawn).tag.endswith("svg")  # noqa: S314 - our own


def test_diagram_is_printed_as_json(plan: str, capsys: Captured) -> None:
    assert call(["plan", "graph", plan]) == 0
    diagram = capsys.readouterr().out
    assert call(["plan", "graph", plan, "--format", "text", "-o", "json"]) == 0

    printed = json.loads(capsys.readouterr().out)
    assert printed["format"] == "text"
    assert printed["diagram"].rstrip() == diagram.rstrip()


def test_schema_is_printed(capsys: Captured) -> None:
    assert call(["plan", "schema"]) == 0

    assert json.loads(capsys.readouterr().out)["title"] == "Longshore plan"


def test_stored_plan_is_shown_by_name(plan: str, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    monkeypatch.setenv("LONGSHORE_PLANS", str(Path(plan).parent))

    assert call(["plan", "validate", "shop"]) == 0
    assert capsys.readouterr().out == "shop: 4 steps, no problems\n"


# --- usage errors ---------------------------------------------------------------------------------


#: Each invalid plan with `run`, and each small one with a read-only command.
CALLS = [("run", name) for name in BAD]
CALLS += [("plan levels", name) for command, name in CALLS if len(BAD[name][0]) < 10_000]


@pytest.mark.parametrize(("command", "bad"), CALLS)
def test_invalid_plan_ends_every_command_before_sending(
    command: str, bad: str, tmp_path: Path, capsys: Captured
) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(BAD[bad][0])

    assert call([*command.split(), str(path)]) == 2

    assert one_line(capsys).startswith(f"error[plan-invalid]: {path}: ")


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
def test_usage_error_exits_2_with_one_line(
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
def test_unknown_or_incomplete_command_exits_2(arguments: list[str], capsys: Captured) -> None:
    assert call(arguments) == 2

    out, err = capsys.readouterr()
    assert out == ""
    assert "Error: " in err
    assert "Traceback" not in err


def test_invalid_setting_exits_2(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    monkeypatch.setenv("LONGSHORE_LEASE", "soon")

    assert call(["runs", "ls"]) == 2

    assert "setting lease" in one_line(capsys)


def test_unreachable_redis_is_reported_without_the_password(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    monkeypatch.setenv("LONGSHORE_REDIS_URL", "redis://ops:secret@127.0.0.1:1/0")

    assert call(["runs", "ls"]) == 1

    text = one_line(capsys)
    assert "redis://127.0.0.1:1/0" in text
    assert "LONGSHORE_REDIS_URL" in text
    assert "secret" not in text


def test_verbose_option_shows_a_traceback(capsys: Captured) -> None:
    assert call(["-v", "run", "nope.yaml"]) == 2

    err = capsys.readouterr().err
    assert "Traceback" in err
    assert "PlanError: nope.yaml: cannot be read" in err


# --- parameters -----------------------------------------------------------------------------------


def test_command_line_parameters_override_the_file(tmp_path: Path) -> None:
    file = tmp_path / "values.yaml"
    file.write_text("tag: '1.0'\nreplicas: 2\n")
    plan = Plan("p", params={"tag": str, "replicas": int, "hosts": list})

    values = read_params(plan, ("replicas=3", 'hosts=["a", "b"]', "tag=a=b"), str(file))

    assert values == {"tag": "a=b", "replicas": 3, "hosts": ["a", "b"]}


def test_string_parameter_keeps_its_text() -> None:
    plan = Plan("p", params={"tag": str})

    assert read_params(plan, ("tag=1.10",), None) == {"tag": "1.10"}
    assert read_params(plan, ("tag=",), None) == {"tag": ""}


# --- commands -------------------------------------------------------------------------------------


def test_worker_command_needs_redis(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    monkeypatch.delenv("LONGSHORE_REDIS_URL")

    assert call(["worker"]) == 2
    assert "LONGSHORE_REDIS_URL is not set" in one_line(capsys)

    assert call(["dev", "--dry-run"]) == 0
    assert "would start a server, a worker, a beat and Flower" in capsys.readouterr().out


def test_worker_with_queues_consumes_their_undo_first(capsys: Captured) -> None:
    assert call(["worker", "--dry-run", "-Q", "docker, file.undo,control,docker", "-c", "2", "-n", "w1"]) == 0

    text = capsys.readouterr().out.split()
    assert text[text.index("-Q") + 1] == "docker.undo,docker,file.undo,control"
    assert text[text.index("-n") + 1] == "w1@%h"
    assert text[text.index("-A") + 1] == "longshore.workers"

    assert call(["worker", "--dry-run", "-n", "w1", "-o", "json"]) == 0
    output = json.loads(capsys.readouterr().out)
    assert (output["dry_run"], output["message"]) == (True, f"would run: {' '.join(output['arguments'])}")


# --- the entry point ------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["run", "--help"], ["plan", "-h"], ["runs", "cancel", "-h"]])
def test_every_command_has_help(arguments: list[str], capsys: Captured) -> None:
    assert call(arguments) == 0

    assert capsys.readouterr().out.startswith("Usage: longshore")


def test_longshore_without_a_command_shows_the_commands_to_begin_with(capsys: Captured) -> None:
    assert call([]) == 2

    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == ""
    assert len(lines) <= 8
    assert [line.split()[1:3] for line in lines if line.startswith("  longshore")] == [
        ["init", "plan"],
        ["plan", "simulate"],
        ["run", "plan.yaml"],
    ]
    assert lines[-1].endswith("longshore --help")


def test_version_matches_the_package(capsys: Captured) -> None:
    assert call(["--version"]) == 0

    assert capsys.readouterr().out == f"longshore, version {version('longshore')}\n"


def test_celery_command_includes_longshore(capsys: Captured) -> None:
    with pytest.raises(SystemExit) as ended:
        celery_plugin.main(["plan", "levels", "nope"], standalone_mode=False)

    assert ended.value.code == 2
    assert "no plan 'nope'" in one_line(capsys)


#: Packages that `longshore --help` and the completion of a command's name do not need.
HEAVY = ("celery", "docker", "kombu", "pydantic", "redis", "rich", "yaml")
LIGHT_MODULES = {f"longshore.orchestration.cli.{name}" for name in ("common", "lazy", "main")}


def modules_of(arguments: list[str], **environment: str) -> tuple[str, set[str]]:
    """The output of a command, and the modules that its process has imported."""
    code = (
        "import sys\n"
        "from longshore.orchestration.cli.main import call\n"
        f"try: call({arguments!r})\n"
        "finally: print(*sys.modules, file=sys.stderr)\n"
    )
    env = {**os.environ, **environment}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=env)
    return done.stdout, set(done.stderr.split())


@pytest.mark.parametrize(
    ("arguments", "completed", "output"),
    [
        (["--help"], "", "Start a run of PLAN"),
        (["--version"], "", "longshore, version"),
        ([], "longshore sched", "plain,schedules\n"),
    ],
    ids=["help", "version", "completion"],
)
def test_help_and_completion_import_no_command(arguments: list[str], completed: str, output: str) -> None:
    completion = {"_LONGSHORE_COMPLETE": "bash_complete", "COMP_WORDS": completed, "COMP_CWORD": "1"}

    printed, modules = modules_of(arguments, **(completion if completed else {}))

    assert output in printed
    assert not {name.partition(".")[0] for name in modules} & set(HEAVY)
    assert not {name for name in modules if name.startswith("longshore.orchestration.plans")}
    assert {name for name in modules if name.startswith("longshore.orchestration.cli.")} == LIGHT_MODULES


def test_command_imports_no_module_of_unrelated_commands() -> None:
    _, modules = modules_of(["plan", "schema"])

    commands = {name.rpartition(".")[2] for name in modules if name.startswith("longshore.orchestration.cli.")}
    assert "plans" in commands
    assert not {"audit", "doctor", "jobs", "processes", "runs", "schedules", "stacks"} & commands


@pytest.mark.parametrize(("name", "target", "text"), COMMANDS, ids=[name for name, _, _ in COMMANDS])
def test_table_of_commands_has_the_first_help_line_of_each(name: str, target: str, text: str) -> None:
    command = cli.commands[name]
    assert isinstance(command, LazyCommand)

    loaded = command.load()

    assert command.target == f"longshore.orchestration.cli.{target}"
    assert loaded.name == name
    assert (loaded.help or "").splitlines()[0] == text
    assert loaded.get_short_help_str(100) == text


def test_local_imports_of_the_command_line_have_reasons() -> None:
    folder = Path(str(importlib.import_module("longshore.orchestration.cli").__file__)).parent
    marked = [line for path in folder.glob("*.py") for line in path.read_text().splitlines() if "PLC0415" in line]

    assert len(marked) <= 6
    assert [line for line in marked if not re.search(r"# noqa: PLC0415 - \w", line)] == []


def test_completion_reaches_the_subcommands_and_options_of_a_command() -> None:
    words = {"longshore runs res": "plain,resolve\nplain,resume\n", "longshore plan graph x --for": "plain,--format\n"}
    for typed, completed in words.items():
        count = str(len(typed.split()) - 1)
        printed, _ = modules_of([], _LONGSHORE_COMPLETE="bash_complete", COMP_WORDS=typed, COMP_CWORD=count)
        assert printed == completed


def test_exported_plan_can_be_loaded(tmp_path: Path, capsys: Captured) -> None:
    path = tmp_path / "plan.json"
    path.write_text(diamond().to_json())

    assert call(["plan", "levels", str(path)]) == 0
    assert capsys.readouterr().out.splitlines()[1] == "1: test, lint"


@pytest.mark.parametrize("command", ["worker", "beat", "dev"])
def test_other_processes_refuse_an_unknown_option(command: str, capsys: Captured) -> None:
    assert call([command, "--dry-run", "--no-such"]) == 2
    assert "--no-such" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["run", "runs watch", "job run", "restart", "orchestrate"])
def test_help_of_each_watching_command_has_the_same_words_about_ctrl_c(command: str) -> None:
    text = help_of(*command.split())

    assert "Ctrl-C ends the command after two seconds, and the run continues. " in text
    assert "A second Ctrl-C in this time cancels the run." in text

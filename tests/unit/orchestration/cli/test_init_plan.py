"""`longshore init plan`: examples that are valid, succeed and can be undone, with a schema for editors beside them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from longshore.orchestration.cli.example_plans import EXAMPLES
from longshore.orchestration.cli.main import call
from longshore.orchestration.operations import all_operations
from longshore.orchestration.plans.loading import load, schema
from tests.unit.orchestration.plans.test_schema import accepts

Captured = pytest.CaptureFixture[str]
SCHEMA_FILE = "longshore-plan.schema.json"


@pytest.fixture(autouse=True)
def _in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("kind", EXAMPLES)
def test_each_example_is_valid_and_every_simulated_failure_is_undone(
    kind: str, tmp_path: Path, capsys: Captured
) -> None:
    assert call(["init", "plan", "my plan.yaml", "--kind", kind]) == 0
    capsys.readouterr()

    assert call(["plan", "validate", "my plan.yaml"]) == 0
    assert call(["plan", "simulate", "my plan.yaml"]) == 0

    lines = capsys.readouterr().out.splitlines()[1:]
    assert lines[0] == "no step fails: succeeded, exit code 0"
    assert [line for line in lines[1:] if "exit code 1; undone: " not in line] == []
    assert load("my plan.yaml").name == "my-plan"
    assert sorted(path.name for path in tmp_path.iterdir()) == [SCHEMA_FILE, "my plan.yaml"]


@pytest.mark.parametrize("kind", EXAMPLES)
def test_each_example_has_comments_and_names_the_schema_beside_it(kind: str) -> None:
    assert call(["init", "plan", "deep/er/plan.yaml", "--kind", kind]) == 0

    file = Path("deep/er/plan.yaml")
    text = file.read_text()
    first = text.splitlines()[0]
    assert first == f"# yaml-language-server: $schema=./{SCHEMA_FILE}"
    written = json.loads((file.parent / first.partition("$schema=")[2]).read_text())
    assert written == schema()
    assert accepts(written, yaml.safe_load(text), written)
    assert text.count("# ") > 4
    assert "{file}" not in text
    assert "{name}" not in text


def test_schema_lists_the_operations_for_completion() -> None:
    for part in ("Step", "UndoSpec"):
        names = schema()["$defs"][part]["properties"]["op"]["anyOf"][0]["enum"]
        assert names == list(all_operations())


def test_existing_plan_is_not_overwritten(capsys: Captured) -> None:
    Path("plan.yaml").write_text("mine")

    assert call(["init", "plan"]) == 2

    assert "plan.yaml exists already" in capsys.readouterr().err
    assert Path("plan.yaml").read_text() == "mine"
    assert not Path(SCHEMA_FILE).exists()


def test_existing_schema_is_kept(capsys: Captured) -> None:
    Path(SCHEMA_FILE).write_text("{}")

    assert call(["init", "plan"]) == 0

    assert f"{SCHEMA_FILE} existed and was kept" in capsys.readouterr().out
    assert Path(SCHEMA_FILE).read_text() == "{}"


def test_dry_run_writes_nothing(tmp_path: Path, capsys: Captured) -> None:
    assert call(["init", "plan", "--dry-run", "-o", "json"]) == 0

    output = json.loads(capsys.readouterr().out)
    assert output["files"] == ["plan.yaml", SCHEMA_FILE]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["plan", "plan.json"], "not a YAML file"),
        (["plan", "file/plan.yaml"], "choose another file"),
        (["--dry-run", "plan"], "plan is a subcommand"),
        (["folder", "plan"], "plan is a subcommand"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_usage_of_init_plan_exits_2(arguments: list[str], says: str, capsys: Captured) -> None:
    Path("file").touch()

    assert call(["init", *arguments]) == 2

    assert says in capsys.readouterr().err
    assert [path.name for path in Path().iterdir()] == ["file"]


def test_init_still_creates_secrets_also_in_a_folder_named_plan(capsys: Captured) -> None:
    assert call(["init", "./plan"]) == 0
    assert call(["init"]) == 0

    for folder in (Path("plan"), Path("secrets")):
        assert (folder / "worker" / "keys.json").is_file()

"""What the pages on operating it say is done as they say it; and the files beside them name what there is."""

from __future__ import annotations

import configparser
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from celery import Celery
from click.testing import CliRunner

from longshore.orchestration.cli.main import cli
from longshore.orchestration.client import embedded
from longshore.orchestration.language.schedule import Scheduled
from longshore.orchestration.monitoring.metrics import _COUNTERS, _HISTOGRAMS
from longshore.orchestration.settings import Settings, get_settings

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.integration, pytest.mark.docker, pytest.mark.operations]


def page(name: str) -> str:
    return (ROOT / "docs" / "how-to" / name).read_text()


def blocks(name: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page(name), re.DOTALL)


@pytest.fixture
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """An embedded default of the test's own, ended afterwards."""
    folder = tmp_path_factory.mktemp("o")
    env = {name: value for name, value in os.environ.items() if not name.startswith("LONGSHORE_")}
    env |= {
        "LONGSHORE_STATE_DIR": str(folder), "PATH": f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}",
        "LONGSHORE_PLANS": str(ROOT / "examples/operate/plans"), "PLANS": str(ROOT / "examples/operate/plans"),
        "LONGSHORE_CONFIG": str(ROOT / "examples/operate/longshore.yaml"), "TAG": "2.1", "TZ": "UTC",
    }  # fmt: skip
    yield env
    if pid := embedded.supervisor_pid(folder):
        os.kill(pid, 15)
        while embedded.supervisor_pid(folder):
            pass


def script(name: str, env: dict[str, str], folder: Path) -> str:
    done = subprocess.run(
        ["sh", "-e", "-x", "-c", "\n".join(blocks(name, "sh"))], env=env, cwd=folder, capture_output=True, text=True,
        check=False, timeout=150,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_the_commands_of_operating_it(environment: dict[str, str], tmp_path: Path) -> None:
    said = script("operate.md", environment, tmp_path)
    for word in (
        "backup.nightly", "is paused", "is resumed", "would start plan backup", "succeeded",
        'longshore_runs_total{plan="heartbeat",state="succeeded"} 1.0', "pause schedule", "no beat has",
        "nothing to remove",
    ):  # fmt: skip
        assert word in said, (word, said)


def test_the_listing_of_schedules_in_python(environment: dict[str, str], tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", blocks("operate.md", "python")[0]],
        env=environment, capture_output=True, text=True, check=True, cwd=tmp_path,
    )  # fmt: skip
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["backup.nightly", "heartbeat", "weekly"]


def test_the_recipes_for_cron_and_ci(environment: dict[str, str], tmp_path: Path) -> None:
    script("deployment.md", environment, tmp_path)
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["state"], report["actor"], report["run_id"]) == ("succeeded", "ci-2.1", "release-2.1")
    listed = subprocess.run(
        ["longshore", "runs", "ls", "-o", "json"], env=environment, capture_output=True, text=True, check=True
    )
    assert len(json.loads(listed.stdout)) == 2  # that of cron once


def test_the_example_is_the_one_on_the_page_and_its_entries_are_celerys(
    environment: dict[str, str], tmp_path: Path
) -> None:
    shown, example = yaml.safe_load(blocks("operate.md", "yaml")[0]), ROOT / "examples/operate/longshore.yaml"
    assert shown == yaml.safe_load(example.read_text())
    assert {name: Scheduled.model_validate(said) for name, said in shown["schedules"].items()}
    code = "from celery import Celery\napp = Celery()\n" + blocks("operate.md", "python")[1]
    code += "print(sorted(app.conf.beat_schedule), {one['task'] for one in app.conf.beat_schedule.values()})"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True, cwd=tmp_path
    )
    names = ["backup.nightly", "heartbeat", "weekly"]
    assert done.stdout == f"{[f'longshore.schedule.{name}' for name in names]} {{'longshore.scheduled'}}\n"
    assert compile(blocks("operate.md", "py")[0], "page", "exec")
    assert Celery


def test_alerts_and_dashboard_name_metrics_that_there_are() -> None:
    alerts = yaml.safe_load((ROOT / "compose/alerts.yml").read_text())
    dashboard = json.loads((ROOT / "compose/grafana/longshore.json").read_text())
    asked = [rule["expr"] for group in alerts["groups"] for rule in group["rules"]]
    asked += [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    text = (ROOT / "orchestration/monitoring/metrics.py").read_text()
    known = set(re.findall(r'"(longshore_\w+)"', text))
    known |= {f"{name}_total" for _, name, _, _ in _COUNTERS}
    known |= {f"{name}{end}" for _, name, _, _ in _HISTOGRAMS for end in ("_bucket", "_sum", "_count")}
    used = {name for expr in asked for name in re.findall(r"longshore_\w+", expr)}
    assert used <= known, used - known
    assert len(used) > 12
    described = set(re.findall(r"`(longshore_\w+)`", page("operate.md")))
    assert {name for name in known if not name.endswith(("_bucket", "_sum", "_count"))} >= described
    for rule in (rule for group in alerts["groups"] for rule in group["rules"]):
        assert rule["annotations"]["summary"]
        assert rule["labels"]["severity"] in {"warning", "critical"}


def test_the_units_start_commands_that_there_are_and_whatever_falls() -> None:
    units = sorted((ROOT / "compose/systemd").glob("*.service"))
    assert len(units) == 3
    for path in units:
        unit = configparser.ConfigParser(strict=False, interpolation=None)
        unit.optionxform = str  # type: ignore[assignment, method-assign]
        unit.read_string(path.read_text())
        assert unit["Service"]["Restart"] == "always", path
        program, *arguments = shlex.split(unit["Service"]["ExecStart"].replace("%i", "noop"))
        assert program.endswith("/longshore")
        env = {"LONGSHORE_REDIS_URL": "redis://127.0.0.1:1/0", "LONGSHORE_STATE_DIR": "/nonexistent"}
        get_settings.cache_clear()
        said = CliRunner(env=env).invoke(cli, ["--dry-run", *arguments])
        get_settings.cache_clear()
        assert said.output.startswith("would run:"), (path, said.output, said.exception)


def test_every_setting_is_told_of_somewhere() -> None:
    written = [path for path in (ROOT / "docs").rglob("*.md") if path.parent.name != "reference"]
    text = "\n".join(path.read_text() for path in [ROOT / "README.md", *written])
    shown = {name: name.upper() for name in Settings.model_fields}
    assert [name for name, word in shown.items() if word not in text] == []

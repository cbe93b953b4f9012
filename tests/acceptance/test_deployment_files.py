"""The files of the deployment name metrics, commands and settings that exist."""

from __future__ import annotations

import configparser
import json
import re
import shlex
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from longshore.orchestration.cli.main import cli
from longshore.orchestration.monitoring.metrics import _COUNTERS, _HISTOGRAMS
from longshore.orchestration.settings import Settings, get_settings

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.integration, pytest.mark.docker, pytest.mark.operations]


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


def test_every_setting_has_a_meaning_in_the_reference() -> None:
    text = (ROOT / "docs" / "reference" / "settings.md").read_text()
    described = re.findall(r"^\| `LONGSHORE_(\w+)` \|.*\| *(\w[^|]*) \|$", text, re.M)

    assert [name for name in Settings.model_fields if name.upper() not in dict(described)] == []

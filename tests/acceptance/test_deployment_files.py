"""The files of the deployment name metrics, commands and settings that exist."""

from __future__ import annotations

import configparser
import json
import re
import shlex
import subprocess
from pathlib import Path
from string import Template

import pytest
import yaml
from click.testing import CliRunner

from longshore.orchestration.cli.main import cli
from longshore.orchestration.monitoring.metrics import _COUNTERS, _HISTOGRAMS
from longshore.orchestration.settings import get_settings
from tests.acceptance.pages import DOCS, blocks

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.integration, pytest.mark.docker, pytest.mark.operations]


def test_alerts_and_dashboard_name_existing_metrics() -> None:
    alerts = yaml.safe_load((ROOT / "compose/alerts.yml").read_text())
    dashboard = json.loads((ROOT / "compose/grafana/longshore.json").read_text())
    expressions = [rule["expr"] for group in alerts["groups"] for rule in group["rules"]]
    expressions += [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    text = (ROOT / "orchestration/monitoring/metrics.py").read_text()
    known = set(re.findall(r'"(longshore_\w+)"', text))
    known |= {f"{name}_total" for _, name, _, _ in _COUNTERS}
    known |= {f"{name}{end}" for _, name, _, _ in _HISTOGRAMS for end in ("_bucket", "_sum", "_count")}
    used = {name for expr in expressions for name in re.findall(r"longshore_\w+", expr)}
    assert used <= known, used - known
    assert len(used) > 12
    for rule in (rule for group in alerts["groups"] for rule in group["rules"]):
        assert rule["annotations"]["summary"]
        assert rule["labels"]["severity"] in {"warning", "critical"}


def test_systemd_units_start_existing_commands_and_restart_them(tmp_path: Path) -> None:
    # Given the files and the units of the page
    page = [block.body for block in blocks(DOCS / "how-to/deployment.md") if block.language == "sh"]
    (settings,) = [body for body in page if "QUEUES=" in body]
    subprocess.run(["sh", "-ec", settings.replace("/etc/longshore", str(tmp_path))], check=True)
    enabled = [name for body in page for line in re.findall(r"enable --now (.*)", body) for name in line.split()]
    assert len(enabled) == 5
    served: list[str] = []
    for name in enabled:
        # systemd escapes all other characters.
        assert re.fullmatch(r"[A-Za-z0-9:_.-]+@?[A-Za-z0-9:_.]*", name)
        family, at, instance = name.partition("@")
        unit = configparser.ConfigParser(strict=False, interpolation=None)
        unit.optionxform = str  # type: ignore[assignment, method-assign]
        text = (ROOT / f"compose/systemd/{family}{at}.service").read_text().replace("%i", instance)
        unit.read_string(text)
        assert unit["Service"]["Restart"] == "always", name
        env = {"LONGSHORE_STATE_DIR": "/nonexistent"}
        for file in re.findall(r"^EnvironmentFile=/etc/longshore/(.*)$", text, re.M):
            env |= dict(line.split("=", 1) for line in (tmp_path / file).read_text().splitlines())
        served += env.get("QUEUES", "").split(",") if at else []
        program, *arguments = shlex.split(Template(unit["Service"]["ExecStart"]).substitute(env))
        assert program == "/opt/longshore/bin/longshore"
        get_settings.cache_clear()
        result = CliRunner(env=env).invoke(cli, ["--dry-run", *arguments])
        get_settings.cache_clear()
        assert result.output.startswith("would run:"), (name, result.output, result.exception)

    # Then these workers serve the queues of the workers in Compose
    services = yaml.safe_load((ROOT / "compose/compose.yaml").read_text())["services"]
    composed = [services[name]["command"][2].split(",") for name in ("control", "engine", "worker")]
    assert sorted(served) == sorted(queue for queues in composed for queue in queues)

"""The commands that doctor and the alerts print for open breakers."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml

from longshore.orchestration.cli.breakers import breaker_group
from longshore.orchestration.installation.doctor import _work as examine
from longshore.orchestration.settings import Settings
from longshore.orchestration.store.breakers import Breakers
from longshore.orchestration.store.hosts import Hosts, Node
from longshore.tasks.simulation.memory_store import MemoryStore

ALERTS = Path(__file__).resolve().parents[4] / "compose/alerts.yml"
SERVICES = ["registry.example.org", "job backup@web1"]


def service_in(command: str) -> str:
    """The service of a `longshore breaker reset` as a shell and the command line read it."""
    program, group, name, *arguments = shlex.split(command)
    assert (program, group) == ("longshore", "breaker")
    return str(breaker_group.commands[name].make_context(name, arguments).params["service"])


@pytest.mark.parametrize("service", SERVICES)
def test_remedy_for_an_open_breaker_is_a_complete_command(service: str) -> None:
    store = MemoryStore(Settings())
    Breakers(store).hold(service, "it failed")

    (remedy,) = [each.remedy for each in examine(store) if service in each.what]

    assert service_in(remedy[remedy.index("longshore ") :]) == service


@pytest.mark.parametrize("service", SERVICES)
def test_alert_for_an_open_breaker_prints_a_complete_command(service: str) -> None:
    (text,) = re.findall(r'description: ".*?(longshore breaker reset .*?) closes', ALERTS.read_text())
    yaml.safe_load(ALERTS.read_text())

    assert service_in(text.replace("{{ $labels.service }}", service)) == service


@pytest.mark.parametrize("stopped", [False, True])
def test_remedy_for_a_drained_host_names_forget_if_no_worker_runs(stopped: bool) -> None:
    store = MemoryStore(Settings())
    hosts = Hosts(store)
    hosts.register("web1", Node("one@web1"))
    hosts.drain("web1", "ann")
    if stopped:
        hosts.leave("web1", "one@web1")

    (remedy,) = [each.remedy for each in examine(store) if "web1 is drained" in each.what]

    assert "longshore hosts undrain web1" in remedy
    assert ("longshore hosts forget web1" in remedy) is stopped

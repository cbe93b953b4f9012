"""`longshore restart` on inventories in memory: which services a run would restart, and how."""

from __future__ import annotations

from typing import Any

import pytest

from longshore.orchestration.cli import stacks as command
from longshore.orchestration.cli.main import call
from longshore.orchestration.errors import UsageError
from longshore.orchestration.operations.stacks import StackSpec
from longshore.orchestration.stacks.inventory import Inventory, Project, Remote, Replica, Service
from longshore.orchestration.stacks.rules import StackRules
from longshore.orchestration.stacks.selection import Selection, choose

OLD, NEW = "sha256:" + "a" * 64, "sha256:" + "b" * 64


def service(image_id: str, **labels: str) -> Service:
    replica = Replica(id="1", name="c1", number=1, image_id=OLD, hash="h", state="running", start="s")
    return Service(image="shop:1", image_id=image_id, hash="h", replicas=1, containers=[replica], labels=labels)


class OneHost:
    """Stacks of one host, whose start ends with an error instead of a run."""

    rules = StackRules()

    def __init__(self) -> None:
        services = {"web": service(OLD, tier="front"), "db": service(NEW), "api": service(OLD)}
        self.seen = {"web1": Inventory(engine="1", projects={"shop": Project(services=services)})}
        self.started: dict[str, str] = {}
        self.waited = False

    def wait_for_active_runs(self, _hosts: Any) -> None:
        self.waited = True

    def select(self, _hosts: Any, *, labels: Any = (), **_options: Any) -> Selection:
        return choose(self.rules, self.seen, {}, labels=labels)

    def start(self, found: Selection, *_args: Any, **_options: Any) -> None:
        self.started = {one.name: one.action for one in found.chosen}
        raise UsageError("no run in this test")


@pytest.mark.parametrize(
    ("arguments", "started"),
    [
        ([], {"shop/db": "up"}),
        (["shop"], {"shop/web": "restart", "shop/db": "up", "shop/api": "restart"}),
        (["shop", "--label", "tier=front"], {"shop/web": "restart"}),
        (["shop/db", "shop/web", "--label", "com.docker.compose.service=db"], {"shop/db": "up"}),
        (["shop/db", "--label", "tier=front"], {}),
    ],
)
def test_labels_filter_named_services_and_keep_the_action_of_drift(
    arguments: list[str], started: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    host = OneHost()
    monkeypatch.setattr(command, "_stacks", lambda: host)

    assert call(["restart", *arguments]) == 2

    assert host.started == started


@pytest.mark.parametrize(("arguments", "waits"), [([], True), (["--dry-run"], False)])
def test_only_a_restart_that_may_change_services_waits_for_other_runs(
    arguments: list[str], waits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = OneHost()
    monkeypatch.setattr(command, "_stacks", lambda: host)

    assert call(["restart", "--label", "tier=nothing", *arguments]) == 0

    assert host.waited is waits


def test_only_notes_about_services_that_stay_as_they_are_begin_with_left_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    host = OneHost()
    host.rules = StackRules(stacks={"shpo": StackSpec()})
    web, more = service(OLD), {"state": "paused"}
    paused = [one.model_copy(update=more) for one in web.containers]
    services = {
        "web": web.model_copy(update={"containers": paused}),
        "db": web.model_copy(update={"containers": paused, "replicas": 2}),
        "api": web.model_copy(update={"label_error": "longshore.files: 'x' is not an action"}),
    }
    remotes = {"shop:1": Remote(error="timeout")}
    host.seen = {"web1": Inventory(projects={"shop": Project(services=services)}, remotes=remotes)}
    monkeypatch.setattr(command, "_stacks", lambda: host)

    assert call(["select"]) == 0

    assert [line for line in capsys.readouterr().out.splitlines() if ": " in line] == [
        "note: shpo: no such project, but the file of LONGSHORE_STACKS has rules for it",
        "note: shop/api: longshore.files: 'x' is not an action",
        "note: shop/db: paused",
        "left alone: shop/web: paused",
        "note: image shop:1: its registry could not be queried: timeout",
    ]

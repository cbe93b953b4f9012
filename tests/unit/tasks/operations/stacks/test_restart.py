"""The choice of the actions of `stacks.restart`, on an inventory in memory."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from longshore.orchestration.operations.stacks import RestartParams
from longshore.orchestration.stacks.inventory import Inventory, Project, Replica, Service
from longshore.tasks.implementation import Context
from longshore.tasks.operations.stacks import restart
from longshore.tasks.simulation.engine import MemoryEngine

IMAGE = "sha256:" + "a" * 64


@pytest.fixture
def project(monkeypatch: pytest.MonkeyPatch) -> Project:
    """A project with an up-to-date service `web`, and a service `db` that misses a container."""
    replica = Replica(id="1", name="web-1", number=1, image_id=IMAGE, hash="h", state="running", start="s")
    described = {"image": "shop:1", "image_id": IMAGE, "hash": "h", "replicas": 1}
    made = Project(services={"web": Service(**described, containers=[replica]), "db": Service(**described)})
    found = SimpleNamespace(look=lambda _name: Inventory(projects={"shop": made}))
    target = SimpleNamespace(resolve=lambda *_: SimpleNamespace(services={}))
    monkeypatch.setattr(restart, "HostInspection", lambda *_: found)
    monkeypatch.setattr(restart, "Compose", lambda *_: target)
    monkeypatch.setattr(restart, "_source", lambda *_: None)
    monkeypatch.setattr(restart, "members", lambda *_: [])
    monkeypatch.setattr(restart, "inventory_of", lambda _found: (None, ""))
    return made


@pytest.mark.parametrize(
    ("index", "more", "moved", "actions"),
    [
        ("", {}, False, {"web": "restart", "db": "redeploy"}),
        ("former", {}, True, {"db": "up"}),
        ("former", {"asked": True}, True, {"web": "restart", "db": "redeploy"}),
        ("present", {}, False, {"web": "restart", "db": "redeploy"}),
    ],
    ids=["without-index", "changed-since", "changed-and-asked", "unchanged"],
)
def test_actions_are_chosen_again_only_if_the_project_differs_from_a_given_index(
    index: str, more: dict[str, Any], moved: bool, actions: dict[str, str], project: Project
) -> None:
    index = project.fingerprint if index == "present" else index
    services = {"web": {"do": "restart"}, "db": {"do": "redeploy"}}
    params = RestartParams(project="shop", services=services, index=index, **more)

    ctx = Context(run_id="r1", step="s", plan="p", caches=dict)

    found = restart.Restart._inspect(ctx, MemoryEngine(), params)

    assert found.moved is moved
    assert {name: one.do for name, one in found.todo.items()} == actions

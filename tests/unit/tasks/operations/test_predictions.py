"""An operation that derives `act` and `predict` from one `change` predicts its later outcome, and predicts without
an effect.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from longshore.orchestration.operations import Kind, all_operations, find
from longshore.orchestration.settings import get_settings
from longshore.orchestration.store.caches import Caches, Entry
from longshore.orchestration.store.objects import Objects
from longshore.tasks.host.engine import factory
from longshore.tasks.implementation import Implementation, implementation
from longshore.tasks.operations import cache, docker, network, noop
from longshore.tasks.operations.docker import gc
from longshore.tasks.simulation.engine import MemoryEngine
from longshore.tasks.simulation.memory_store import MemoryStore
from tests.unit.tasks.operations.fake_step import Doing

#: Importing these modules registers the implementations.
FAMILIES = (cache, docker, noop)

#: Parameters by operation, for the objects of `world`; {home} is the folder of the test.
CASES: dict[str, list[dict[str, Any]]] = {
    "cache.check.get": [{"cache": "prices"}, {"cache": "nothing"}],
    "cache.invalidate.execute": [{"cache": "prices"}, {"cache": "nothing"}],
    "cache.rebuild.execute": [
        {"cache": "prices", "builder": "noop.execute"},
        {"cache": "nothing", "builder": "noop.execute"},
    ],
    "docker.build.execute": [{"image": "made:1", "context": "{home}"}],
    "docker.create.execute": [{"image": "shop:1", "name": "new"}],
    "docker.digest.get": [{"image": "there:1"}],
    "docker.exec.execute": [{"container": "web", "argv": ["true"]}],
    "docker.gc.execute": [{}],
    "docker.image-remove.execute": [{"image": "spare:1"}, {"image": "nothing:1"}],
    "docker.inspect.get": [{"container": "web"}, {"container": "nothing"}],
    "docker.list.get": [{}],
    "docker.logs.get": [{"container": "web"}],
    "docker.network-create.execute": [{"name": "fresh"}, {"name": "there"}],
    "docker.network-inspect.get": [{"name": "there"}, {"name": "nothing"}],
    "docker.network-remove.execute": [{"name": "there"}, {"name": "nothing"}],
    "docker.pull.execute": [
        {"image": "there:1"},
        {"image": "task:1", "policy": "missing"},
        {"image": "shop:1", "policy": "always"},
    ],
    "docker.push.execute": [{"image": "localhost/shop:1"}],
    "docker.remove.execute": [{"container": "idle"}, {"container": "web", "force": True}, {"container": "nothing"}],
    "docker.rename.execute": [{"container": "web", "name": "front"}, {"container": "web", "name": "web"}],
    "docker.restart.execute": [{"container": "web"}, {"container": "idle"}],
    "docker.run.execute": [{"image": "task:1"}],
    "docker.start.execute": [{"container": "idle"}, {"container": "web"}],
    "docker.stop.execute": [{"container": "web"}, {"container": "idle"}],
    "docker.tag.execute": [{"image": "shop:1", "name": "shop:2"}, {"image": "shop:1", "name": "spare:1"}],
    "docker.update.execute": [{"container": "web", "memory": "64m"}, {"container": "web", "restart": "always"}],
    "docker.volume-create.execute": [{"name": "fresh"}, {"name": "there"}],
    "docker.volume-inspect.get": [{"name": "there"}, {"name": "nothing"}],
    "docker.volume-remove.execute": [{"name": "there", "data_loss": True}, {"name": "nothing", "data_loss": True}],
    "docker.wait.get": [{"container": "web", "min_healthy_time": 0}],
    "file.changed.get": [{"name": "old", "content": "text"}],
    "file.deploy.execute": [
        {"path": "{home}/new", "content": "text"},
        {"path": "{home}/Dockerfile", "content": "FROM scratch\n"},
        {"path": "{home}/Dockerfile", "content": "FROM shop\n", "mode": "0600"},
    ],
    "file.status.get": [{"path": "{home}/Dockerfile"}],
    "file.undeploy.execute": [{"path": "{home}/Dockerfile"}, {"path": "{home}/nothing"}],
    "file.upload": [
        {"name": "new", "content": "text"},
        {"name": "old", "content": "text"},
        {"name": "old", "content": "other", "force": True},
    ],
    "noop.execute": [{}, {"changed": False}],
    "network.dns.get": [{}],
    "network.dns.update": [{"servers": ["192.0.2.1"]}, {"servers": ["192.0.2.9"]}],
}


class World:
    """An engine, a store and a folder, with their content."""

    def __init__(self, home: Path, state: Path) -> None:
        self.home, self.state = home, state
        self.engine = MemoryEngine(exit_codes={"task:1": 0})
        for image in ("shop:1", "task:1", "localhost/shop:1", "spare:1"):
            self.engine.add_image(image)
        self.engine.registry |= {"there:1": "sha256:there", "shop:1": "sha256:newer"}
        self.engine.run("web", "shop:1")
        self.engine.run("idle", "shop:1")
        self.engine.stop("idle")
        self.engine.create_network({"Name": "there"})
        self.engine.create_volume({"Name": "there"})
        self.store = MemoryStore(get_settings())
        self.objects, self.caches = Objects(self.store), Caches(self.store)
        Doing("file.upload", self.context("prepare"), name="old", content="text").act()
        number = self.caches.number("prices")
        self.caches.swap("prices", Entry(number, {}, "", 1, 1, 1e9, "prepare"))
        (home / "Dockerfile").write_text("FROM scratch\n")
        (home / "resolv.conf").write_text("nameserver 192.0.2.9\n")

    def context(self, run_id: str) -> dict[str, Any]:
        return {"run_id": run_id, "objects": lambda: self.objects, "caches": lambda: self.caches}

    def step(self, operation: str, run_id: str, params: dict[str, Any]) -> Doing:
        texts = {key: value.format(home=self.home) for key, value in params.items() if isinstance(value, str)}
        return Doing(operation, self.context(run_id), **params | texts)

    def look(self) -> Any:
        """All data that a step can change."""
        client: Any = self.store.client
        keys = {key: client.hgetall(key) if client.type(key) == "hash" else "" for key in client.scan_iter()}
        files = [path for folder in (self.home, self.state) for path in folder.rglob("*")]
        held = {path: (path.stat().st_mode, path.read_bytes() if path.is_file() else b"") for path in files}
        return {key: repr(value) for key, value in vars(self.engine).items() if key != "_times"}, keys, held


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    home, state = tmp_path / "home", tmp_path / "state"
    home.mkdir()
    monkeypatch.setenv("LONGSHORE_STATE_DIR", str(state))
    get_settings.cache_clear()
    made = World(home, state)
    monkeypatch.setattr(network, "_PATH", str(home / "resolv.conf"))
    monkeypatch.setattr(gc, "Store", lambda: made.store)
    before = factory._factory
    factory.use_engines(lambda _url: made.engine)
    yield made
    factory.use_engines(before)
    get_settings.cache_clear()


def derived() -> set[str]:
    """The operations with one `change` for `act` and `predict`."""
    families = ("cache.", "docker.", "file.", "network.dns.", "noop.")  # the other operations need a server or Compose
    mine = (name for name in all_operations() if name.startswith(families))
    return {name for name in mine if type(implementation(name)).change is not Implementation.change}


def test_each_operation_has_a_case() -> None:
    assert derived() == CASES.keys()


@pytest.mark.parametrize(("name", "params"), [(name, params) for name, found in CASES.items() for params in found])
def test_prediction_agrees_with_the_step(name: str, params: dict[str, Any], world: World) -> None:
    before = world.look()
    step = world.step(name, "first", params)

    predicted = step.predict()

    assert predicted.impossible is None
    assert world.look() == before, "the prediction had an effect"
    outcome = step.act()
    assert predicted.changed in {outcome.changed, None}
    if find(name).kind is Kind.CONVERGES:
        assert world.step(name, "second", params).predict().changed is not True
        assert not world.step(name, "second", params).act().changed


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("docker.start.execute", {"container": "nothing"}),
        ("docker.tag.execute", {"image": "nothing:1", "name": "shop:2"}),
        ("docker.remove.execute", {"container": "web"}),
        ("docker.volume-remove.execute", {"name": "there"}),
        ("file.upload", {"name": "old", "content": "other"}),
    ],
)
def test_obstacle_is_predicted(name: str, params: dict[str, Any], world: World) -> None:
    step = world.step(name, "first", params)

    predicted = step.predict()

    with pytest.raises(Exception) as refused:  # noqa: PT011 - of any class
        step.act()
    assert predicted.impossible == str(refused.value)
    step.ctx.has_upstream = True
    later = step.predict()
    assert (later.changed, later.impossible) == (None, None), (
        "the obstacle is final, although an earlier step may remove it"
    )

"""The object store, and `file.upload`, `file.changed`, `file.deploy` with it."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from longshore.orchestration.authoring.context import HostFacts
from longshore.orchestration.errors import OperationError, Preflight
from longshore.orchestration.settings import get_settings
from longshore.orchestration.store.objects import Entry, Objects
from longshore.orchestration.store.run_store import Store
from tests.servers import RedisServer
from tests.store.stored_run import settings_for
from tests.unit.tasks.operations.fake_step import Doing


@pytest.fixture
def objects(server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Objects]:
    monkeypatch.setenv("LONGSHORE_STATE_DIR", str(tmp_path / "state"))
    get_settings.cache_clear()
    store = Store(settings_for(server.url, max_object=100_000))
    yield Objects(store)
    store.client.close()
    get_settings.cache_clear()


def step(objects: Objects, operation: str, run_id: str = "r1", /, **params: Any) -> Doing:
    context = {"run_id": run_id, "objects": lambda: objects, "host": HostFacts("web1", facts={"arch": "x86_64"})}
    return Doing(operation, context, **params)


def test_object_is_replaced_only_with_its_current_digest(objects: Objects) -> None:
    one, two = Entry(b"\x00one\xff"), Entry(b"two", "template", "ann")
    assert objects.get("app.conf") is None
    assert objects.put("app.conf", one, was=None)
    assert not objects.put("app.conf", two, was=None)
    assert objects.get("app.conf") == one
    assert objects.put("app.conf", two, was=one.sha256)
    assert objects.get("app.conf") == two
    assert objects.put("app.conf", None, was=two.sha256)
    assert objects.get("app.conf") is None
    with pytest.raises(Preflight, match="at most 100000 may be stored"):
        objects.put("large", Entry(b"x" * 100_001), was=None)


def test_upload_reports_its_change_and_is_undone(objects: Objects) -> None:
    changed = step(objects, "file.changed.get", name="app.conf", content="one").act()
    assert (changed.changed, changed.data["differs"]) == (False, True)
    upload = step(objects, "file.upload", name="app.conf", content="one")
    assert upload.predict().changed is True
    assert objects.get("app.conf") is None
    assert upload.act().changed
    assert not step(objects, "file.changed.get", name="app.conf", content="one").act().data["differs"]
    again = step(objects, "file.upload", "r2", name="app.conf", content="one")
    assert again.predict().changed is False
    assert not again.act().changed
    assert not again.undo().changed
    other = step(objects, "file.upload", "r3", name="app.conf", content="two")
    assert other.predict().impossible
    with pytest.raises(Preflight, match="force"):
        other.act()
    forced = step(objects, "file.upload", "r4", name="app.conf", content="two", force=True)
    assert forced.act().changed
    assert forced.undo().changed
    assert objects.need("app.conf").data == b"one"
    assert not forced.undo().changed
    assert upload.undo().changed
    assert objects.get("app.conf") is None


def test_undo_keeps_an_upload_replaced_since(objects: Objects) -> None:
    upload = step(objects, "file.upload", name="app.conf", content="one")
    upload.act()
    objects.put("app.conf", Entry(b"theirs"), was=objects.need("app.conf").sha256)
    with pytest.raises(OperationError, match="outside of this run"):
        upload.undo()


def test_template_is_rendered_on_the_deploying_host(objects: Objects, tmp_path: Path) -> None:
    content = "host={{ host.name }} arch={{ host.facts.arch }} run={{ run.id }} port={{ port }}\n"
    step(objects, "file.upload", name="app.conf", content=content, content_type="template").act()
    path = tmp_path / "app.conf"
    deploy = step(objects, "file.deploy.execute", path=str(path), object="app.conf", vars={"port": 80}, mode="0640")
    assert deploy.predict().changed is True
    assert deploy.act().changed
    assert path.read_text() == "host=web1 arch=x86_64 run=r1 port=80\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    with pytest.raises(Preflight, match="port"):
        step(objects, "file.deploy.execute", path=str(path), object="app.conf").act()
    with pytest.raises(Preflight, match="object 'nothing' does not exist"):
        step(objects, "file.deploy.execute", path=str(path), object="nothing").act()


def test_file_status_reads_the_disk(objects: Objects, tmp_path: Path) -> None:
    path = tmp_path / "app.conf"

    def status() -> dict[str, Any]:
        outcome = step(objects, "file.status.get", path=str(path)).act()
        assert not outcome.changed
        return outcome.data

    assert status()["status"] == "missing"
    deploy = step(objects, "file.deploy.execute", path=str(path), content="one", mode="0600")
    deploy.act()
    assert status()["status"] == "in-sync"
    path.write_text("two")
    path.chmod(0o644)
    assert (status()["status"], status()["differs"]) == ("drifted", ["content", "mode"])
    repair = step(objects, "file.deploy.execute", "r2", path=str(path), content="one", mode="0600")
    assert repair.act().changed
    assert status()["status"] == "in-sync"
    undeploy = step(objects, "file.undeploy.execute", "r3", path=str(path))
    assert undeploy.predict().changed is True
    assert undeploy.act().changed
    assert status()["status"] == "missing"
    assert not step(objects, "file.undeploy.execute", "r4", path=str(path)).act().changed
    assert undeploy.undo().changed
    assert status()["status"] == "in-sync"
    undeploy.act()
    path.write_text("theirs")
    with pytest.raises(OperationError, match="outside of this run"):
        undeploy.undo()


def test_file_may_come_from_any_supported_url(objects: Objects, tmp_path: Path) -> None:
    source, path = tmp_path / "source", tmp_path / "target"
    source.write_bytes(b"\x00from a url")
    step(objects, "file.deploy.execute", path=str(path), object=f"file://{source}").act()
    assert path.read_bytes() == b"\x00from a url"
    for url, why in (
        (f"file://{tmp_path}/nothing", "does not exist"),
        ("nosuch://x/y", "nosuch"),
    ):
        with pytest.raises(Preflight, match=why):
            step(objects, "file.deploy.execute", path=str(path), object=url).act()

"""Inspection of a host, with an in-memory engine and fixed answers of Compose: queries and results."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from longshore.orchestration.errors import OperationError, StepCancelled
from longshore.orchestration.operations.stacks import InspectParams
from longshore.orchestration.settings import get_settings
from longshore.orchestration.stacks.drift import Note, Stale, find_drift
from longshore.orchestration.stacks.inventory import Inventory
from longshore.orchestration.stacks.rules import StackRules
from longshore.orchestration.stacks.selection import choose
from longshore.tasks.host.engine.port import Image
from longshore.tasks.implementation import Context
from longshore.tasks.operations.compose.cli import Compose, Resolved, Source
from longshore.tasks.operations.compose.inputs import digest_of_file
from longshore.tasks.operations.stacks.inspect_host import HostInspection
from longshore.tasks.simulation.engine import MemoryEngine

LABEL = "com.docker.compose."


class Engine(MemoryEngine):
    """An engine with bind mounts, endpoints and a registry, which records its calls."""

    def prepare(self, folder: Path) -> None:
        self.folder = folder
        self.mounts: dict[str, list[str]] = {}
        self.asked: list[str] = []
        self.limited = False
        self.has_end_points = True
        self.digests = {"shop:1": "sha256:old"}

    def rows(self, filters: Mapping[str, list[str]], *, all_of_them: bool) -> list[dict[str, Any]]:
        self.asked.append("rows")
        found = super().rows(filters, all_of_them=all_of_them)
        for row in found:
            one = self._containers[row["Id"]]
            row["Mounts"] = [{"Type": "bind", "Source": path} for path in self.mounts.get(one.name, [])]
            row["Created"] = self.made[one.id]
            point = f"{one.id} {one.started_at}" if one.running and self.has_end_points else ""
            row["NetworkSettings"] = {"Networks": {"n": {"EndpointID": point}}}
        return found

    made: dict[str, int] = {}

    def images(self) -> list[Image]:
        self.asked.append("images")
        return [Image(one.id, one.tags, tuple(f"shop@{d}" for d in self.digests.values())) for one in super().images()]

    def events(self, *args: Any) -> list[dict[str, Any]]:
        self.asked.append("events")
        return super().events(*args)

    def inspect(self, container: str) -> Any:
        self.asked.append("inspect")
        return super().inspect(container)

    def remote_digest(self, ref: str, *, login: Any) -> str:
        self.asked.append(f"registry {ref}")
        if self.limited:
            raise OperationError("toomanyrequests: you have been here too often")
        return self.digests[ref]

    def _now(self) -> str:
        return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime()) + f".{time.time_ns() % 10**9:09}Z"


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Engine:
    monkeypatch.setenv("LONGSHORE_STATE_DIR", str(tmp_path / "state"))
    get_settings.cache_clear()
    made = Engine()
    made.prepare(tmp_path)
    made.add_image("shop:1")
    (tmp_path / "compose.yaml").write_text("services: {}")

    def resolve(_self: Compose, source: Source, _services: Any = None) -> Resolved:
        made.asked.append("compose")
        services: dict[str, Any] = {"web": {"image": "shop:1", "restart": "always"}, "once": {"image": "shop:1"}}
        services["web"]["depends_on"] = {"once": {"condition": "service_started"}}
        return Resolved("shop", "{}", services, {"web": "h1", "once": "h2"}, source)

    monkeypatch.setattr(Compose, "resolve", resolve)
    return made


def start(engine: Engine, service: str, *, created: float = 0.0) -> str:
    hashes = {"web": "h1", "once": "h2"}
    labels = {"project": "shop", "service": service, "config-hash": hashes[service], "container-number": "1"}
    labels |= {"project.config_files": str(engine.folder / "compose.yaml"), "project.working_dir": str(engine.folder)}
    config = {"Image": "shop:1", "Labels": {LABEL + key: value for key, value in labels.items()}}
    made, _ = engine.create(f"shop-{service}-1", config)
    engine.made[made] = int(created or time.time())
    engine.start(made)
    return made


def look(engine: Engine, known: Inventory | None = None, **params: Any) -> Inventory:
    engine.asked.clear()
    ctx = Context(run_id="r1", step="s", plan="p")
    read, keep = params.pop("read", True), params.pop("keep", True)
    return HostInspection(
        ctx, engine, InspectParams(**params), known, read, known.remotes if known else {}, keep
    ).look()


def drop_snapshot(engine: Engine) -> None:
    """Drop the snapshot of the previous inspection."""
    shutil.rmtree(engine.folder / "state" / "starts")


def findings(seen: Inventory) -> dict[str, str]:
    return {
        one.service: one.text if isinstance(one, Note) else ", ".join(map(str, one.reasons))
        for one in find_drift("h", seen)
        if isinstance(one, Note | Stale)
    }


def test_stop_origin_is_read_from_events_then_from_the_previous_snapshot(engine: Engine) -> None:
    start(engine, "once")
    web = start(engine, "web")
    seen = look(engine)
    assert findings(seen) == {}
    assert engine.asked == ["rows", "images", "compose"]
    engine.stop(web)
    seen = look(engine, seen)
    assert findings(seen) == {"web": "stopped by hand"}
    assert engine.asked == ["rows", "images", "events"]
    engine._events.clear()  # the engine loses its events
    assert findings(look(engine)) == {"web": "stopped by hand"}
    # a container that has died is missing, even if it was stopped by hand earlier
    engine.start(web)
    engine._end(engine._need(web), 137)
    dead = look(engine, seen)
    assert findings(dead) == {"web": "missing (shop-web-1 ended with 137)"}
    engine._events.clear()
    assert findings(look(engine, dead)) == {"web": "missing (shop-web-1 ended with 137)"}
    # an unreadable record counts as unknown
    for path in (engine.folder / "state" / "starts").iterdir():
        path.write_text("[]")
    assert findings(look(engine)) == {"web": "stopped by hand"}, "the exit code and restart policy were ignored"


@pytest.mark.parametrize(
    ("service", "code", "says"),
    [
        ("web", 137, "stopped by hand"),
        ("web", 143, "stopped by hand"),
        ("web", 1, "missing (shop-web-1 ended with 1)"),
        ("once", 137, "missing (shop-once-1 ended with 137)"),
        ("once", 143, "stopped by hand"),
        ("once", 0, "ended with 0"),
    ],
)
def test_exit_code_decides_when_events_are_missing(engine: Engine, service: str, code: int, says: str) -> None:
    start(engine, "web" if service == "once" else "once")
    one = start(engine, service)
    engine._end(engine._need(one), code)
    engine._events.clear()
    assert findings(look(engine)) == {service: says}


@pytest.mark.parametrize("end_points", [True, False])
def test_file_digest_is_compared_with_that_at_container_start(engine: Engine, *, end_points: bool) -> None:
    engine.has_end_points = end_points
    file = engine.folder / "site.conf"
    file.write_text("one")
    time.sleep(0.01)
    start(engine, "once")
    web = start(engine, "web")
    engine.mounts["shop-web-1"] = [str(file)]
    seen = look(engine)
    assert findings(seen) == {}
    time.sleep(0.01)
    file.write_text("two")
    changed = {"web": f"file {file} changed"}
    assert findings(look(engine, seen)) == changed
    # a file with equal content is no drift, with any modification time, and without a cache
    file.write_text("one")
    assert findings(look(engine)) == {}
    drop_snapshot(engine)
    assert findings(look(engine, keep=False)) == changed, "without a digest, the modification time was ignored"
    assert not (engine.folder / "state" / "starts").exists()
    # a container that was started after the change has no drift
    time.sleep(0.01)
    engine.stop(web)
    engine.start(web)
    assert findings(look(engine)) == {}
    file.write_text("three")
    assert findings(look(engine)) == changed


def test_container_newer_than_its_files_is_not_inspected(engine: Engine) -> None:
    file = engine.folder / "site.conf"
    file.write_text("one")
    start(engine, "once", created=time.time() + 2)
    start(engine, "web", created=time.time() + 2)
    engine.mounts["shop-web-1"] = [str(file)]
    look(engine)
    assert "inspect" not in engine.asked


def test_compose_config_is_cached_until_a_file_changes(engine: Engine) -> None:
    start(engine, "web")
    seen = look(engine)
    assert look(engine, seen).projects["shop"].services["web"].depends_on == ["once"]
    assert "compose" not in engine.asked
    (engine.folder / ".env").write_text("A=1")
    assert "compose" in (look(engine, seen), engine.asked)[1]
    look(engine, seen, stacks={"shop": {"after": ["infra"]}})
    assert "compose" in engine.asked, "changed rules did not resolve the project again"
    (engine.folder / "compose.yaml").write_text("include: ['${X}/a.yaml']")
    seen = look(engine, seen)
    for read in (True, False):
        look(engine, seen, read=read)
        assert "compose" in engine.asked, "a project with unknown files was cached"


def test_unreadable_files_are_retried_and_cancellation_is_not_a_file_error(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(engine, "web")
    resolve = Compose.resolve

    def fails(error: OperationError) -> None:
        def raises(*_: object) -> None:
            raise error

        monkeypatch.setattr(Compose, "resolve", raises)

    fails(OperationError("Docker Compose is not installed"))
    seen = look(engine)
    assert findings(seen) == {"": "its files are invalid: Docker Compose is not installed"}
    fails(StepCancelled("stopped"))
    with pytest.raises(StepCancelled):
        look(engine, seen)
    monkeypatch.setattr(Compose, "resolve", resolve)
    assert findings(look(engine, seen)) == {"once": "missing"}


def test_registry_queries_are_cached_and_honour_rate_limits(engine: Engine) -> None:
    start(engine, "web")
    start(engine, "once")
    seen = look(engine)
    assert findings(seen) == {}
    assert not any(call.startswith("registry") for call in engine.asked)
    seen = look(engine, seen, registry=True)
    assert engine.asked.count("registry shop:1") == 1, "more than one query for one image"
    look(engine, seen, registry=True)
    assert "registry shop:1" not in engine.asked
    engine.digests |= {"shop:1": "sha256:new"}
    engine.images = lambda: [Image(one.id, one.tags, ("shop@sha256:old",)) for one in MemoryEngine.images(engine)]  # type: ignore[method-assign]
    newer = look(engine, seen, registry=True, registry_every=0)
    assert findings(newer) == dict.fromkeys(("once", "web"), "image shop:1 → new at its registry")
    assert findings(look(engine, newer)) == findings(newer), "the answer of the registry was dropped"
    engine.limited = True
    limited = look(engine, newer, registry=True, registry_every=0)
    assert findings(limited) == findings(newer)
    assert [str(note) for note in choose(StackRules(), {"h": limited}, {}).notes] == [
        "image shop:1: its registry could not be queried: its rate limit is exceeded"
    ]
    look(engine, limited, registry=True, registry_every=0)
    assert not any(call.startswith("registry") for call in engine.asked)
    assert limited.fingerprint == newer.fingerprint
    # a registry answer about the previous image does not apply to another image of the same name
    engine._images["shop:1"] = "sha256:another"
    assert "newer" not in str(findings(look(engine, newer)))
    assert all("registry" not in text for text in findings(look(engine, newer)).values())


def test_start_facts_of_other_projects_are_kept_and_of_removed_containers_dropped(engine: Engine) -> None:
    file = engine.folder / "site.conf"
    file.write_text("one")
    web = start(engine, "web")
    engine.mounts["shop-web-1"] = [str(file)]
    look(engine)
    (path,) = (engine.folder / "state" / "starts").iterdir()
    before = path.read_text()
    assert web in before
    look(engine, only=["blog"])
    assert path.read_text() == before
    engine.remove(web)
    start(engine, "once")
    look(engine)
    assert path.read_text() == "{}"


def test_excluded_projects_are_not_inspected(engine: Engine) -> None:
    start(engine, "web")
    assert look(engine, only=["blog", "s*"]).projects.keys() == {"shop"}
    assert look(engine, only=["blog"]).projects == {}
    assert look(engine, only=["!shop"]).projects == {}
    assert look(engine, only=["!blog"]).projects.keys() == {"shop"}
    assert look(engine, only=["s*", "!sh*"]).projects == {}


def test_invalid_project_label_does_not_affect_other_projects(engine: Engine) -> None:
    start(engine, "web")
    labels = {f"{LABEL}project": "../../outside", f"{LABEL}service": "x"}
    other, _ = engine.create("foreign", {"Image": "shop:1", "Labels": labels})
    engine.made[other] = int(time.time())
    engine.start(other)

    found = look(engine).projects

    assert found["shop"].services["web"].containers
    assert "must match" in found["../../outside"].error


def test_worker_files_are_never_digested(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGSHORE_KEYS", str(engine.folder / "keys" / "keys.json"))
    get_settings.cache_clear()
    for path in (engine.folder / "keys" / "keys.json", engine.folder / "state" / "x", engine.folder / "fine"):
        path.parent.mkdir(exist_ok=True)
        path.write_text("x")
        own = path.name != "fine"
        assert (digest_of_file(str(path)) == "") is own
    assert digest_of_file("/proc/self/environ") == ""

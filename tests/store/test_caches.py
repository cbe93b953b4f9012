"""Generations of caches, and the steps that build, check and invalidate caches."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from longshore.orchestration import Context, operation
from longshore.orchestration.errors import OperationError, Preflight, Transient
from longshore.orchestration.settings import get_settings
from longshore.orchestration.store.caches import Caches, Entry
from longshore.orchestration.store.run_store import Store
from longshore.tasks.operations import cache as cache_tasks
from tests.servers import RedisServer
from tests.store.stored_run import settings_for
from tests.unit.conftest import own_registry
from tests.unit.tasks.operations.fake_step import Doing

assert cache_tasks
assert own_registry
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@pytest.fixture
def store(server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    monkeypatch.setenv("LONGSHORE_STATE_DIR", str(tmp_path / "state"))
    get_settings.cache_clear()
    made = Store(settings_for(server.url, max_object=100_000))
    yield made
    made.client.close()
    get_settings.cache_clear()


@pytest.fixture
def caches(store: Store) -> Caches:
    return Caches(store)


@pytest.fixture
def built(own_registry: None) -> list[Any]:
    """The calls of the builder of the application."""
    asked: list[Any] = []

    @operation("catalog.build", read_only=True)
    def build(size: int = 2, slow: float = 0.0, fail: str = "") -> dict[str, Any]:
        asked.append(size)
        time.sleep(slow)
        if fail:
            raise Transient(fail)
        return {"items": list(range(size)), "built": len(asked)}

    return asked


Step = Callable[..., Doing]


@pytest.fixture
def step(caches: Caches) -> Step:
    held = threading.Lock()

    def make(verb: str, run_id: str = "r1", /, **params: Any) -> Doing:
        context: dict[str, Any] = {"run_id": run_id, "caches": lambda: caches}
        context["lock"] = lambda _name, _what: held
        return Doing(f"cache.{verb}", context, cache="catalog", **params)

    return make


def rebuild(step: Step, run_id: str, /, **params: Any) -> Doing:
    return step("rebuild.execute", run_id, builder="catalog.build", **params)


@given(value=JSON, key=st.text(max_size=5), place=st.integers(0, 400), byte=st.characters(codec="ascii"))
def test_cache_entry_is_complete_or_missing(value: Any, key: str, place: int, byte: str) -> None:
    entry = Entry(3, value, key, 1, 2, 3.0, "r1.step")
    text = entry.text()
    assert Entry.read(text) == entry
    other = text[: place % len(text)] + byte + text[place % len(text) + 1 :]
    with contextlib.suppress(ValueError):
        assert Entry.read(other) == entry or json.loads(other) == json.loads(text)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
@given(st.lists(st.sampled_from(["build", "undo", "mark", "unmark", "rubbish"]), max_size=12))
def test_current_generation_is_the_last_one_not_undone(caches: Caches, actions: list[str]) -> None:
    caches.forget("one")
    current: Entry | None = None
    previous: Entry | None = None
    number = 0
    for action in actions:
        if action == "build":
            number = caches.number("one")
            new = Entry(number, {"n": number}, by=f"r{number}.step")
            caches.swap("one", new)
            current, previous = new, current
        elif action == "undo":
            mine = current is not None and caches.back("one", f"r{number}.step")
            if mine and current is not None and current.by == f"r{number}.step":
                current, previous = previous, None
        elif action == "mark" and current is not None and not current.invalidated:
            assert caches.mark("one", "me")
            current = replace(current, invalidated="me")
        elif action == "unmark" and current is not None and current.invalidated:
            assert caches.mark("one", "")
            current = replace(current, invalidated="")
        elif action == "rubbish":
            caches._redis.client.hset(caches._redis.keys.cache("one"), "current", "rubbish")
            current, previous = None, None
            caches.forget("one")
        assert caches.get("one").entry == current


def test_valid_cache_is_not_rebuilt(step: Step, caches: Caches, built: list[Any]) -> None:
    assert step("check.get").act().data["reason"] == "the cache is empty"
    first = rebuild(step, "r1", ttl=0.3, fingerprint="1")
    assert first.predict().changed
    assert built == []
    done = first.act()
    assert (done.changed, done.data["built"], done.data["generation"]) == (True, True, 1)
    assert caches.get("catalog").entry is not None
    # the same build again, by a redelivery and by another run
    assert first.act().data["generation"] == 1
    again = rebuild(step, "r2", ttl=0.3, fingerprint="1")
    assert again.predict().changed is False
    assert again.act().changed is False
    assert len(built) == 1
    # a new fingerprint, an expired, an invalidated, and a forced build
    assert rebuild(step, "r3", ttl=0.3, fingerprint="2").act().changed
    time.sleep(0.35)
    assert "of at most 0.3 s" in step("check.get").act().data["reason"]
    assert rebuild(step, "r4", fingerprint="2").act().changed
    assert step("invalidate.execute", "r5").act().changed
    found = step("check.get").act().data
    assert (found["valid"], found["reason"], found["generation"]) == (False, "invalidated by r5.step", 3)
    assert rebuild(step, "r6", fingerprint="2").act().changed
    assert rebuild(step, "r7", fingerprint="2", force=True).act().changed
    assert len(built) == 5
    assert step("check.get").act().data["valid"] is True
    assert step("check.get", fingerprint="9").act().data["valid"] is False


def test_undo_restores_the_previous_generation_unless_superseded(step: Step, caches: Caches, built: list[Any]) -> None:
    one, two = rebuild(step, "r1"), rebuild(step, "r2", force=True)
    one.act()
    two.act()
    assert one.undo().changed is False, "the undo replaced a newer generation"
    assert two.undo().changed
    entry = caches.get("catalog").entry
    assert entry is not None
    assert (entry.generation, entry.by) == (1, "r1.step")
    assert two.undo().changed is False
    assert one.undo().changed
    assert caches.get("catalog").entry is None
    mark = step("invalidate.execute", "r3")
    rebuild(step, "r4").act()
    mark.act()
    assert mark.act().changed, "a redelivery reports another outcome"
    assert step("invalidate.execute", "r5").act().changed is False
    assert mark.undo().changed
    assert mark.undo().changed is False
    assert step("check.get").act().data["valid"]


def test_concurrent_builds_run_once(step: Step, caches: Caches, built: list[Any]) -> None:
    steps = [rebuild(step, f"r{number}", params={"slow": 0.2}) for number in range(8)]
    forced = [rebuild(step, f"f{number}", params={"slow": 0.2}, force=True) for number in range(4)]
    for many in (steps, forced):
        for one in many:
            assert one.before is not None
        before = len(built)
        with ThreadPoolExecutor(8) as pool:
            done = list(pool.map(lambda one: one.act(), many))
        # the first attempt built for itself, and one waiting attempt for all others
        assert 1 <= len(built) - before <= 2
        assert sum(one.changed for one in done) == len(built) - before


def test_failed_build_keeps_the_current_generation(step: Step, caches: Caches, built: list[Any]) -> None:
    rebuild(step, "r1").act()
    was = caches.get("catalog").entry
    with pytest.raises(Transient, match="no catalogue today"):
        rebuild(step, "r2", force=True, params={"fail": "no catalogue today"}).act()
    with pytest.raises(OperationError, match="at most 100000 may be stored"):
        rebuild(step, "r3", force=True, params={"size": 50_000}).act()
    for params in ({"builder": "nobody.build"}, {"builder": "catalog.build", "params": {"size": "resent"}}):
        with pytest.raises(Preflight, match="builder"):
            step("rebuild.execute", "r4", **params).before  # noqa: B018 - it is read
    assert caches.get("catalog").entry == was


def test_invalid_cache_entry_is_rebuilt(store: Store, step: Step, caches: Caches, built: list[Any]) -> None:
    rebuild(step, "r1").act()
    key = store.keys.cache("catalog")
    good = store.client.hget(key, "current") or ""
    for number, wrong in enumerate(("rubbish", "[]", "{}", good.replace("items", "itens"), good[:-3])):
        store.client.hset(key, "current", wrong)
        assert "the entry cannot be used" in step("check.get").act().data["reason"]
        assert rebuild(step, f"n{number}").act().changed
        assert step("check.get").act().data["valid"]


def test_builder_output_is_redacted_before_storage(
    step: Step, caches: Caches, built: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = rebuild(step, "r1")
    one.ctx.redact_data = lambda data: data | {"items": "hidden"}
    one.act()
    entry = caches.get("catalog").entry
    assert entry is not None
    assert entry.value["items"] == "hidden"


def test_unused_cache_expires(step: Step, store: Store, caches: Caches, built: list[Any]) -> None:
    key = store.keys.cache("catalog")
    rebuild(step, "r1", ttl=5).act()
    assert store.settings.retention < store.client.pttl(key) / 1000 <= store.settings.retention + 5
    rebuild(step, "r2", force=True).act()
    assert store.client.pttl(key) == -1


def test_builder_receives_its_steps_context(step: Step, own_registry: None) -> None:
    told: list[str] = []

    @operation("catalog.told", read_only=True)
    def build(ctx: Context) -> dict[str, Any]:
        told.append(ctx.op_id)
        return {}

    step("rebuild.execute", "r1", builder="catalog.told").act()
    assert told == ["r1.step"]

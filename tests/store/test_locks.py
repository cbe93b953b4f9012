"""Locks in Redis: one named holder, released by its lease, by itself, or by a later attempt of its step."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest

from longshore.orchestration.errors import StepCancelled
from longshore.orchestration.store.locks import Holder, Locks
from longshore.orchestration.store.run_store import Store
from tests.servers import SOON, RedisServer
from tests.store.stored_run import settings_for

Hold = Callable[..., AbstractContextManager[None]]


@pytest.fixture
def store(server: RedisServer) -> Any:
    store = Store(settings_for(server.url, lease="1s"))
    yield store
    store.client.close()


@pytest.fixture
def hold(store: Store) -> Hold:
    def make(run: str = "r1", step: str = "up", fence: int = 1, **more: Any) -> AbstractContextManager[None]:
        holder_fields: dict[str, Any] = {
            "host": "web1",
            "why": "compose.up.execute",
            "check": lambda: None,
            "sleep": time.sleep,
        }
        return Locks(store).hold("engine/shop", "project shop", run=run, step=step, fence=fence, **holder_fields | more)

    return make


class Stopped:
    """A check that cancels the wait after some seconds."""

    def __init__(self, seconds: float) -> None:
        self._until = time.monotonic() + seconds

    def __call__(self) -> None:
        if time.monotonic() > self._until:
            raise StepCancelled("enough")


def test_waiting_client_learns_the_lock_holder(store: Store, hold: Hold) -> None:
    waited: list[Holder] = []
    with hold():
        (held,) = Locks(store).held()
        assert (held.what, held.run, held.step, held.host, held.why) == (
            "project shop", "r1", "up", "web1", "compose.up.execute",
        )  # fmt: skip
        assert 0 < held.left <= 1
        assert abs(held.since - store.now()) < 2000
        with pytest.raises(StepCancelled), hold("r2", check=Stopped(0.5), waits=waited.append):
            pytest.fail("two clients hold the lock")
    assert [other.run for other in waited] == ["r1"], "the holder was not reported once"
    assert Locks(store).held() == []
    with hold("r2"):
        assert [held.run for held in Locks(store).held()] == ["r2"]


def test_held_lock_is_renewed(store: Store, hold: Hold) -> None:
    def left() -> int:
        return int(store.client.pttl(store.keys.lock("engine/shop")))

    with hold():
        for _ in range(2):
            before = left()
            give_up = time.monotonic() + SOON
            while left() <= before:
                assert time.monotonic() < give_up
                time.sleep(0.02)
                before = min(before, left())
        assert [held.run for held in Locks(store).held()] == ["r1"]


def test_lock_holders_are_serialised(hold: Hold) -> None:
    inside, worst = 0, 0
    guard = threading.Lock()

    def work(number: int) -> None:
        nonlocal inside, worst
        with hold(f"r{number}"):
            with guard:
                inside += 1
                worst = max(worst, inside)
            time.sleep(0.05)
            with guard:
                inside -= 1

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert worst == 1


def store_abandoned_lock(store: Store, **holder_fields: Any) -> None:
    """Store a lock whose holder has died."""
    holder = Holder(
        "engine/shop", "project shop", **{"run": "r1", "step": "up", "host": "web1", "why": "x"} | holder_fields
    )
    store.client.sadd(store.keys.locks, "engine/shop")
    store.client.set(store.keys.lock("engine/shop"), holder.text(), px=60_000)


def test_later_attempt_of_a_step_takes_over_its_lock(store: Store, hold: Hold) -> None:
    store_abandoned_lock(store, fence=1, since=0)
    began = time.monotonic()
    with hold(fence=2):
        assert time.monotonic() - began < SOON


@pytest.mark.parametrize("holder_fields", [{"fence": 3}, {"fence": 1, "step": "down"}, {"fence": 1, "run": "r9"}])
def test_other_steps_cannot_take_over_a_lock(store: Store, hold: Hold, holder_fields: dict[str, Any]) -> None:
    store_abandoned_lock(store, since=0, **holder_fields)
    with pytest.raises(StepCancelled), hold(fence=2, check=Stopped(0.5)):
        pytest.fail("two clients hold the lock")


def test_dead_holders_lock_expires_after_a_lease(store: Store, hold: Hold) -> None:
    store_abandoned_lock(store, run="r9", fence=1, since=0)
    store.client.pexpire(store.keys.lock("engine/shop"), 700)
    with hold("r2"):
        assert [held.run for held in Locks(store).held()] == ["r2"]


def test_expired_holder_does_not_release_the_next_holders_lock(store: Store, hold: Hold) -> None:
    with hold():
        store.client.delete(store.keys.lock("engine/shop"))
        store_abandoned_lock(store, run="r9", fence=1, since=0)
    assert [held.run for held in Locks(store).held()] == ["r9"]

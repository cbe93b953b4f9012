"""Counters aggregated from records: each run counts once, with concurrent scrapes and simultaneous ends."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from longshore.orchestration.monitoring import counters
from longshore.orchestration.states import RunState
from longshore.orchestration.store.run_store import Store
from tests.servers import RedisServer
from tests.store.stored_run import settings_for

#: What each run has done.
DONE = {f"runs{counters.SEP}p{counters.SEP}succeeded": 1.0, f"attempts{counters.SEP}noop": 2.0}


@pytest.fixture
def store(server: RedisServer) -> Iterator[Store]:
    made = Store(settings_for(server.url))
    yield made
    made.client.close()


@pytest.fixture(autouse=True)
def each_run_has_done_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counters, "of_run", lambda _store, _run: (dict(DONE), RunState.SUCCEEDED))


def ended(store: Store, number: int, at: int = 10**12, prefix: str = "r") -> None:
    store.client.zadd(store.keys.ended, {f"{prefix}{n}": at for n in range(number)})
    store.client.zadd(store.keys.runs, {f"{prefix}{n}": at for n in range(number)})


def told(store: Store) -> dict[str, float]:
    return counters.totals(store).counts


def test_more_runs_than_are_read_at_once_may_end_at_one_time(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counters, "_PAGE", 20)
    ended(store, 2 * counters._PAGE + 7)
    expected = {name: value * (2 * counters._PAGE + 7) for name, value in DONE.items()}
    assert told(store) == expected
    assert told(store) == expected
    ended(store, 3, at=10**12 + 5, prefix="later")
    assert told(store)[next(iter(DONE))] == expected[next(iter(DONE))] + 3


def test_a_scrape_leaves_the_rest_of_many_runs_to_the_next_ones(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counters, "_PAGE", 20)
    monkeypatch.setattr(counters, "_LONGEST", 0.0)
    ended(store, 70)
    for left in (50, 30, 10):
        found = counters.totals(store)
        assert (found.counts, found.uncounted) == ({}, left), "the runs of the past would look like runs of now"
    assert told(store) == {name: value * 70 for name, value in DONE.items()}
    ended(store, 50, at=10**12 + 5, prefix="later")
    for counted in (80, 100, 120, 120):
        found = counters.totals(store)
        assert (found.counts, found.uncounted) == (
            {name: value * counted for name, value in DONE.items()},
            120 - counted,
        )


def test_unreadable_runs_do_not_keep_others_from_being_counted(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counters, "_PAGE", 20)
    monkeypatch.setattr(counters, "_LONGEST", 0.0)
    known = counters.of_run
    monkeypatch.setattr(counters, "of_run", lambda of, run: None if run.startswith("damaged") else known(of, run))
    ended(store, 40, prefix="damaged")
    ended(store, 5, at=10**12 + 10 * counters._OVERLAP)
    for _ in range(3):
        found = counters.totals(store)
    assert found.counts == {name: value * 5 for name, value in DONE.items()}


def test_counted_run_is_read_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    ended(store, 5)
    before = told(store)
    monkeypatch.setattr(counters, "of_run", lambda _store, run: pytest.fail(f"{run} was read again"))
    assert told(store) == before


def test_concurrent_scrapes_count_once(store: Store) -> None:
    ended(store, 40)
    threads = [threading.Thread(target=told, args=(Store(store.settings),)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert told(store) == {name: value * 40 for name, value in DONE.items()}


def test_reopened_run_adds_only_new_counts(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    ended(store, 1)
    before = told(store)
    again = {f"runs{counters.SEP}p{counters.SEP}undone": 1.0, f"attempts{counters.SEP}noop": 5.0}
    monkeypatch.setattr(counters, "of_run", lambda _store, _run: (dict(again), RunState.UNDONE))
    ended(store, 1, at=10**12 + 9)
    assert told(store) == before | again


def test_what_is_kept_of_runs_that_are_forgotten_goes(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counters, "_PAGE", 5)
    ended(store, 20)
    before = told(store)
    store.client.zrem(store.keys.runs, *(f"r{n}" for n in range(15)))
    store.client.zrem(store.keys.ended, *(f"r{n}" for n in range(15)))
    assert told(store) == before
    assert store.client.hlen(store.keys.counted_runs) == 5

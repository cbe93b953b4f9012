"""Counters from records: each run counts once, with concurrent scrapes and simultaneous ends."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from longshore.orchestration.monitoring import counters
from longshore.orchestration.monitoring.counters import RunCounts
from longshore.orchestration.states import RunState
from longshore.orchestration.store.run_store import Store
from tests.servers import RedisServer
from tests.store.stored_run import settings_for

#: The counts of each run.
COUNTS = {f"runs{counters.SEP}p{counters.SEP}succeeded": 1.0, f"attempts{counters.SEP}noop": 2.0}


@pytest.fixture
def store(server: RedisServer) -> Iterator[Store]:
    made = Store(settings_for(server.url))
    yield made
    made.client.close()


@pytest.fixture(autouse=True)
def equal_counts_for_each_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counters, "of_run", lambda _store, _run: RunCounts(COUNTS, "a", RunState.SUCCEEDED))


def add_ended_runs(store: Store, number: int, at: int = 10**12, prefix: str = "r") -> None:
    store.client.zadd(store.keys.ended, {f"{prefix}{n}": at for n in range(number)})
    store.client.zadd(store.keys.runs, {f"{prefix}{n}": at for n in range(number)})


def totals(store: Store) -> dict[str, float]:
    return counters.totals(store).counts


def test_more_runs_than_one_page_may_end_at_the_same_time(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counters, "_PAGE", 20)
    add_ended_runs(store, 2 * counters._PAGE + 7)
    expected = {name: value * (2 * counters._PAGE + 7) for name, value in COUNTS.items()}
    assert totals(store) == expected
    assert totals(store) == expected
    add_ended_runs(store, 3, at=10**12 + 5, prefix="later")
    assert totals(store)[next(iter(COUNTS))] == expected[next(iter(COUNTS))] + 3


def test_scrape_in_parts_counts_all_runs_after_several_calls(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counters, "_PAGE", 20)
    monkeypatch.setattr(counters, "_LONGEST", 0.0)
    add_ended_runs(store, 70)
    for left in (50, 30, 10):
        found = counters.totals(store)
        assert (found.counts, found.uncounted) == ({}, left), "a partial count of earlier runs was published"
    assert totals(store) == {name: value * 70 for name, value in COUNTS.items()}
    add_ended_runs(store, 50, at=10**12 + 5, prefix="later")
    for counted in (80, 100, 120, 120):
        found = counters.totals(store)
        assert (found.counts, found.uncounted) == (
            {name: value * counted for name, value in COUNTS.items()},
            120 - counted,
        )


def test_unreadable_runs_do_not_keep_others_from_being_counted(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counters, "_PAGE", 20)
    monkeypatch.setattr(counters, "_LONGEST", 0.0)
    known = counters.of_run
    monkeypatch.setattr(counters, "of_run", lambda of, run: None if run.startswith("damaged") else known(of, run))
    add_ended_runs(store, 40, prefix="damaged")
    add_ended_runs(store, 5, at=10**12 + 10 * counters._OVERLAP)
    for _ in range(3):
        found = counters.totals(store)
    assert found.counts == {name: value * 5 for name, value in COUNTS.items()}


def test_counted_run_is_read_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    add_ended_runs(store, 5)
    before = totals(store)
    monkeypatch.setattr(counters, "of_run", lambda _store, run: pytest.fail(f"{run} was read again"))
    assert totals(store) == before


def test_concurrent_scrapes_count_once(store: Store) -> None:
    add_ended_runs(store, 40)
    threads = [threading.Thread(target=totals, args=(Store(store.settings),)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert totals(store) == {name: value * 40 for name, value in COUNTS.items()}


def test_reopened_run_adds_only_new_counts(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    add_ended_runs(store, 1)
    before = totals(store)
    again = {f"runs{counters.SEP}p{counters.SEP}undone": 1.0, f"attempts{counters.SEP}noop": 5.0}
    monkeypatch.setattr(counters, "of_run", lambda _store, _run: RunCounts(again, "a", RunState.UNDONE))
    add_ended_runs(store, 1, at=10**12 + 9)
    assert totals(store) == before | again


def test_run_with_the_id_of_a_deleted_run_is_counted(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    add_ended_runs(store, 1)
    before = totals(store)
    # The run was deleted, and another one has got its id.
    monkeypatch.setattr(counters, "of_run", lambda _store, _run: RunCounts(COUNTS, "b", RunState.SUCCEEDED))
    add_ended_runs(store, 1, at=10**12 + 9)
    twice = {name: 2 * value for name, value in before.items()}
    assert [totals(store), totals(store)] == [twice, twice]


def test_live_run_keeps_its_counts_when_it_is_deleted_before_the_next_scrape(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counters, "of_run", lambda _store, _run: RunCounts(COUNTS, "a", RunState.RUNNING))
    store.client.zadd(store.keys.live, {"r": 1})
    store.client.zadd(store.keys.runs, {"r": 1})
    assert totals(store) == COUNTS
    store.client.zrem(store.keys.live, "r")
    store.client.zrem(store.keys.runs, "r")
    assert totals(store) == COUNTS


def test_live_runs_beyond_the_limit_of_a_scrape_keep_their_counts(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counters, "_LIVE", 1)
    progress = {"r0": 1.0, "r1": 2.0}
    name = f"attempts{counters.SEP}noop"
    monkeypatch.setattr(counters, "of_run", lambda _store, run: RunCounts({name: progress[run]}, "a", RunState.RUNNING))
    store.client.zadd(store.keys.live, {"r0": 1, "r1": 2})
    assert totals(store) == {name: 1}
    store.client.zadd(store.keys.live, {"r0": 3})  # swept: the next scrape reads the other run
    assert totals(store) == {name: 3}
    progress["r1"] = 5.0
    assert totals(store) == {name: 6}
    store.client.zrem(store.keys.live, "r0", "r1")
    store.client.zadd(store.keys.ended, {"r0": 10**12, "r1": 10**12})
    assert totals(store) == {name: 6}


def test_marks_of_deleted_runs_are_removed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counters, "_PAGE", 5)
    add_ended_runs(store, 20)
    before = totals(store)
    store.client.zrem(store.keys.runs, *(f"r{n}" for n in range(15)))
    store.client.zrem(store.keys.ended, *(f"r{n}" for n in range(15)))
    assert totals(store) == before
    assert store.client.hlen(store.keys.counted_runs) == 5

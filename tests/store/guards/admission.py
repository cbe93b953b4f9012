"""Guards of the scripts that submit and admit runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from longshore.orchestration.errors import QueueFull
from longshore.orchestration.store.admission import Admission, AdmissionRequest
from tests.store.guards.marks import scenario
from tests.store.stored_run import StoredRun


def empty_queue(stored: StoredRun, **limits: int) -> Admission:
    """The queue of an installation without any other run."""
    stored.redis.flushall()
    stored.store.settings = stored.store.settings.model_copy(update={"max_queued": 3, **limits})
    return Admission(stored.store)


def submit(
    queue: Admission,
    run_id: str,
    key: str = "",
    parents: Sequence[str] = (),
    locks: Sequence[str] = (),
    message: tuple[str, str] = ("", ""),
) -> AdmissionRequest:
    """Submit a run of plan `p`; `parents` are its ancestors, outermost first."""
    parent = {"run": "top", "line": list(parents)} if parents else None
    body: dict[str, Any] = {"plan": {"name": "p"}, "parent": parent, "locks": list(locks)}
    if key:
        body["concurrency"] = {"key": key, "limit": 1, "on_limit": "queue"}
    queue.submit(run_id, body, message=message)
    return AdmissionRequest.of(body)


# --- submit ------------------------------------------------------------------------------------


@scenario
def a_run_is_submitted_once(stored: StoredRun) -> None:
    queue = empty_queue(stored)
    submit(queue, "a")
    queue.admit("a", AdmissionRequest("p"))
    submit(queue, "a")
    assert not queue.waits("a")


@scenario
def no_more_runs_wait_than_the_limit_allows(stored: StoredRun) -> None:
    queue = empty_queue(stored)
    for name in "abc":
        submit(queue, name)
    with pytest.raises(QueueFull):
        submit(queue, "d")


@scenario
def commands_of_a_deleted_run_with_the_same_id_are_deleted(stored: StoredRun) -> None:
    queue = empty_queue(stored)
    stored.redis.xadd(stored.store.keys.of("a").commands, {"kind": "cancel"})
    submit(queue, "a")
    assert stored.store.commands("a") == []


@scenario
def a_run_gets_its_first_message_if_its_concurrency_key_is_free(stored: StoredRun) -> None:
    queue, messages = empty_queue(stored), f"{stored.store.settings.broker_prefix()}control"
    wanted = submit(queue, "a", "k", message=("control", "first of a"))
    assert stored.redis.lrange(messages, 0, -1) == ["first of a"]
    assert queue.admit("a", wanted) == ""
    submit(queue, "b", "k", message=("control", "first of b"))
    assert stored.redis.lrange(messages, 0, -1) == ["first of a"]  # the key is held
    queue.release("a", wanted)
    assert [run_id for run_id, _ in queue.wake(queue.queues_of(wanted))] == ["b"]


# --- admit -------------------------------------------------------------------------------------


@scenario
def a_run_that_has_ended_is_not_admitted(stored: StoredRun) -> None:
    queue = empty_queue(stored)
    wanted = submit(queue, "a")
    queue.release("a", wanted)
    queue.admit("a", wanted)
    assert queue.admitted() == []


@scenario
def a_run_is_admitted_once(stored: StoredRun) -> None:
    queue = empty_queue(stored, max_runs=1)
    wanted = submit(queue, "a")
    assert [queue.admit("a", wanted), queue.admit("a", wanted)] == ["", ""]


@scenario
def a_child_run_does_not_count_for_the_limit(stored: StoredRun) -> None:
    queue = empty_queue(stored, max_runs=1)
    queue.admit("top", submit(queue, "top"))
    assert queue.admit("low", submit(queue, "low", parents=["top"])) == ""
    assert queue.admitted() == ["top"]


@scenario
def no_more_runs_are_admitted_than_the_limit_allows(stored: StoredRun) -> None:
    queue = empty_queue(stored, max_runs=1)
    queue.admit("a", submit(queue, "a"))
    assert queue.admit("b", submit(queue, "b")) == "all"


@scenario
def no_more_runs_of_a_plan_are_admitted_than_its_limit_allows(stored: StoredRun) -> None:
    queue = empty_queue(stored, max_runs_per_plan=1)
    queue.admit("a", submit(queue, "a"))
    assert queue.admit("b", submit(queue, "b")) == "plan"


@scenario
def a_child_run_does_not_count_for_the_limit_of_its_plan(stored: StoredRun) -> None:
    queue = empty_queue(stored, max_runs_per_plan=1)
    queue.admit("top", submit(queue, "top"))
    assert queue.admit("low", submit(queue, "low", parents=["top"])) == ""


@scenario
def a_child_run_does_not_wait_for_the_key_of_its_parents(stored: StoredRun) -> None:
    queue = empty_queue(stored)
    queue.admit("top", submit(queue, "top", "k"))
    assert queue.admit("low", submit(queue, "low", "k", ["top", "middle"])) == ""


@scenario
def no_more_runs_get_a_concurrency_key_than_its_limit_allows(stored: StoredRun) -> None:
    queue = empty_queue(stored)
    queue.admit("a", submit(queue, "a", "k"))
    assert queue.admit("b", submit(queue, "b", "k")) == "key"


@scenario
def a_child_run_shares_the_locks_of_its_parents(stored: StoredRun) -> None:
    queue = empty_queue(stored)
    queue.admit("top", submit(queue, "top", locks=["web1/shop"]))
    assert queue.admit("low", submit(queue, "low", parents=["top", "middle"], locks=["web1/shop"])) == ""


@scenario
def a_lock_belongs_to_one_run(stored: StoredRun) -> None:
    queue = empty_queue(stored)
    queue.admit("a", submit(queue, "a", locks=["web1/shop", "web2/shop"]))
    assert queue.admit("b", submit(queue, "b", locks=["web2/shop", "web3/shop"])) == "lock"
    assert queue.admit("c", submit(queue, "c", locks=["web3/shop"])) == "", "b holds nothing while it waits"


@scenario
def a_run_with_a_new_command_stays_in_the_inbox(stored: StoredRun) -> None:
    inbox, name = stored.store.keys.inbox, stored.run_id
    stored.redis.delete(inbox)
    stored.redis.zadd(inbox, {name: 7})
    stored.store.create(name, {"plan": "p"}, inbox=6)
    stored.store.seen(name, 6)
    assert stored.redis.zscore(inbox, name) == 7


@scenario
def the_next_sweep_starts_an_admitted_run(stored: StoredRun) -> None:
    queue = empty_queue(stored)
    wanted = submit(queue, "a")
    stored.store.look_at("a", stored.store.now() + 60_000)
    assert queue.admit("a", wanted) == ""
    assert stored.store.due(1.0) == ["a"]


@scenario
def runs_are_admitted_in_the_order_of_their_requests(stored: StoredRun) -> None:
    queue = empty_queue(stored, max_runs=1)
    first, _, third = submit(queue, "a"), submit(queue, "b"), submit(queue, "c")
    queue.admit("a", first)
    queue.admit("b", first)
    stored.redis.zrem(stored.store.keys.admitted, "a")
    assert queue.admit("c", third) == "all"


@scenario
def runs_of_a_plan_are_admitted_in_the_order_of_their_requests(stored: StoredRun) -> None:
    queue = empty_queue(stored, max_runs_per_plan=1)
    first, _, third = submit(queue, "a"), submit(queue, "b"), submit(queue, "c")
    queue.admit("a", first)
    queue.admit("b", first)
    stored.redis.delete(stored.store.keys.of_plan("p"))
    assert queue.admit("c", third) == "plan"


@scenario
def runs_get_a_concurrency_key_in_the_order_of_their_requests(stored: StoredRun) -> None:
    queue = empty_queue(stored)
    first, _, third = submit(queue, "a", "k"), submit(queue, "b", "k"), submit(queue, "c", "k")
    queue.admit("a", first)
    queue.admit("b", first)
    stored.redis.delete(stored.store.keys.slot("k"))
    assert queue.admit("c", third) == "key"


@scenario
def an_admitted_run_waits_in_no_queue(stored: StoredRun) -> None:
    queue = empty_queue(stored)
    first, second = submit(queue, "a", "k"), submit(queue, "b", "k")
    queue.admit("a", first)
    queue.admit("b", second)
    queue.release("a", first)
    assert [run_id for run_id, _ in queue.wake(queue.queues_of(first))] == ["b"]
    assert queue.position("b", second) is None

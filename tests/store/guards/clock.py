"""Guards of the scripts that follow a jump of Redis's clock."""

from __future__ import annotations

from tests.store.guards.marks import scenario
from tests.store.stored_run import StoredRun

HOUR = 3_600_000

# --- jump --------------------------------------------------------------------------------------


@scenario
def a_jump_is_counted_once(stored: StoredRun) -> None:
    store = stored.store
    assert store.note_jump(0, -HOUR)
    assert not store.note_jump(0, -HOUR)
    assert stored.redis.hmget(store.keys.clock, "jumps", "jumped") == ["1", str(-HOUR)]


# --- shift -------------------------------------------------------------------------------------


@scenario
def a_clock_jump_moves_the_deadlines_of_a_run_once(stored: StoredRun) -> None:
    """A sweeper that is late does not move it back to an earlier jump either."""
    stored.begin(0)
    assert stored.store.shift(stored.run_id, 2, HOUR)
    with stored.unchanged():
        assert not stored.store.shift(stored.run_id, 2, HOUR)
        assert not stored.store.shift(stored.run_id, 1, -HOUR)


@scenario
def a_message_that_is_due_at_once_stays_due(stored: StoredRun) -> None:
    stored.lay()
    stored.put(steps={"status:0": "ready", "sent:0": stored.store.now(), "sent_until:0": 0})
    assert stored.store.shift(stored.run_id, 1, HOUR)
    assert stored.step("sent_until:0") == "0"

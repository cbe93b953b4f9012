"""Findings of the consistency checks about hosts, from the registry alone."""

from __future__ import annotations

import pytest

from longshore.orchestration.installation.checks import examine
from longshore.orchestration.settings import Settings
from longshore.orchestration.store.hosts import Hosts, Node
from longshore.tasks.simulation.memory_store import MemoryStore
from longshore.workers.queues import names


@pytest.mark.parametrize(
    ("queues", "engine", "grade"),
    [
        (names(), None, "warning"),
        (["docker", "docker.undo"], None, "error"),
        (names(), "", "error"),
        (names(), "27.0.1", "ok"),
    ],
    ids=["no-engine-and-no-queue-chosen", "no-engine-for-a-chosen-queue", "silent-engine", "engine"],
)
def test_missing_engine_is_an_error_if_its_queue_was_chosen(queues: list[str], engine: str | None, grade: str) -> None:
    store = MemoryStore(Settings())
    node = Node("one@web1", tuple(queues), facts={"docker": engine, "compose": "2.20.0"})
    Hosts(store).register("web1", node)

    found = [each for each in examine(store) if "web1" in each.what and "ocker" in each.what]

    assert [each.grade for each in found] == [grade]


def test_only_a_claim_timeout_below_the_lease_is_reported() -> None:
    """A step may run longer than the visibility timeout, which does not apply to its message."""
    store = MemoryStore(Settings(lease=20, claim_timeout=10, visibility_timeout=1, step_timeout=60))

    found = [each for each in examine(store) if "timeout" in each.what]

    assert [each.what.partition(":")[0] for each in found] == [
        "the claim timeout of 10s is shorter than a lease",
    ]

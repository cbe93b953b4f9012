"""Messages of a newer version that an older worker receives."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from celery.exceptions import Ignore, Retry

from longshore.tasks.control import celery_tasks
from longshore.tasks.loaded_runs import Newer


class FakeTask:
    """A task that records its retries."""

    def __init__(self, retries: int) -> None:
        self.request = SimpleNamespace(retries=retries)
        self.again: list[float] = []

    def retry(self, *, exc: Exception, countdown: float, max_retries: int | None, throw: bool) -> Retry:
        assert max_retries is None
        assert not throw
        self.again.append(countdown)
        return Retry(exc=exc)


class NewerPlans:
    def get(self, run_id: str) -> Any:
        raise Newer(f"run {run_id} was started by a newer version")


@pytest.fixture(autouse=True)
def newer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(celery_tasks, "store_and_plans", lambda: (None, NewerPlans()))


def test_message_of_a_newer_version_is_requeued() -> None:
    task: Any = FakeTask(retries=0)

    with pytest.raises(Retry):
        celery_tasks._delivery(task, "r", 0, "")

    assert len(task.again) == 1
    assert 0.2 <= task.again[0] <= 1.0


def test_message_of_a_newer_version_is_requeued_a_limited_number_of_times() -> None:
    task: Any = FakeTask(retries=celery_tasks._PASSED_ON)

    with pytest.raises(Ignore):
        celery_tasks._delivery(task, "r", 0, "")

    assert task.again == []

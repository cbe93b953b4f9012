"""The tasks that send notifications and traces: retries."""

from __future__ import annotations

import pytest
from celery import Task

from longshore.tasks.control import notifications


class Retried(Exception):
    def __init__(self, countdown: float) -> None:
        self.countdown = countdown


@pytest.mark.parametrize("task", [notifications.notify, notifications.trace], ids=lambda task: task.name)
def test_failed_delivery_is_retried_within_six_minutes(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[type-arg]
    def fails() -> None:
        raise OSError("the receiver does not answer")

    def retry(*, countdown: float, **_: object) -> Retried:
        return Retried(countdown)

    monkeypatch.setattr(notifications, "store_and_plans", fails)
    monkeypatch.setattr(task, "retry", retry)
    delays = []
    for retries in range(task.max_retries or 0):
        task.push_request(retries=retries)
        try:
            with pytest.raises(Retried) as caught:
                task.run("r1", "1-1") if task.name.endswith("notify") else task.run("r1")
        finally:
            task.pop_request()
        delays.append(caught.value.countdown)

    assert delays == [2, 4, 8, 16, 32, 64, 120, 120]

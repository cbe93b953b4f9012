"""The fault injector counts only faults that it has injected."""

from __future__ import annotations

import os
import signal
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from tests.faults.fault_injector import FaultInjector

if TYPE_CHECKING:
    import random


class StartingWorker:
    """A running worker that has no pool process yet."""

    running = True

    def __init__(self) -> None:
        self.pool: list[int] = []
        self.signals: list[int] = []

    def children(self) -> list[int]:
        return self.pool

    def signal_main(self, number: int) -> None:
        self.signals.append(number)

    signal_group = signal_main

    def keep_alive(self) -> None:
        self.signals.append(0)


def injector_for(worker: StartingWorker, *, main: bool) -> FaultInjector:
    """An injector that chooses the main process, or a pool process, of this worker."""
    place: Any = SimpleNamespace(workers=[worker])
    injector = FaultInjector(place, 0)
    injector.rng = cast("random.Random", SimpleNamespace(choice=lambda _: worker, random=lambda: 0.0 if main else 0.9))
    return injector


def test_worker_without_pool_processes_does_not_count_as_stopped() -> None:
    worker = StartingWorker()
    injector = injector_for(worker, main=False)

    injector.stop_one_process(60.0)
    injector.restart_workers()

    assert (dict(injector.injected), worker.signals) == ({}, [0]), "the worker was not kept alive"


def test_ended_pool_process_does_not_count_as_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: object) -> None:
        raise ProcessLookupError

    monkeypatch.setattr(os, "kill", gone)
    worker = StartingWorker()
    worker.pool = [1]
    injector = injector_for(worker, main=False)

    injector.stop_one_process(60.0)
    injector.restart_workers()

    assert (dict(injector.injected), worker.signals) == ({}, [0])


def test_stopped_main_process_is_continued_later() -> None:
    worker = StartingWorker()
    injector = injector_for(worker, main=True)

    injector.stop_one_process(60.0)
    injector.restart_workers()
    injector.continue_workers()

    assert dict(injector.injected) == {"main processes stopped": 1}
    assert worker.signals == [signal.SIGSTOP, signal.SIGCONT, 0]

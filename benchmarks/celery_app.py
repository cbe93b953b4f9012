"""The same work as plain Celery tasks and canvas, with stock settings and the stock Redis result backend."""

from __future__ import annotations

import os
import time

from celery import Celery, Signature, chain, group
from redis import Redis

app = Celery("native", broker=os.environ.get("BENCH_URL"), backend=os.environ.get("BENCH_URL"))
app.conf.worker_hijack_root_logger = False


@app.task(name="native.noop")
def noop() -> None:
    """A step."""


@app.task(name="native.fire", ignore_result=True)
def fire() -> None:
    """A step without a result."""


@app.task(name="native.barrier")
def barrier(_results: object = None) -> None:
    """The end of a level."""


class CeleryPeer:
    """The measures of Celery. Each method returns when the work is done."""

    def __init__(self, url: str, redis: Redis) -> None:
        app.conf.update(broker_url=url, result_backend=url)
        self._redis = redis

    def tasks(self, count: int) -> float:
        """The seconds of independent tasks without results."""
        began = time.perf_counter()
        for _ in range(count):
            fire.apply_async()
        return self._until_done() - began

    def chains(self, count: int, length: int) -> float:
        """The seconds of concurrent chains without results."""
        began = time.perf_counter()
        for _ in range(count):
            chain(*[fire.si() for _ in range(length)]).apply_async()
        return self._until_done() - began

    def chain(self, length: int) -> float:
        """The seconds of one chain until the result of its last task."""
        began = time.perf_counter()
        chain(*[noop.si() for _ in range(length)]).apply_async().get(timeout=600, interval=0.001)
        return time.perf_counter() - began

    def canvas(self, levels: int, width: int) -> float:
        """The seconds of consecutive levels, each of them a chord with a barrier."""
        parts: list[Signature[object]] = []
        for _ in range(levels):
            parts += [group(noop.si() for _ in range(width)), barrier.si()]
        began = time.perf_counter()
        result = chain(*parts).apply_async()
        result.get(timeout=600, interval=0.01)
        took = time.perf_counter() - began
        result.forget()
        return took

    def round_trip(self) -> float:
        """The seconds of one task until its result."""
        began = time.perf_counter()
        noop.delay().get(timeout=600, interval=0.001)
        return time.perf_counter() - began

    def _until_done(self) -> float:
        """The time at which the queue became empty, if the queue then stays empty for a while."""
        empty_since = None
        while True:
            now = time.perf_counter()
            if self._redis.llen("celery") or self._redis.hlen("unacked"):
                empty_since = None
            elif empty_since is None:
                empty_since = now
            elif now - empty_since > 0.02:
                return empty_since
            time.sleep(0.002)

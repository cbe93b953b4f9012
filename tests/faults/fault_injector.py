"""Random faults of workers, their processes, messages and Redis, reproducible by a seed."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator

import redis

from tests.integration.processes import Installation, Worker
from tests.servers import RedisServer


class Messages:
    """Duplicates, drops and reorders each n-th message. A thread reads the sent messages from MONITOR."""

    def __init__(
        self, place: Installation, *, duplicate_every: int = 0, lose_every: int = 0, shuffle_every: int = 0
    ) -> None:
        self.place = place
        self.duplicate_every = duplicate_every
        self.lose_every = lose_every
        self.shuffle_every = shuffle_every
        self.seen = self.duplicated = self.lost = self.shuffled = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Messages:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(10.0)

    def _watch(self) -> None:
        while not self._stop.is_set():
            with contextlib.suppress(redis.RedisError, OSError, ValueError):
                self._monitor()
            time.sleep(0.2)

    def _monitor(self) -> None:
        prefix = self.place.settings.broker_prefix()
        copies: set[str] = set()
        url = self.place.redis_url
        with (
            redis.Redis.from_url(url, socket_timeout=2.0, decode_responses=True) as client,
            client.monitor() as monitor,
        ):
            while not self._stop.is_set():
                try:
                    command = str(monitor.next_command()["command"])
                except redis.TimeoutError:
                    return
                if not command.startswith("LPUSH "):
                    continue
                _, queue, body = command.split(" ", 2)
                if not queue.startswith(prefix) or body in copies:
                    continue
                self.seen += 1
                if self.lose_every and self.seen % self.lose_every == 0:
                    self.lost += int(client.lrem(queue, 0, body) > 0)  # type: ignore[operator]
                elif self.duplicate_every and self.seen % self.duplicate_every == 0:
                    copies.add(body)
                    client.lpush(queue, body)
                    self.duplicated += 1
                elif self.shuffle_every and self.seen % self.shuffle_every == 0:
                    # The next message becomes the last one.
                    self.shuffled += int(client.lmove(queue, queue, "RIGHT", "LEFT") is not None)


class FaultInjector:
    """Injects faults into workers and Redis. Use it in the main thread, which has to start the workers."""

    def __init__(self, place: Installation, seed: int, server: RedisServer | None = None) -> None:
        self.place = place
        self.rng = random.Random(seed)
        self.server = server
        self.injected: Counter[str] = Counter()
        self._stopped: dict[Worker, float] = {}
        self._clock = 0.0

    def kill_worker(self) -> None:
        worker = self.rng.choice(self.place.workers)
        worker.kill()
        self._stopped.pop(worker, None)
        self.injected["workers killed"] += 1

    def kill_pool_process(self) -> None:
        worker = self.rng.choice(self.place.workers)
        children = worker.children()
        if children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.rng.choice(children), signal.SIGKILL)
                self.injected["pool processes killed"] += 1

    def stop_worker(self, seconds: float) -> None:
        """Stop all processes of a worker for some seconds."""
        worker = self.rng.choice(self.place.workers)
        if worker.running and worker not in self._stopped:
            worker.signal_group(signal.SIGSTOP)
            self._stopped[worker] = time.monotonic() + seconds
            self.injected["workers stopped"] += 1

    def stop_one_process(self, seconds: float) -> None:
        """Stop either the main process of a worker, which renews the leases, or one pool process."""
        worker = self.rng.choice(self.place.workers)
        if not worker.running or worker in self._stopped:
            return
        if self.rng.random() < 0.5:
            worker.signal_main(signal.SIGSTOP)
            stopped = "main processes stopped"
        else:
            try:
                os.kill(worker.children()[0], signal.SIGSTOP)
            except (IndexError, ProcessLookupError):
                return  # the worker has no pool process at this moment
            stopped = "pool processes stopped"
        self._stopped[worker] = time.monotonic() + seconds
        self.injected[stopped] += 1

    def lose_writes(self) -> None:
        """Kill Redis, and cut off its latest acknowledged writes."""
        assert self.server is not None
        self.server.stop(signal.SIGKILL)
        self.server.lose(self.rng.choice([200, 1000, 5000, 20_000, 60_000]))
        self.server.start()
        self.injected["kills of Redis with lost writes"] += 1

    def set_clock(self) -> None:
        """Set the clock of Redis forward or back, by an hour or a day."""
        assert self.server is not None
        self._clock += self.rng.choice([-86_400.0, -3600.0, 3600.0, 86_400.0])
        self.server.set_clock(self._clock)
        self.injected["jumps of the clock"] += 1

    def restart_redis(self) -> None:
        assert self.server is not None
        self.server.restart(signal.SIGKILL)
        self.injected["restarts of Redis"] += 1

    def restart_workers(self) -> None:
        """Continue stopped workers whose time is over, and start ended workers, as a process manager does."""
        for worker, until in list(self._stopped.items()):
            if time.monotonic() >= until:
                worker.signal_group(signal.SIGCONT)
                del self._stopped[worker]
        for worker in self.place.workers:
            if worker not in self._stopped:
                worker.keep_alive()

    def continue_workers(self) -> None:
        """Continue all stopped workers, and start ended workers."""
        for worker in list(self._stopped):
            worker.signal_group(signal.SIGCONT)
        self._stopped.clear()
        self.restart_workers()

    def inject_until(self, every: float, fault: Callable[[], None], until: Callable[[], bool]) -> None:
        """Inject a fault every `every` seconds until the condition holds."""
        following = time.monotonic() + every
        while not until():
            self.restart_workers()
            if time.monotonic() >= following:
                fault()
                following = time.monotonic() + every
            time.sleep(0.1)


def histogram(moments: list[float], width: float) -> Iterator[str]:
    """The number of moments in each interval, a line each."""
    if not moments:
        return
    begin = min(moments)
    counts = Counter(int((moment - begin) / width) for moment in moments)
    for n in range(max(counts) + 1):
        yield f"{n * width:5.1f} s  {'#' * counts[n]} {counts[n]}"

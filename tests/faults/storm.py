"""What goes wrong, at random but by a seed: workers, children, messages, connections, Redis."""

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
    """Doubles, loses and holds back every so many messages: as they are sent, seen through MONITOR."""

    def __init__(
        self, place: Installation, *, double_every: int = 0, lose_every: int = 0, shuffle_every: int = 0
    ) -> None:
        self.place = place
        self.double_every = double_every
        self.lose_every = lose_every
        self.shuffle_every = shuffle_every
        self.seen = self.doubled = self.lost = self.shuffled = 0
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
                self._until_it_breaks()
            time.sleep(0.2)

    def _until_it_breaks(self) -> None:
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
                elif self.double_every and self.seen % self.double_every == 0:
                    copies.add(body)
                    client.lpush(queue, body)
                    self.doubled += 1
                elif self.shuffle_every and self.seen % self.shuffle_every == 0:
                    # The one that is next has its turn last.
                    self.shuffled += int(client.lmove(queue, queue, "RIGHT", "LEFT") is not None)


class Storm:
    """Faults at workers and Redis, one after the other. Run it in the main thread: it starts workers again."""

    def __init__(self, place: Installation, seed: int, server: RedisServer | None = None) -> None:
        self.place = place
        self.chance = random.Random(seed)
        self.server = server
        self.happened: Counter[str] = Counter()
        self._stopped: dict[Worker, float] = {}
        self._clock = 0.0

    def kill_a_worker(self) -> None:
        worker = self.chance.choice(self.place.workers)
        worker.kill()
        self._stopped.pop(worker, None)
        self.happened["workers killed"] += 1

    def kill_a_child(self) -> None:
        worker = self.chance.choice(self.place.workers)
        children = worker.children()
        if children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.chance.choice(children), signal.SIGKILL)
                self.happened["pool processes killed"] += 1

    def stop_a_worker(self, seconds: float) -> None:
        """Beyond the lease; it wakes up by itself."""
        worker = self.chance.choice(self.place.workers)
        if worker.running and worker not in self._stopped:
            worker.signal_group(signal.SIGSTOP)
            self._stopped[worker] = time.monotonic() + seconds
            self.happened["workers stopped"] += 1

    def stop_a_part(self, seconds: float) -> None:
        """Only its main process, which renews leases; or only one that does a step."""
        worker = self.chance.choice(self.place.workers)
        if worker.running and worker not in self._stopped:
            self._stopped[worker] = time.monotonic() + seconds
            if self.chance.random() < 0.5:
                worker.signal_main(signal.SIGSTOP)
                self.happened["main processes stopped"] += 1
                return
            for child in worker.children()[:1]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signal.SIGSTOP)
                    self.happened["pool processes stopped"] += 1

    def lose_writes(self) -> None:
        """Kill Redis, and lose the last of what it has acknowledged."""
        assert self.server is not None
        self.server.stop(signal.SIGKILL)
        self.server.lose(self.chance.choice([200, 1000, 5000, 20_000, 60_000]))
        self.server.start()
        self.happened["kills of Redis with lost writes"] += 1

    def set_clock(self) -> None:
        """By an hour or a day, forward or back."""
        assert self.server is not None
        self._clock += self.chance.choice([-86_400.0, -3600.0, 3600.0, 86_400.0])
        self.server.set_clock(self._clock)
        self.happened["jumps of the clock"] += 1

    def restart_redis(self) -> None:
        assert self.server is not None
        self.server.restart(signal.SIGKILL)
        self.happened["restarts of Redis"] += 1

    def keep_up(self) -> None:
        """What runs workers starts those again that have ended."""
        for worker, until in list(self._stopped.items()):
            if time.monotonic() >= until:
                worker.signal_group(signal.SIGCONT)
                del self._stopped[worker]
        for worker in self.place.workers:
            if worker not in self._stopped:
                worker.keep_alive()

    def calm(self) -> None:
        for worker in list(self._stopped):
            worker.signal_group(signal.SIGCONT)
        self._stopped.clear()
        self.keep_up()

    def rage(self, every: float, fault: Callable[[], None], until: Callable[[], bool]) -> None:
        """A fault every so many seconds, until something holds."""
        following = time.monotonic() + every
        while not until():
            self.keep_up()
            if time.monotonic() >= following:
                fault()
                following = time.monotonic() + every
            time.sleep(0.1)


def histogram(moments: list[float], width: float) -> Iterator[str]:
    """How many fell into each span."""
    if not moments:
        return
    begin = min(moments)
    counts = Counter(int((moment - begin) / width) for moment in moments)
    for n in range(max(counts) + 1):
        yield f"{n * width:5.1f} s  {'#' * counts[n]} {counts[n]}"

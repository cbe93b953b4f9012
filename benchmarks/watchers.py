"""A thousand watchers in one asyncio process: the latency of events, and of other requests of this process.

    tests/machine/with-servers --redis-only .venv/bin/python benchmarks/watchers.py [WATCHERS [EVENTS A SECOND]]

Runs and events are written to the streams directly, so that no worker is measured.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from pathlib import Path

import redis

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from longshore.orchestration import AsyncClient, AsyncRun, Client, Plan, Settings
from tests import servers

SECONDS = 10.0


def percentile(values: list[float], part: float) -> str:
    return f"{sorted(values)[min(len(values) - 1, int(len(values) * part))] * 1000:.1f} ms"


def started(client: Client, number: int) -> list[str]:
    """Runs with stored requests, without a worker."""
    plan = Plan("watched")
    plan.step("only", "noop.execute")
    return [client.start(plan, run_id=f"watched-{n}").id for n in range(number)]


async def watch(run: AsyncRun, latencies: list[float], ready: asyncio.Event) -> None:
    async for event in run.events():
        ready.set()
        if "sent" in event.fields:
            latencies.append(time.time() - float(event.fields["sent"]))


async def ticks(gaps: list[float]) -> None:
    """The delay of another task of the event loop."""
    while True:
        began = time.perf_counter()
        await asyncio.sleep(0.01)
        gaps.append(time.perf_counter() - began - 0.01)


async def requests(run: AsyncRun, took: list[float]) -> None:
    """Read a report repeatedly, as a handler of requests does."""
    while True:
        began = time.perf_counter()
        await run.report()
        took.append(time.perf_counter() - began)
        await asyncio.sleep(0.05)


def write(url: str, number: int, rate: float) -> None:
    """Emit events, one after the other in each run."""
    plain = redis.Redis.from_url(url)
    store = Client(Settings(redis_url=url, namespace="watchers")).store
    until = time.monotonic() + SECONDS
    took: list[float] = []
    n = 0
    while time.monotonic() < until:
        key = store.keys.of(f"watched-{n % number}").events
        began = time.perf_counter()
        plain.xadd(key, {"event": "noted", "at": 0, "sent": repr(time.time())})
        took.append(time.perf_counter() - began)
        n += 1
        time.sleep(1 / rate)
    print(f"for comparison, Redis stores an event within {percentile(took, 0.5)}, p99 {percentile(took, 0.99)}")


async def main(url: str, number: int, rate: float) -> None:
    settings = Settings(redis_url=url, namespace="watchers")
    store = Client(settings).store
    ids = started(Client(settings), number)
    plain = redis.Redis.from_url(url)
    quiet: dict[str, list[float]] = {"gaps": [], "took": []}
    busy: dict[str, list[float]] = {"gaps": [], "took": []}
    latencies: list[float] = []

    async with AsyncClient(settings) as client:
        runs = [await client.get(run_id) for run_id in ids]

        async def measured(into: dict[str, list[float]], during: float) -> None:
            others = [asyncio.create_task(ticks(into["gaps"])), asyncio.create_task(requests(runs[0], into["took"]))]
            await asyncio.sleep(during)
            for task in others:
                task.cancel()

        await measured(quiet, 3.0)
        ready = [asyncio.Event() for _ in runs]
        watchers = [asyncio.create_task(watch(run, latencies, event)) for run, event in zip(runs, ready, strict=True)]
        for run_id in ids:
            plain.xadd(store.keys.of(run_id).events, {"event": "noted", "at": 0})
        await asyncio.gather(*(event.wait() for event in ready))

        writer = await asyncio.create_subprocess_exec(sys.executable, __file__, "write", url, str(number), str(rate))
        used = time.process_time()
        await measured(busy, SECONDS + 1.5)
        await writer.wait()
        used = time.process_time() - used
        readers = [each for each in plain.client_list() if each["cmd"] == "xread"]
        for task in watchers:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    print(f"{number} watchers, {len(latencies)} events in {SECONDS:g} s; connections that read: {len(readers)}")
    print(f"event latency: median {percentile(latencies, 0.5)}, p99 {percentile(latencies, 0.99)}")
    for name, found in (("without watchers", quiet), ("with watchers", busy)):
        gaps, took = found["gaps"], found["took"]
        print(f"{name}: another task is late by {percentile(gaps, 0.5)}, p99 {percentile(gaps, 0.99)}; ", end="")
        print(f"a report takes {percentile(took, 0.5)}, p99 {percentile(took, 0.99)}")
    print(f"processor time: {used / SECONDS:.2f} s a second")


if __name__ == "__main__":
    if sys.argv[1:2] == ["write"]:
        write(sys.argv[2], int(sys.argv[3]), float(sys.argv[4]))
        sys.exit()
    arguments = [int(text) for text in sys.argv[1:]]
    server = servers.RedisServer()
    server.start()
    try:
        asyncio.run(main(server.url, *(arguments + [1000, 200][len(arguments) :])))
    finally:
        server.close()

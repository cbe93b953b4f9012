"""Figures from one run: `make bench`. Ratios are what counts; absolute times are those of the machine.

Each comparison is measured three times, turn and turn about, and the median is shown.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from tests.servers import RedisServer  # noqa: E402 - after the path

CONCURRENCY = 4
ROUNDS = 3


class Bench:
    """One Redis, a worker of ours and a worker of plain Celery, of which one runs at a time."""

    def __init__(self, server: RedisServer, folder: Path) -> None:
        self.server = server
        self.redis = server.client()
        self.folder = folder
        os.environ["LONGSHORE_REDIS_URL"] = server.url
        os.environ["LONGSHORE_STATE_DIR"] = str(folder / "state")
        os.environ["BENCH_URL"] = server.url
        os.environ["PYTHONPATH"] = str(Path(__file__).resolve().parent)

    def worker(self, app: str, name: str, *more: str, processes: int = CONCURRENCY) -> subprocess.Popen[bytes]:
        """A prefork worker, once it is ready."""
        log = self.folder / f"{name}.log"
        process = subprocess.Popen(
            [
                sys.executable, "-m", "celery", "-A", app, "worker", "-c", str(processes), "-n", f"{name}@%h",
                "-l", "INFO", "--without-gossip", "--without-mingle", *more,
            ],
            stdout=log.open("wb"), stderr=subprocess.STDOUT, cwd=self.folder,
        )  # fmt: skip
        until = time.monotonic() + 30
        while " ready." not in log.read_text():
            if process.poll() is not None or time.monotonic() > until:
                raise SystemExit(f"the worker {name} did not start: {log.read_text()[-500:]}")
            time.sleep(0.05)
        time.sleep(0.5)
        return process

    def bytes_in(self) -> int:
        return int(self.redis.info("stats")["total_net_input_bytes"])

    def commands(self) -> int:
        return int(self.redis.info("stats")["total_commands_processed"])


def stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    process.wait(30)


def ours(levels: int, width: int) -> tuple[float, float]:
    """Seconds of a no-op plan, and KiB into Redis a step."""
    from longshore.orchestration import Client, Plan, Settings  # noqa: PLC0415 - after the environment is set

    client = Client(Settings())
    plan = Plan(f"grid-{levels}x{width}")
    above: list[str] = []
    for level in range(levels):
        row = [f"s{level}-{n}" for n in range(width)]
        for name in row:
            plan.step(name, "noop.execute").after(*above)
        above = row
    before = BENCH.bytes_in()
    began = time.perf_counter()
    report = client.start(plan).wait(600)
    took = time.perf_counter() - began
    assert report.state == "succeeded", report.summary
    return took, (BENCH.bytes_in() - before) / 1024 / (levels * width)


def native(levels: int, width: int) -> tuple[float, float]:
    """The same DAG as canvas."""
    import native as canvas  # noqa: PLC0415 - after the environment is set

    before = BENCH.bytes_in()
    began = time.perf_counter()
    result = canvas.grid(levels, width).apply_async()  # type: ignore[attr-defined]
    result.get(timeout=600, interval=0.01)
    took = time.perf_counter() - began
    result.forget()
    return took, (BENCH.bytes_in() - before) / 1024 / (levels * width)


def bare(count: int) -> float:
    """Seconds for tasks that nobody waits for, from the first message to the last one done."""
    import native as canvas  # noqa: PLC0415 - after the environment is set

    began = time.perf_counter()
    for _ in range(count):
        canvas.fire.apply_async()
    while BENCH.redis.llen("celery") or BENCH.redis.hlen("unacked"):
        time.sleep(0.005)
    return time.perf_counter() - began


def median(measure: Callable[[], float]) -> float:
    return statistics.median(measure() for _ in range(ROUNDS))


def rate(workers: int, items: int = 100) -> float:
    """Items a second of work that waits 100 ms each, by so many workers of one process."""
    from longshore.orchestration import Client, Plan, Settings  # noqa: PLC0415 - after the environment is set

    control = BENCH.worker("longshore.workers", f"control-{workers}", "-Q", "control", processes=1)
    others = [
        BENCH.worker("longshore.workers", f"one-{workers}-{n}", "-Q", "noop.undo,noop", processes=1)
        for n in range(workers)
    ]
    try:
        plan = Plan(f"waits-{workers}")
        plan.step("wait", "noop.execute", sleep=0.1).foreach(list(range(items)))
        run = Client(Settings()).start(plan)
        report = run.wait(600)
        assert report.state == "succeeded", report.summary
        ends = [event.at for event in run.events() if event.name in {"item_started", "item_ended"}]
        return items / (max(ends) - min(ends)) * 1000
    finally:
        for process in [control, *others]:
            stop(process)


def idle(process: subprocess.Popen[bytes], seconds: float = 10.0) -> tuple[float, float, float]:
    """Resident MiB (all its processes), CPU percent and Redis commands a second of a worker with no work."""
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=False)
    pids = [process.pid, *map(int, children.stdout.split())]
    resident = sum(_pss(pid) for pid in pids)
    cpu, commands = sum(map(_cpu, pids)), BENCH.commands()
    time.sleep(seconds)
    # One of the commands is the question itself.
    return resident, 100 * (sum(map(_cpu, pids)) - cpu) / seconds, (BENCH.commands() - commands - 1) / seconds


def _pss(pid: int) -> float:
    """MiB, memory that processes share counted once."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    return 0.0


def _cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    print(f"one worker of {CONCURRENCY} processes, {os.cpu_count()} CPUs, medians of {ROUNDS}", flush=True)
    worker = BENCH.worker("longshore.workers", "ours")
    ours(2, 4)
    memory, cpu, commands = idle(worker)
    small, wide = ours(5, 40)[1], ours(40, 50)[1]
    grid_ours = median(lambda: ours(50, 10)[0])
    flat_ours = median(lambda: ours(1, 500)[0])
    stop(worker)
    BENCH.server.flush()

    alone, four = rate(1), rate(4)
    BENCH.server.flush()

    worker = BENCH.worker("native", "plain")
    native(2, 4)
    bare(50)
    native_small = native(5, 40)[1]
    grid_native = median(lambda: native(50, 10)[0])
    flat_bare = median(lambda: bare(500))
    native_wide = native(40, 50)[1] if "--all" in sys.argv else None
    stop(worker)

    shown = f"{native_wide:.0f}" if native_wide else "not run (--all)"
    rows = [
        ("KiB into Redis a step, 5 × 40", f"{small:.1f}", f"native {native_small:.0f}", "at most 10"),
        ("KiB into Redis a step, 40 × 50", f"{wide:.1f}", f"native {shown}", "at most 10"),
        ("  ratio 40 × 50 to 5 × 40", f"{wide / small:.2f}", "", "at most 1.2"),
        ("50 × 10 no-ops, seconds", f"{grid_ours:.2f}", f"native {grid_native:.2f}", ""),
        ("  times as fast as native canvas", f"{grid_native / grid_ours:.1f}", "", "at least 4"),
        ("1 × 500 no-ops, steps a second", f"{500 / flat_ours:.0f}", f"bare tasks {500 / flat_bare:.0f}", ""),
        ("  share of the rate of bare tasks", f"{flat_bare / flat_ours:.2f}", "", "at least 0.5"),
        ("items of 100 ms a second, 4 workers", f"{four:.1f}", f"1 worker {alone:.1f}", ""),
        ("  times as many as one worker", f"{four / alone:.2f}", "", "at least 3.5"),
        ("idle worker: resident MiB", f"{memory:.0f}", "", ""),
        ("idle worker: CPU percent", f"{cpu:.1f}", "", ""),
        ("idle worker: Redis commands a second", f"{commands:.1f}", "", ""),
    ]
    for name, value, against, goal in rows:
        print(f"{name:40} {value:>8}   {against:22} {goal}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="ls-bench-") as scratch, RedisServer("--save", "") as redis_server:
        BENCH = Bench(redis_server, Path(scratch))
        main()

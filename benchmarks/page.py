"""`docs/reference/benchmarks.md`: the figures with the machine, the versions and the date."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from benchmarks import dbos_peer
from benchmarks.site import CONCURRENCY, ROOT
from benchmarks.table import Section, as_markdown, missed

PAGE = ROOT / "docs" / "reference" / "benchmarks.md"
#: Packages by their names on an index, with the names that people use.
_PACKAGES = {
    "longshore": "Longshore",
    "celery": "Celery",
    "kombu": "kombu",
    "redis": "redis-py",
    "pydantic": "pydantic",
}

_METHOD = f"""\
`make bench` measures all of this in one run, and `make bench BENCH_ARGS='--large --write'` writes this page. The column
*beside* has the other systems, which are measured alternately with Longshore, in the same run. *Share* is the figure of
Longshore divided by that of the system in the target, or of the first one. Longshore and Celery have a Redis and a
worker each, prefork with {CONCURRENCY} processes. Redis writes neither an append-only file nor snapshots.

- `50 levels × 10` is a plan of 50 levels with 10 steps each; `/s` is steps per second.
- A *bare Celery task* has no result, and nothing waits for it; a chain of such tasks records nothing. The *Celery
  canvas* has one chord for each level. Longshore's no-ops are recorded steps of a plan.
- *DBOS* runs workflows of no-op steps in one process, with its threads. SQLite and PostgreSQL have their own defaults;
  PostgreSQL writes each commit to the disk.
- *Redis commands* include those inside of scripts. *Redis memory* is the growth of `used_memory`.
- A *start* is the call of `Client.start`, until it returns. Plans of 1,000 and 10,000 steps start without a worker
  beside them.
- Right after many starts, a worker first reads the messages of these starts. A run that is started then waits for that,
  and not for the runs that wait for the key.
- *Recovery* ends with the report of the run. After the loss of a worker or of one of its processes, the next attempt
  begins when the lease of the lost attempt has expired: 15 s by default, `LONGSHORE_LEASE`.
- The stored runs of *Many stored runs* are copies of one finished run of five steps, 30 s apart. If `runs ls` takes no
  longer than `runs ls --help`, the difference is 0.
- Scripts that took less than 1 ms are not timed.
"""


def page(sections: Sequence[Section], versions: Mapping[str, str], rounds: int) -> str:
    """The page of a run."""
    count = len(missed(sections))
    verdict = f"Figures that miss their targets: {count}." if count else "Every figure with a target meets it."
    lines = [
        "# Benchmarks",
        "",
        f"Measured on {datetime.now(UTC):%Y-%m-%d}; medians of {rounds}. {verdict}",
        "",
        "| | |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in (machine() | used_versions(versions)).items()),
        "",
        _METHOD,
        *(f"{as_markdown(section)}\n" for section in sections),
    ]
    return "\n".join(lines).rstrip() + "\n"


def machine() -> dict[str, str]:
    """The processor, its cores, the memory and the system of this machine."""
    models = [line for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    memory = next((int(line.split()[1]) for line in _lines("/proc/meminfo") if line.startswith("MemTotal")), 0)
    return {
        "processor": models[0].partition(":")[2].strip() if models else platform.machine(),
        "cores": str(os.cpu_count()),
        "memory": f"{memory / 1024 / 1024:.1f} GiB",
        "system": f"{platform.system()} {platform.release()}",
    }


def used_versions(servers: Mapping[str, str]) -> dict[str, str]:
    """The versions of Python, of the packages, and of the servers that were measured."""
    found = (
        {"Python": platform.python_version()}
        | {shown: version(name) for name, shown in _PACKAGES.items()}
        | dict(servers)
    )
    if dbos := dbos_peer.version():
        found["DBOS"] = dbos
    return found


def _lines(file: str) -> list[str]:
    return Path(file).read_text().splitlines() if Path(file).exists() else []

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
from benchmarks.table import Section, as_markdown, missed, with_unit

PAGE = ROOT / "docs" / "reference" / "benchmarks.md"
#: A page with a table of some of the figures.
COMPARISON = ROOT / "docs" / "concepts" / "comparison.md"
#: The columns of the peers in this table, counted from the first peer. All other peers are kinds of Celery, whose names
#: are in the cells of the column 0.
_COLUMNS = {"DBOS SQLite": 1, "DBOS PostgreSQL": 2}
#: The display names of packages, by their names on an index.
_PACKAGES = {
    "longshore": "Longshore",
    "celery": "Celery",
    "kombu": "kombu",
    "redis": "redis-py",
    "pydantic": "pydantic",
}

_METHOD = f"""\
`make bench` measures these figures and prints them. `make bench BENCH_ARGS=--write` also writes this page. The option
`--large` adds plans of 10,000 steps, and measurements with 5,000 and with 100,000 waiting runs.

| column | content |
|---|---|
| Longshore | the figure of Longshore |
| beside | figures of other systems, measured in turn with Longshore's; in *Undo* and *Scale*, of Longshore itself |
| share | Longshore's figure, divided by the figure in *beside* that the target names, or else by the first one |
| target | a limit of Longshore's figure, or of the share (`0.75 × …`) |

The systems:

- Longshore and Celery each have a Redis server and a worker with {CONCURRENCY} processes (prefork). Redis writes
  neither an append-only file nor snapshots, except in *Rates with appendfsync always*.
- Longshore's no-ops are recorded steps of a plan.
- *Bare Celery tasks* and *bare Celery chains* have no results, and no client waits for them.
- For a *Celery chain with results* or a *Celery task with result*, a client waits for the last result.
- The *Celery canvas* has one chord for each level.
- *DBOS* runs workflows of no-op steps in one process with several threads. SQLite and PostgreSQL have their default
  settings. PostgreSQL therefore writes each commit to the disk.

The figures:

- A rate is the median of the rounds. *Recovery* has at most three rounds. *Idle cost*, *Many live runs*, *Admission*,
  *Scale* and *Large plans* are measured once.
- *p50* is the median of all samples of a latency. 99% of the samples do not exceed *p99*.
- `50 levels × 10`, or `50 × 10` for short, is a plan of 50 levels with 10 steps each.
"""

#: The notes below the headings of the sections, by title.
_NOTES = {
    "Idle cost": f"""\
Memory and processor are those of the main process of the worker and its {CONCURRENCY} pool processes; 100% is one core.
The 2,000 runs wait for an approval. A *sweep* is the search of a worker for [due
runs](../concepts/runs.md#how-a-run-continues), once a second.
""",
    "Many live runs": """\
The benchmark itself claims the steps, so that the worker only checks the runs in its sweeps. The worker has to check a
run with a running step at least every 5 s, a third of a [lease](../concepts/leases.md#lease).
""",
    "Rates": """\
`/s` is steps per second. Each of the 100 runs, bare Celery chains or workflows has 5 steps, one after the other.
""",
    "Latencies": """\
`Client.start` is the time until this call returns. *From one step to the next* is the time between the starts of two
consecutive steps, in a plan of 40 sequential no-ops. Redis records both starts in whole milliseconds.
""",
    "Starts of large plans": """\
The plans start on a Redis server without a worker, because a worker would compete for the processor.
""",
    "Redis use per step": """\
*Redis commands* include the commands inside Lua scripts. *Redis memory* is the growth of `used_memory`.
""",
    "Behind runs that wait for a concurrency key": """\
The benchmark starts 20, 200, 800 or 5,000 runs with one [concurrency
key](../concepts/recovery.md#concurrency-keys), of which at most two run at the same time. *Unrelated* runs have one
step and no key. All times are from the start of such a run to its report.
""",
    "Admission": """\
One run holds a concurrency key, and all other runs wait for the key. The benchmark releases the key, and admits the
first waiting run ([admission](../concepts/recovery.md#admission-and-waiting)). The figure is the sum of the execution
times of the Redis commands for both.
""",
    "Many stored runs": """\
The runs are copies of one finished run of five steps. Most of the time of `longshore runs ls` is the start of the
program. The time of `longshore runs ls --help` is therefore subtracted; a negative difference counts as 0. A scrape
counts ended runs for a limited time, and leaves the others to the next scrapes. *A scrape of the metrics* is a scrape
after all runs have been counted.
""",
    "Recovery": """\
The next attempt begins when the [lease](../concepts/leases.md#lease) of the killed attempt has expired: 15 s by default
(`LONGSHORE_LEASE`).
""",
    "Large plans": """\
`10,000 wide` is one level of 10,000 steps. The parentheses name the script.
""",
    "Rates with appendfsync always": """\
Redis writes each change to the disk before the answer.
""",
    "Scripts": """\
*Scripts* are Longshore's Lua scripts in Redis, in all sections except *Large plans*, which has its own rows for
scripts. Redis times the scripts in its slow log, which lists the scripts of 1 ms or more.
""",
}


def page(sections: Sequence[Section], versions: Mapping[str, str], rounds: int) -> str:
    """The page of a run."""
    count = len(missed(sections))
    verdict = f"Figures that miss their targets: {count}." if count else "Every figure with a target meets its target."
    lines = [
        "# Benchmarks",
        "",
        f"Measured on {datetime.now(UTC):%Y-%m-%d}, in {rounds} rounds. {verdict}",
        "",
        "| | |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in (machine() | used_versions(versions)).items()),
        "",
        _METHOD,
        *(f"{_chapter(section)}\n" for section in sections),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _chapter(section: Section) -> str:
    """The section with its note between the heading and the table."""
    heading, _, table = as_markdown(section).partition("\n\n")
    return "\n\n".join([heading, *([_NOTES[section.title].rstrip()] if section.title in _NOTES else []), table])


def with_figures(text: str, sections: Sequence[Section]) -> str:
    """The text of the comparison with the figures of a run: the rows of its table begin with the name of a figure."""
    lines = []
    # The first measurement of a figure counts: a later section repeats the rates under other settings.
    figures = {figure.name: figure for section in reversed(sections) for figure in section.figures}
    for line in text.splitlines():
        name, _, *peers = (cell.strip() for cell in line.strip("|").split("|")) if line.count("|") == 6 else ("", "")
        if (figure := figures.get(name)) is None:
            lines.append(line)
            continue
        for peer, value in figure.peers.items():
            column, shown = _COLUMNS.get(peer, 0), with_unit(value, figure.unit)
            if peers[column]:
                peers[column] = shown if column else f"{peer} {shown}"
        cells = (f" {cell}" if cell else "" for cell in (name, with_unit(figure.value, figure.unit), *peers))
        lines.append(f"|{' |'.join(cells)} |")
    return "\n".join(lines) + "\n"


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

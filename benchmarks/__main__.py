"""`make bench`: measure, print the figures with their targets, and exit 1 if a figure misses its target."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

from benchmarks.bench import Bench
from benchmarks.measures import cost, large, recovery, speed, waiting
from benchmarks.page import COMPARISON, PAGE, page, with_figures
from benchmarks.table import Figure, Section, as_text, at_most, missed

#: Title and function of each measure by name, and whether only `--large` measures it. The last one changes the servers.
MEASURES: dict[str, tuple[str, Callable[[Bench], list[Figure]], bool]] = {
    "idle": ("Idle cost", waiting.idle, False),
    "live": ("Many live runs", waiting.live, False),
    "rates": ("Rates", speed.rates, False),
    "latencies": ("Latencies", speed.latencies, False),
    "starts": ("Starts of large plans", speed.large_starts, False),
    "undo": ("Undo", speed.undo, False),
    "footprint": ("Redis use per step", cost.footprint, False),
    "behind": ("Behind runs that wait for a concurrency key", waiting.behind, False),
    "admission": ("Admission", waiting.admission, True),
    "reading": ("Many stored runs", waiting.reading, False),
    "recovery": ("Recovery", recovery.recovery, False),
    "scale": ("Scale", speed.scale, False),
    "large": ("Large plans", large.large, True),
    "fsync": ("Rates with appendfsync always", speed.rates_on_disk, False),
}


def main() -> int:
    options = arguments()
    signal.signal(signal.SIGTERM, _leave)  # a signal ends the servers and deletes their folders
    for name in [name for name in os.environ if name.startswith("LONGSHORE_")]:
        del os.environ[name]  # a person's settings
    chosen = options.only or [name for name, (_, _, extra) in MEASURES.items() if options.large or not extra]
    with tempfile.TemporaryDirectory(prefix="ls-bench-") as folder:
        bench = Bench(Path(folder), options.rounds, large=options.large)
        try:
            sections = measured(bench, chosen)
        finally:
            bench.close()
    failed = missed(sections)
    if options.write:
        PAGE.write_text(page(sections, bench.versions, options.rounds))
        COMPARISON.write_text(with_figures(COMPARISON.read_text(), sections))
        print(f"wrote {PAGE} and the figures of {COMPARISON}")
    for figure in failed:
        print(f"missed: {figure.name}", file=sys.stderr)
    return 1 if failed else 0


def _leave(number: int, _: FrameType | None) -> None:
    raise SystemExit(128 + number)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench BENCH_ARGS=", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="rounds whose median counts (default 5)")
    parser.add_argument("--only", action="append", choices=MEASURES, metavar="NAME", help=", ".join(MEASURES))
    parser.add_argument("--large", action="store_true", help="also plans of 10,000 steps, and 100,000 waiting runs")
    parser.add_argument("--write", action="store_true", help="write docs/reference/benchmarks.md")
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error("--rounds must be at least 1")
    if options.write and options.only:
        parser.error("--write needs the whole run: omit --only")
    return options


def measured(bench: Bench, chosen: Sequence[str]) -> list[Section]:
    """Measure, and print each section at once. A failed measure becomes a figure without a value."""
    sections: list[Section] = []
    scripts: list[tuple[float, str, str]] = []
    for name, (title, measure, _) in MEASURES.items():
        if name not in chosen:
            continue
        began = time.monotonic()
        try:
            figures = measure(bench)
        except Exception as error:  # noqa: BLE001 - the other measures continue
            figures = [Figure(title, f"{type(error).__name__}: {error}"[:300])]
        sections.append(Section(title, figures))
        print(f"{as_text(sections[-1])}\n({time.monotonic() - began:.0f} s)\n", flush=True)
        scripts.append((*bench.site.longest_script(), title))
    longest, script, title = max(scripts)
    if longest:
        note = f"script `{script}`, in the section *{title}*"
        sections.append(
            Section("Scripts", [Figure("the longest run of a script", longest, "ms", target=at_most(20), note=note)])
        )
        print(as_text(sections[-1]), flush=True)
    return sections


if __name__ == "__main__":
    sys.exit(main())

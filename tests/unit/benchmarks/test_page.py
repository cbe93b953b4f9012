"""The pages that a run of the benchmarks writes."""

from __future__ import annotations

from benchmarks.page import with_figures
from benchmarks.table import Figure, Section

COMPARISON = """\
# Comparison

| figure | Longshore | Celery | DBOS, SQLite | DBOS, PostgreSQL |
|---|---|---|---|---|
| no-ops | 1 /s | bare Celery tasks 2 /s | 3 /s | 4 /s |
| a chain | 1 ms | Celery chain 2 ms | | |
| other | 1 | | | |
"""


def test_comparison_has_the_first_figures_of_the_run() -> None:
    peers = {"bare Celery tasks": 500.0, "DBOS PostgreSQL": 20.0, "DBOS SQLite": 10.0}
    rates = Section("Rates", [Figure("no-ops", 400.0, "/s", peers), Figure("a chain", 1.5, "ms", {"Celery chain": 3})])
    later = Section("Rates on a disk", [Figure("no-ops", 50.0, "/s")])

    assert with_figures(COMPARISON, [rates, later]).splitlines()[4:] == [
        "| no-ops | 400 /s | bare Celery tasks 500 /s | 10 /s | 20 /s |",
        "| a chain | 1.5 ms | Celery chain 3 ms | | |",
        "| other | 1 | | | |",
    ]

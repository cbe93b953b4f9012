"""Targets of the benchmarks, and the tables that show them."""

from __future__ import annotations

import pytest

from benchmarks.table import Figure, Section, as_markdown, as_text, at_least, at_most, missed, number

RATE = Figure("no-ops", 300, "/s", {"Celery": 400, "DBOS": "it is not installed"}, at_least(0.75, "Celery"))


@pytest.mark.parametrize(
    ("figure", "met"),
    [
        (Figure("one", 5), None),
        (Figure("one", 5, target=at_most(5)), True),
        (Figure("one", 5.1, target=at_most(5)), False),
        (Figure("one", 4.9, target=at_least(5)), False),
        (RATE, True),
        (Figure("one", 300, peers={"Celery": 401}, target=at_least(0.75, "Celery")), False),
        (Figure("one", 3, peers={"first": 100, "second": 1}, target=at_most(3, "second")), True),
    ],
)
def test_figure_meets_its_target_by_value_or_share(figure: Figure, met: bool | None) -> None:
    assert figure.met is met


@pytest.mark.parametrize(
    "figure",
    [
        Figure("one", "no server"),
        Figure("one", "no server", target=at_most(5)),
        Figure("one", "no server", peers={"Celery": 5}, target=at_most(5, "Celery")),
        Figure("one", 5, peers={"Celery": "no server"}, target=at_most(5, "Celery")),
        Figure("one", 5, target=at_most(5, "Celery")),
    ],
)
def test_figure_without_a_value_or_peer_misses_its_target(figure: Figure) -> None:
    assert figure.met is False


def test_unmeasurable_peer_is_no_miss() -> None:
    without = Figure("no-ops", 300, "/s", {"DBOS": "it is not installed"})

    assert without.met is None
    assert missed([Section("rates", [without, RATE])]) == []


def test_run_names_each_missed_figure() -> None:
    slow = Figure("slow", 9, target=at_most(1))

    assert missed([Section("a", [RATE]), Section("b", [slow])]) == [slow]


def test_row_shows_units_peers_share_target_and_result() -> None:
    assert RATE.cells() == (
        "no-ops",
        "300 /s",
        "Celery 400 /s; DBOS not measured: it is not installed",
        "0.75",
        "≥ 0.75 × Celery",
        "met",
    )
    assert Figure("scan", 0.5, "s", target=at_most(0.2), note="once").cells() == (
        "scan", "0.5 s (once)", "", "", "≤ 0.2 s", "MISSED",
    )  # fmt: skip


def test_page_escapes_characters_that_end_a_cell() -> None:
    table = as_markdown(Section("Rates", [Figure("a|b", 1)]))

    assert table.startswith("## Rates\n\n| figure | Longshore |")
    assert "| a\\|b | 1 |" in table


def test_columns_of_a_terminal_are_aligned() -> None:
    first, *rows = as_text(Section("Rates", [RATE, Figure("chain", 2.5, "ms")])).splitlines()

    assert first == "Rates"
    assert {row.index(cell) for row, cell in zip(rows, ("Longshore", "300", "2.5"), strict=True)} == {8}


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "0"), (0.01234, "0.0123"), (2.5, "2.5"), (99.96, "100"), (1234.5, "1,234"), (427, "427")]
)
def test_numbers_have_three_significant_digits(value: float, text: str) -> None:
    assert number(value) == text

"""The table of labels and colours: complete, readable, and drawn by every diagram."""

import pytest
from rich.console import Console
from rich.style import Style as RichStyle

from longshore.orchestration.client.live import state_text, tree
from longshore.orchestration.runs.diagram import COLOURS
from longshore.orchestration.runs.report import Report
from longshore.orchestration.runs.step_report import StepReport, UndoReport
from longshore.orchestration.runs.styles import (
    ON_BORDER_DARK,
    ON_BORDER_LIGHT,
    PALETTE,
    STYLES,
    SYMBOLS,
    Shade,
    style_of,
    symbol_of,
)
from longshore.orchestration.states import RunState, StepState, UndoState


def _luminance(colour: str) -> float:
    channels = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    red, green, blue = (c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _contrast(one: str, other: str) -> float:
    dark, light = sorted(map(_luminance, (one, other)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("states", [RunState, StepState, UndoState])
def test_every_state_has_a_style(states: type[RunState | StepState | UndoState]) -> None:
    assert {str(state) for state in states} <= set(STYLES)


def test_labels_are_the_words_of_the_states() -> None:
    assert [style.label for style in STYLES.values()] == [state.replace("_", " ") for state in STYLES]


def test_failed_succeeded_running_undone_and_partial_have_colours_of_their_own() -> None:
    expected = {"failed": "red", "succeeded": "green", "running": "blue", "undone": "orange", "pending": "grey",
                "waiting": "yellow", "suspended": "yellow", "partial": "pink", "left_over": "pink"}  # fmt: skip
    assert {state: STYLES[state].colour for state in expected} == expected


@pytest.mark.parametrize("name", PALETTE)
def test_text_is_readable_on_its_fill(name: str) -> None:
    for shade in (PALETTE[name].light, PALETTE[name].dark):
        assert _contrast(shade.text, shade.fill) >= 4.5, shade


@pytest.mark.parametrize("name", PALETTE)
def test_text_is_readable_on_its_border_colour(name: str) -> None:
    assert _contrast(ON_BORDER_LIGHT, PALETTE[name].light.border) >= 4.5
    assert _contrast(ON_BORDER_DARK, PALETTE[name].dark.border) >= 4.5


def test_states_that_end_differently_have_different_symbols() -> None:
    assert set(SYMBOLS) == set(STYLES)
    ends = ("succeeded", "partial", "failed", "undone", "undo_failed", "cancelled", "running", "pending")
    assert len({symbol_of(state) for state in ends}) == len(ends)
    assert symbol_of("not_a_state") == "·"


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_colours_differ_in_fill_and_border(theme: str) -> None:
    shades: list[Shade] = [getattr(colour, theme) for colour in PALETTE.values()]
    assert len({shade.fill for shade in shades}) == len({shade.border for shade in shades}) == len(PALETTE)


def test_rich_reads_every_terminal_style() -> None:
    for style in STYLES.values():
        RichStyle.parse(style.terminal)


def test_live_view_has_the_labels_and_styles_of_the_table() -> None:
    for state, style in STYLES.items():
        drawn = state_text(state)
        assert (drawn.plain, drawn.style) == (style.label, style.terminal)
    step = StepReport(name="a", op="noop.execute", level=0, status=StepState.CHANGED, changed=True, attempts=1,
                      undo=UndoReport(status=UndoState.UNDONE))  # fmt: skip
    report = Report(run_id="r", plan="p", state=RunState.UNDONE, summary="", steps=[step], exit_code=1)
    drawn_parts = {part.text: part.style for part in Console(width=200).render(tree(report))}
    for state in ("undone", "changed"):
        assert drawn_parts[state] == RichStyle.parse(STYLES[state].terminal)


def test_each_colour_of_the_palette_has_a_state() -> None:
    assert {style.colour for style in STYLES.values()} == set(PALETTE)


def test_diagrams_have_the_light_colours() -> None:
    assert {state: (style.light.fill, style.light.border) for state, style in STYLES.items()} == COLOURS


def test_unknown_state_is_grey() -> None:
    assert (style_of("not_a_state").label, style_of("not_a_state").colour) == ("not a state", "grey")

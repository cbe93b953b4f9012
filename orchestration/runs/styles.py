"""Labels and colours of states: the one table for the terminal, Flower's pages, diagrams and timelines."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Shade:
    """Background, border and text colour on one background of the page, as hex."""

    fill: str
    border: str
    text: str


@dataclass(frozen=True)
class Colour:
    """A named colour: its shades on light and dark pages, and its style in a terminal, as rich reads styles."""

    light: Shade
    dark: Shade
    terminal: str


@dataclass(frozen=True)
class Style:
    """The label and the colour of a state. `colour` is a name in `PALETTE`, `terminal` a style of rich."""

    label: str
    colour: str
    terminal: str

    @property
    def light(self) -> Shade:
        """The shades on a light page."""
        return PALETTE[self.colour].light

    @property
    def dark(self) -> Shade:
        """The shades on a dark page."""
        return PALETTE[self.colour].dark


#: The colour of text on the border colours, which fill banners and bars, on light and on dark pages.
ON_BORDER_LIGHT, ON_BORDER_DARK = "#ffffff", "#0b0f14"
#: Neighbours differ in lightness too, for readers who do not distinguish the colours.
PALETTE = {
    "grey": Colour(Shade("#f3f4f6", "#6b7280", "#374151"), Shade("#1f2937", "#9ca3af", "#d1d5db"), "bright_black"),
    "slate": Colour(Shade("#e2e8f0", "#475569", "#1e293b"), Shade("#334155", "#94a3b8", "#e2e8f0"), "white"),
    "sky": Colour(Shade("#e0f2fe", "#0369a1", "#075985"), Shade("#0c2f47", "#38bdf8", "#bae6fd"), "cyan"),
    "blue": Colour(Shade("#bfdbfe", "#1d4ed8", "#1e3a8a"), Shade("#1e3a8a", "#60a5fa", "#dbeafe"), "bright_blue"),
    "yellow": Colour(Shade("#fef9c3", "#a16207", "#713f12"), Shade("#3f3209", "#facc15", "#fef08a"), "yellow"),
    "mint": Colour(Shade("#f0fdf4", "#4d7c0f", "#3f6212"), Shade("#12251a", "#84cc16", "#d9f99d"), "green"),
    "green": Colour(Shade("#dcfce7", "#15803d", "#14532d"), Shade("#14532d", "#4ade80", "#dcfce7"), "green"),
    "amber": Colour(Shade("#ffedd5", "#b45309", "#7c2d12"), Shade("#431f07", "#f59e0b", "#fde68a"), "orange3"),
    "orange": Colour(Shade("#fed7aa", "#c2410c", "#7c2d12"), Shade("#7c2d12", "#fb923c", "#ffedd5"), "dark_orange"),
    "red": Colour(Shade("#fecaca", "#b91c1c", "#7f1d1d"), Shade("#5f1515", "#f87171", "#fee2e2"), "red"),
    "crimson": Colour(Shade("#fca5a5", "#7f1d1d", "#450a0a"), Shade("#991b1b", "#fecaca", "#fef2f2"), "bright_red"),
    "pink": Colour(Shade("#fbcfe8", "#be185d", "#831843"), Shade("#701a46", "#f472b6", "#fce7f3"), "magenta"),
    "violet": Colour(Shade("#ddd6fe", "#6d28d9", "#4c1d95"), Shade("#3b1a78", "#a78bfa", "#ede9fe"), "bright_magenta"),
}


def _style(label: str, colour: str, weight: str = "") -> Style:
    return Style(label, colour, f"{weight} {PALETTE[colour].terminal}".strip())


#: The style of every state of runs, steps and compensations, by the state's value, and of two words of reports:
#: `lost` (an attempt whose worker was lost) and `left_over` (a change that no compensation removed).
STYLES = {
    "pending": _style("pending", "grey"),
    "ready": _style("ready", "sky"),
    "running": _style("running", "blue", "bold"),
    "retrying": _style("retrying", "yellow"),
    "waiting": _style("waiting", "yellow"),
    "suspended": _style("suspended", "yellow", "bold"),
    "finishing": _style("finishing", "blue"),
    "succeeded": _style("succeeded", "green", "bold"),
    "changed": _style("changed", "green"),
    "unchanged": _style("unchanged", "mint", "dim"),
    "partial": _style("partial", "pink", "bold"),
    "aborting": _style("aborting", "amber"),
    "undoing": _style("undoing", "amber"),
    "undone": _style("undone", "orange"),
    "failed": _style("failed", "red", "bold"),
    "undo_failed": _style("undo failed", "crimson", "bold"),
    "not_undoable": _style("not undoable", "pink"),
    "held_back": _style("held back", "pink"),
    "left_over": _style("left over", "pink", "bold"),
    "unknown": _style("unknown", "violet", "bold"),
    "lost": _style("lost", "violet"),
    "skipped": _style("skipped", "grey"),
    "not_run": _style("not run", "grey"),
    "cancelled": _style("cancelled", "slate"),
}


def style_of(state: str) -> Style:
    """The style of a state; that of `pending`, with the word itself, for a word that is no state."""
    return STYLES.get(state) or Style(state.replace("_", " "), "grey", PALETTE["grey"].terminal)


#: A character for each state, for readers who do not distinguish the colours; states of one kind share one.
_SYMBOLS = {
    "✓": "succeeded changed", "=": "unchanged", "✗": "failed", "!": "undo_failed unknown lost", "↩": "undone undoing",
    "◐": "partial", "▶": "running finishing", "◷": "waiting suspended", "↻": "retrying", "○": "pending ready",
    "–": "skipped not_run", "⊘": "cancelled aborting", "●": "left_over held_back not_undoable",
}  # fmt: skip
SYMBOLS = {state: symbol for symbol, states in _SYMBOLS.items() for state in states.split()}


def symbol_of(state: str) -> str:
    """The character of a state; `·` for a word that is no state."""
    return SYMBOLS.get(state, "·")

"""Diagrams of plans: text, Mermaid, DOT and SVG."""

from __future__ import annotations

import re
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longshore.orchestration import Plan
from longshore.orchestration.runs import diagram, report
from longshore.orchestration.states import StepState
from tests.unit.plans import compiled, diamond, graphs, of_edges, plans

SVG = "{http://www.w3.org/2000/svg}"
EDGES = [("build", "test"), ("build", "lint"), ("test", "ship"), ("lint", "ship"), ("ship", "tell")]


def picture(drawn: str) -> ET.Element:
    return ET.fromstring(drawn)  # noqa: S314 - our own


def test_text_diagram_shows_levels_steps_and_dependencies() -> None:
    plan = diamond()
    plan.steps["tell"].always = True

    assert diagram.text(compiled(plan)).splitlines() == [
        "diamond: 5 steps, 4 levels",
        "",
        "Level 0:",
        "  build [noop.execute]",
        "",
        "Level 1 (parallel):",
        "  test [noop.execute] <- build",
        "  lint [noop.execute] <- build",
        "",
        "Level 2:",
        "  ship [noop.execute] <- test, lint",
        "",
        "Level 3:",
        "  tell [noop.execute] <- ship (always)",
    ]


def test_mermaid_has_every_step_and_edge() -> None:
    drawn = diagram.mermaid(compiled(diamond()))

    labels = dict(re.findall(r'(s\d+)\["(\S+?)<br/>', drawn))
    edges = [(labels[a], labels[b]) for a, b in re.findall(r"(s\d+) --> (s\d+)", drawn)]
    assert drawn.startswith("flowchart TD\n")
    assert sorted(edges) == sorted(EDGES)
    assert set(labels.values()) == set(diamond().steps)


def test_dot_has_every_step_and_edge() -> None:
    drawn = diagram.dot(compiled(diamond()))

    assert sorted(re.findall(r'"(\S+)" -> "(\S+)";', drawn)) == sorted(EDGES)
    assert set(re.findall(r'^  "(\S+)" \[label=', drawn, re.MULTILINE)) == set(diamond().steps)
    assert (drawn.startswith('digraph "diamond" {'), drawn.endswith("}")) == (True, True)


def test_svg_is_well_formed_with_all_steps_inside() -> None:
    root = picture(diagram.svg(compiled(diamond())))

    boxes = {group.get("id"): group for group in root.iter(f"{SVG}g") if group.get("id")}
    assert set(boxes) == {f"step-{name}" for name in diamond().steps}
    width, height = float(root.get("width", 0)), float(root.get("height", 0))
    for name, box in boxes.items():
        rect = box.find(f"{SVG}rect")
        assert rect is not None
        x, y, w, h = (float(rect.get(key, "nan")) for key in ("x", "y", "width", "height"))
        assert x >= 0
        assert x + w <= width
        assert y >= 0
        assert y + h <= height
        texts = [text.text for text in box.iter(f"{SVG}text")]
        assert texts == [str(name).removeprefix("step-"), "noop.execute"]
    assert len(root.findall(f".//{SVG}g/{SVG}path")) == len(EDGES)


def boxes_of(drawn: str) -> list[tuple[float, float]]:
    return [(float(rect.get("x", 0)), float(rect.get("y", 0))) for rect in picture(drawn).iter(f"{SVG}rect")]


@settings(max_examples=25)
@given(graphs(max_steps=12))
def test_svg_boxes_do_not_overlap_and_edges_go_down(edges: dict[str, list[str]]) -> None:
    plan = compiled(of_edges(edges))

    places = boxes_of(diagram.svg(plan))

    assert len(set(places)) == len(edges)
    for step in plan.steps:
        assert all(places[i][1] < places[step.index][1] for i in step.needs)
    for n, (x, y) in enumerate(places):
        assert all(abs(x - other) >= 190 or y != below for other, below in places[n + 1 :])


@settings(max_examples=25)
@given(plans(), st.data())
def test_any_plan_can_be_drawn_in_every_format_and_state(plan: Plan, data: st.DataObject) -> None:
    whole = compiled(plan)
    words = st.sampled_from([*StepState, "undone", "undo_failed", "held_back", "something new"])
    states = {name: str(data.draw(words)) for name in plan.steps}

    for form, draw in diagram.FORMATS.items():
        drawn = draw(whole, states)
        if form == "svg":
            assert len(boxes_of(drawn)) == len(plan.steps)
        assert all(name[:23] in drawn for name in plan.steps)


def test_markup_in_names_is_escaped() -> None:
    plan = Plan("p")
    plan.step("a", "noop.execute").describe('<script>alert("x")</script> & more')

    drawn = diagram.svg(compiled(plan))

    assert "<script>" not in drawn
    titles = [title.text for title in picture(drawn).iter(f"{SVG}title")]
    assert titles == ["p", 'a: <script>alert("x")</script> & more']


@pytest.mark.parametrize("character", ["\x00", "\x07", "\x1b", "\ufffe"])
def test_invalid_xml_characters_are_omitted(character: str) -> None:
    plan = Plan("p")
    plan.step("a", "noop.execute").describe(f"ring{character}ring")

    picture(diagram.svg(compiled(plan)))


def test_diagram_colours_show_step_states() -> None:
    plan = compiled(of_edges({"a": [], "b": ["a"], "c": ["b"]}))
    fields = {
        "status:0": "changed",
        "attempts:0": "1",
        "ustatus:0": "undone",
        "status:1": "failed",
        "attempts:1": "1",
        "status:2": "not_run",
    }

    states = diagram.states_of(report.build("r", plan, {"state": "undone"}, fields, 0))

    assert states == {"a": "undone", "b": "failed", "c": "not_run"}
    assert "class s0 undone" in diagram.mermaid(plan, states)
    assert diagram.text(plan, states).splitlines()[-1] == "  c [noop.execute] <- b  not_run"
    assert diagram.states_of(None) == {}

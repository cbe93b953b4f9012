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


def boxes_of(drawn: str) -> dict[str, tuple[float, float, float, float]]:
    """The boxes by id: left, top, width and height."""
    found = {}
    for group in picture(drawn).iter(f"{SVG}g"):
        if (name := group.get("id")) is None:
            continue
        x, y = map(float, re.findall(r"[\d.]+", group.get("transform", "")))
        rect = next(each for each in group.iter(f"{SVG}rect") if each.get("class") == "box")
        found[name] = (x, y, float(rect.get("width", "nan")), float(rect.get("height", "nan")))
    return found


def test_svg_is_well_formed_with_all_steps_inside() -> None:
    drawn = diagram.svg(compiled(diamond()))

    root = picture(drawn)
    assert set(boxes_of(drawn)) == {f"step-{name}" for name in diamond().steps}
    width, height = float(root.get("width", 0)), float(root.get("height", 0))
    for x, y, w, h in boxes_of(drawn).values():
        assert 0 <= x <= x + w <= width
        assert 0 <= y <= y + h <= height
    texts = {group.get("id"): [text.text for text in group.iter(f"{SVG}text")] for group in root.iter(f"{SVG}g")}
    assert texts["step-build"] == ["build", "noop.execute"]
    assert len(root.findall(f".//{SVG}g/{SVG}path")) == len(EDGES)


@settings(max_examples=25)
@given(graphs(max_steps=12), st.integers(2, 5))
def test_svg_boxes_do_not_overlap_and_edges_lead_right_or_into_a_lower_band(
    edges: dict[str, list[str]], columns: int
) -> None:
    plan = compiled(of_edges(edges))

    places = boxes_of(diagram.svg(plan, columns=columns))

    assert len(places) == len(edges)
    if len(plan.levels) > 1:
        for step in plan.steps:
            x, y, _, _ = places[f"step-{step.name}"]
            for x_before, y_before, width, height in (places[f"step-{plan.steps[i].name}"] for i in step.needs):
                assert x_before + width < x or y_before + height < y
    every = list(places.values())
    for n, (x, y, width, height) in enumerate(every):
        assert all(abs(x - left) >= width or abs(y - top) >= height for left, top, _, _ in every[n + 1 :])


def test_chain_uses_the_width_of_the_page() -> None:
    chain = {f"s{n}": [f"s{n - 1}"] if n else [] for n in range(12)}

    places = list(boxes_of(diagram.svg(compiled(of_edges(chain)), width=1200, columns=5)).values())

    assert len({y for _, y, _, _ in places}) == 3
    assert max(x + width for x, _, width, _ in places) > 1100
    few = boxes_of(diagram.svg(compiled(of_edges({"a": [], "b": ["a"]})), width=1200)).values()
    assert max(x + width for x, _, width, _ in few) > 1100


def test_implied_edge_is_not_drawn() -> None:
    drawn = diagram.svg(compiled(of_edges({"a": [], "b": ["a"], "c": ["a", "b"]})))

    assert len(picture(drawn).findall(f".//{SVG}g/{SVG}path")) == 2


def test_edge_passes_beside_the_boxes_of_crossed_levels() -> None:
    edges = {"a": [], "b": ["a"], "c": ["b"], "other": [], "end": ["c", "other"]}

    drawn = diagram.svg(compiled(of_edges(edges)), columns=4)

    boxes = boxes_of(drawn).values()
    straight = [
        (float(y), float(begin), float(end))
        for path in re.findall(r'<path d="([^"]+)" marker', drawn)
        for y, begin, end in re.findall(r" [\d.]+,([\d.]+) ([\d.]+),[\d.]+ H([\d.]+)", path)
    ]
    assert straight
    for y, begin, end in straight:
        assert not any(top < y < top + height and begin < x < end for x, top, _, height in boxes)


def test_similar_steps_are_folded_into_one_box_with_their_states() -> None:
    edges = {"begin": [], **{f"web-{n}": ["begin"] for n in range(40)}, "end": [f"web-{n}" for n in range(40)]}
    plan = compiled(of_edges(edges))
    states = {"begin": "changed", **{f"web-{n}": "failed" if n == 7 else "changed" for n in range(40)}}

    drawn = diagram.svg(plan, states, fold=True, link="#row-")

    assert len(boxes_of(drawn)) == 3
    assert "web-* × 40" in drawn
    assert "1 failed, 39 changed" in drawn
    assert 'href="#row-web-7"' in drawn
    assert len(boxes_of(diagram.svg(plan, states))) == 42


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

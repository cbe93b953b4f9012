"""The page about the packages has the current imports, and its path of one run names existing functions."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests import house

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "contributing.md").read_text()
PATH = PAGE.partition("## The path of one run\n")[2].partition("\n## ")[0]
LINKS = re.findall(r"\[`([\w.]+)`\]\(\.\./([\w/]+\.py)\)", PATH)


def names_in(path: Path) -> set[str]:
    """The functions and classes of a module, and the methods of its classes as `Class.method`."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{each.name}" for each in node.body if isinstance(each, ast.FunctionDef)}
    return found


def test_diagram_on_the_page_has_the_imports_between_packages() -> None:
    assert f"```mermaid\n{house.diagram()}\n```" in PAGE


def test_implied_arrow_is_omitted() -> None:
    assert house.reduced({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == {"a": {"b"}, "b": {"c"}, "c": set()}


def test_page_names_every_package_of_orchestration_and_tasks() -> None:
    table = PAGE.partition("## The packages\n")[2].partition("\nA package imports")[0]
    for package in house.arrows():
        tree, _, name = package.partition(".")
        assert not name or re.search(rf"\b{name}(\.py|/)`", table), f"{tree}/{name}"


def test_path_of_one_run_has_twelve_steps_in_at_most_twenty_modules() -> None:
    assert len(re.findall(r"^\d+\. ", PATH, re.MULTILINE)) == 12
    assert len({path for _, path in LINKS}) <= 20


@pytest.mark.parametrize(("name", "path"), LINKS)
def test_path_names_existing_functions(name: str, path: str) -> None:
    assert name in names_in(ROOT / path)


def test_glossary_names_existing_packages() -> None:
    text = (ROOT / "docs" / "concepts" / "glossary.md").read_text()
    named = set(re.findall(r"`((?:orchestration|tasks|workers|tests)(?:/[\w./]+)?)`", text))
    assert len(named) > 20
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []


def test_glossary_defines_each_concept_once() -> None:
    text = (ROOT / "docs" / "concepts" / "glossary.md").read_text()
    concepts = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| ")]
    concepts = [concept for concept in concepts if concept != "concept"]
    assert len(concepts) == len(set(concepts))

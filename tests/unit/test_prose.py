"""The wording of docstrings, comments, help texts, messages and documents: sentences name their subject."""

from __future__ import annotations

import ast
import re
import tokenize
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import click
import pytest

from longshore.orchestration.cli.lazy import LazyCommand
from longshore.orchestration.cli.main import cli

ROOT = Path(__file__).resolve().parents[2]
PRODUCT = ("orchestration", "tasks", "workers")
TESTS = ("tests", "benchmarks", "examples")

OPENINGS = re.compile(r"(?:it|what|those|who|that which|somebody|nobody|whoever)\b", re.IGNORECASE)
WORDS = re.compile(
    r"\b(?:told|said|looked|meant|comes again|at it|goes on|go on|taken back|stands still|whoever|nobody|somebody)\b",
    re.IGNORECASE,
)


def faults(text: str) -> list[str]:
    """The sentences that open with a banned word, and the banned words, of a text."""
    sentences = re.split(r"(?<=[.!?])\s+", " ".join(text.split()))
    return [each for each in sentences if OPENINGS.match(each)] + WORDS.findall(text)


def sources(suffix: str, folders: tuple[str, ...] = PRODUCT) -> Iterator[Path]:
    for folder in folders:
        yield from sorted((ROOT / folder).rglob(f"*{suffix}"))


def literal(node: ast.AST) -> str:
    """The text of a string or f-string; each inserted value becomes an ellipsis."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    if isinstance(node, ast.JoinedStr):
        return "".join(literal(part) if isinstance(part, ast.Constant) else "…" for part in node.values)
    return ""


def texts(path: Path) -> Iterator[tuple[int, str]]:
    """Line number and text of each string of at least three words: docstrings, messages and descriptions."""
    tree = ast.parse(path.read_text())
    parts = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if id(node) not in parts and len((text := literal(node)).split()) > 2:
            yield getattr(node, "lineno", 1), text


def descriptions(path: Path) -> Iterator[tuple[int, str]]:
    """Line number and text of each docstring, name of a test and message of an assertion."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield getattr(node, "lineno", 1), ast.get_docstring(node) or ""
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            yield node.lineno, node.name.removeprefix("test_").replace("_", " ")
        if isinstance(node, ast.Assert) and node.msg is not None:
            yield node.lineno, literal(node.msg)


def comments(path: Path) -> Iterator[tuple[int, str]]:
    """Line number and text of each comment; comments on consecutive lines are one text."""
    if path.suffix == ".lua":
        found = [
            (number, line.partition("--")[2], line.lstrip().startswith("--"))
            for number, line in enumerate(path.read_text().splitlines(), 1)
            if "--" in line
        ]
    else:
        with path.open() as file:
            tokens = [one for one in tokenize.generate_tokens(file.readline) if one.type == tokenize.COMMENT]
        found = [(one.start[0], one.string.lstrip("#: "), one.line.lstrip().startswith("#")) for one in tokens]
    block = ""
    for (number, text, whole), (following, _, continues) in pairwise([*found, (0, "", False)]):
        block = f"{block} {text}".strip()
        if not (whole and continues and following == number + 1):
            yield number, block
            block = ""


def paragraphs(path: Path) -> Iterator[tuple[int, str]]:
    """Paragraphs, items and table cells of a page, without its code."""
    text = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
    for number, block in enumerate(re.split(r"\n\s*\n|\n(?=[*|] )|(?<= )\| ", text)):
        yield number, re.sub(r"^[*#| ]+", "", re.sub(r"`[^`]*`", "…", block))


def wrong(found: Iterator[tuple[int, str]]) -> dict[int, list[str]]:
    return {line: listed for line, text in found if (listed := faults(text))}


def commands(group: click.Group, path: str) -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        loaded = command.load() if isinstance(command, LazyCommand) else command
        yield f"{path} {name}", loaded
        if isinstance(loaded, click.Group):
            yield from commands(loaded, f"{path} {name}")


COMMANDS = dict([("longshore", cli), *commands(cli, "longshore")])


@pytest.mark.parametrize(
    ("suffix", "read"), [(".py", texts), (".py", comments), (".lua", comments)], ids=["strings", "comments", "lua"]
)
def test_strings_and_comments_name_their_subject(
    suffix: str, read: Callable[[Path], Iterator[tuple[int, str]]]
) -> None:
    paths = list(sources(suffix))
    assert len(paths) > 20

    assert {str(path.relative_to(ROOT)): listed for path in paths if (listed := wrong(read(path)))} == {}


@pytest.mark.parametrize("read", [descriptions, comments])
def test_texts_and_names_of_tests_name_their_subject(read: Callable[[Path], Iterator[tuple[int, str]]]) -> None:
    paths = list(sources(".py", TESTS))
    assert len(paths) > 200

    assert {str(path.relative_to(ROOT)): listed for path in paths if (listed := wrong(read(path)))} == {}


def test_pages_name_their_subject() -> None:
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    assert len(pages) > 20

    assert {str(page.relative_to(ROOT)): listed for page in pages if (listed := wrong(paragraphs(page)))} == {}


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_help_of_a_command_and_its_options_names_its_subject(command: click.Command) -> None:
    assert command.help
    assert faults(command.help) == []
    assert re.match(r"[A-Z].*\.$", command.help.splitlines()[0]), "the first line is a sentence"
    for option in command.params:
        if isinstance(option, click.Option):
            assert option.help, option.name
            assert faults(option.help) == [], option.name


def test_banned_openings_and_words_are_found() -> None:
    assert faults("What a step printed.") == ["What a step printed."]
    assert faults("Print the output. It is short.") == ["It is short."]
    assert faults("Who is told of the end") == ["Who is told of the end", "told"]
    assert faults("Items whose order is kept; italics") == []


def test_texts_of_a_module_are_read_whole(tmp_path: Path) -> None:
    module = tmp_path / "module.py"
    module.write_text('"""A module of texts."""\n\n# A comment of\n# two lines\nx = f"run {1} of it"  # beside\n')

    assert [text for _, text in texts(module)] == ["A module of texts.", "run … of it"]
    assert [text for _, text in comments(module)] == ["A comment of two lines", "beside"]


def test_descriptions_of_tests_are_read(tmp_path: Path) -> None:
    module = tmp_path / "test_module.py"
    module.write_text('"""A module."""\ndef test_a_rule():\n    """A test."""\n    assert "x", f"a message of {1}"\n')

    assert [text for _, text in descriptions(module)] == ["A module.", "A test.", "a rule", "a message of …"]

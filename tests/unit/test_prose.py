"""The wording of docstrings, help texts and error messages: sentences name their subject and use standard verbs.

To check a further package or module, add its path to DOCSTRINGS, and to MESSAGES for its error messages.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from longshore.orchestration.cli.lazy import LazyCommand
from longshore.orchestration.cli.main import cli

ROOT = Path(__file__).resolve().parents[2]
#: Packages and modules whose public docstrings are checked.
DOCSTRINGS = ("orchestration/cli",)
#: Packages and modules whose error messages are checked.
MESSAGES = ("orchestration/cli", "orchestration/errors.py")

OPENINGS = re.compile(r"(?:it|what|those|who|that which|somebody|nobody|whoever)\b", re.IGNORECASE)
WORDS = re.compile(r"\b(?:told|said|looked|meant|comes again|at it|whoever|nobody|somebody)\b", re.IGNORECASE)


def faults(text: str) -> list[str]:
    """The sentences that open with a banned word, and the banned words, of a text."""
    sentences = re.split(r"(?<=[.!?])\s+", " ".join(text.split()))
    return [each for each in sentences if OPENINGS.match(each)] + WORDS.findall(text)


def sources(paths: tuple[str, ...]) -> Iterator[tuple[str, ast.Module]]:
    for path in paths:
        files = [ROOT / path] if path.endswith(".py") else sorted((ROOT / path).rglob("*.py"))
        assert files, path
        for file in files:
            yield str(file.relative_to(ROOT)), ast.parse(file.read_text())


def docstrings(node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[tuple[int, str]]:
    """Line number and first line of the docstrings of a module or class and its public members."""
    if text := ast.get_docstring(node):
        yield getattr(node, "lineno", 1), text.splitlines()[0]
    for child in [] if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) else node.body:
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and not child.name.startswith("_"):
            yield from docstrings(child)


def literals(node: ast.expr) -> str:
    """The text of a string or f-string; each inserted value becomes an ellipsis."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    if isinstance(node, ast.JoinedStr):
        return "".join(literals(part) if isinstance(part, ast.Constant) else "…" for part in node.values)
    return ""


def error_messages(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Messages and remedies of raised errors, default messages of error classes, and printed lines."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            given = [*node.exc.args, *(keyword.value for keyword in node.exc.keywords)]
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in {"print_line", "print_lines", "print_result"}:
            given = node.args
        elif isinstance(node, ast.FunctionDef) and node.name == "__init__":
            given = node.args.defaults
        else:
            continue
        yield from ((value.lineno, text) for value in given if (text := literals(value)))


def commands(group: click.Group, path: str) -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        loaded = command.load() if isinstance(command, LazyCommand) else command
        yield f"{path} {name}", loaded
        if isinstance(loaded, click.Group):
            yield from commands(loaded, f"{path} {name}")


COMMANDS = dict([("longshore", cli), *commands(cli, "longshore")])


def test_first_lines_of_docstrings_name_their_subject() -> None:
    found = {
        f"{path}:{line}": wrong
        for path, tree in sources(DOCSTRINGS)
        for line, text in docstrings(tree)
        if (wrong := faults(text))
    }

    assert found == {}


def test_error_messages_name_their_subject() -> None:
    found = {
        f"{path}:{line}": wrong
        for path, tree in sources(MESSAGES)
        for line, text in error_messages(tree)
        if (wrong := faults(text))
    }

    assert found == {}


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

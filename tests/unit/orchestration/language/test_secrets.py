"""Secrets by reference: permitted places, reading, and redaction."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Callable
from typing import Any
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longshore.orchestration import Plan
from longshore.orchestration.client import replay
from longshore.orchestration.errors import OperationError
from longshore.orchestration.language import secrets, templates
from longshore.orchestration.language.secrets import HIDDEN, Redaction, SecretMarks
from longshore.orchestration.plans.loading import resolve
from longshore.orchestration.plans.validation import problems
from tests.unit.tasks.operations.fake_step import Doing

VALUE = 'pa$$"word\\1\nsecond line of it'


def problems_of(op: str, **params: Any) -> list[str]:
    plan = Plan("secret")
    plan.step("do", op, **params)
    return [str(problem) for problem in problems(plan, resolve)]


def test_secret_is_allowed_in_hidden_parameters() -> None:
    secret = "{{ secret('env:DB_PASSWORD') }}"  # noqa: S105 - a reference
    assert problems_of("command.exec.execute", argv=["env"], env={"PGPASSWORD": secret}, stdin=secret) == []
    assert problems_of("file.deploy.execute", path="/x", content=f"password={secret}\n") == []
    assert problems_of("docker.pull.execute", image="x:1", auth={"username": "a", "password": secret}) == []
    assert problems_of("docker.run.execute", image="x:1", env={"A": "{{ secret('file:/run/secrets/db') }}"}) == []
    assert problems_of("network.http.request", url="http://x/", headers={"Authorization": f"Bearer {secret}"}) == []


@pytest.mark.parametrize(
    ("op", "params"),
    [
        ("command.exec.execute", {"argv": ["psql", "{{ secret('env:X') }}"]}),
        ("command.shell.execute", {"command": "echo {{ secret('env:X') }}"}),
        ("docker.run.execute", {"image": "x:1", "command": ["{{ secret('env:X') }}"]}),
        ("docker.create.execute", {"image": "x:1", "labels": {"a": "{{ secret('env:X') }}"}}),
        ("file.deploy.execute", {"path": "/{{ secret('env:X') }}", "content": ""}),
        ("file.upload", {"name": "x", "content": "{{ secret('env:X') }}"}),
    ],
)
def test_visible_secret_is_refused(op: str, params: dict[str, Any]) -> None:
    assert any("would be visible" in text for text in problems_of(op, **params))


@pytest.mark.parametrize(
    "written", ["secret('X')", "secret('env:')", "secret('file:relative')", "secret(params.x)", "secret()", "secret(1)"]
)
def test_invalid_secret_reference_is_refused(written: str) -> None:
    plan = Plan("secret", params={"x": str})
    plan.step("do", "command.exec.execute", argv=["env"], env={"A": f"{{{{ {written} }}}}"})
    found = [str(problem) for problem in problems(plan, resolve)]
    assert any("secret" in text for text in found)


@pytest.mark.parametrize("where", ["when", "target", "foreach"])
def test_secrets_are_allowed_in_parameters_only(where: str) -> None:
    plan = Plan("secret")
    step = plan.step("do", "noop.execute")
    text = "{{ secret('env:X') }}"
    {"when": step.when, "target": step.target, "foreach": step.foreach}[where](text)
    assert any("would be visible" in str(problem) for problem in problems(plan, resolve))


def test_secret_mark_needs_its_nonce() -> None:
    values = {"env:TOKEN": "correct-horse"}
    marks, found = SecretMarks(), set[str]()
    mark = marks("env:TOKEN")
    assert "correct-horse" not in mark
    revealed = secrets.reveal({"a": [f"x{mark}y"]}, marks.word, found, values.__getitem__)
    assert revealed == {"a": ["xcorrect-horsey"]}
    assert found == {"correct-horse"}
    forged = mark.replace(marks.word, "0" * 32)
    assert secrets.reveal(forged, marks.word, set(), values.__getitem__) == forged
    assert secrets.pieces(f"x{mark}", marks.word) == [(False, "x"), (True, "env:TOKEN")]
    assert secrets.marked({"a": [mark]}, marks.word)
    assert not secrets.marked({"a": [forged]}, marks.word)


#: No control characters: their JSON escapes contain digits that are not part of a secret.
_AROUND = st.text(st.characters(exclude_categories=["Cc", "Cs"]))


@given(st.text(min_size=4).filter(lambda text: text.strip() and HIDDEN not in text), _AROUND, _AROUND)
def test_every_encoding_of_a_secret_is_redacted(value: str, before: str, after: str) -> None:
    redaction = Redaction()
    redaction.values.add(value)
    redacted = redaction.data({"a": [before + value + after], value: {"b": json.dumps(value), "c": repr(value)}})
    text = json.dumps(redacted, ensure_ascii=False)
    assert value not in redacted["a"][0].replace(HIDDEN, "")
    assert json.dumps(value, ensure_ascii=False)[1:-1] not in text.replace(HIDDEN, "")


@given(st.binary(max_size=5), st.binary(max_size=5))
def test_secret_inside_a_longer_base64_text_is_redacted(before: bytes, after: bytes) -> None:
    redaction = Redaction()
    redaction.values.add(value := "s3cr\u00e9t??")
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        redacted = redaction.text(encode(before + value.encode() + after).decode())
        assert HIDDEN in redacted
        assert len(redacted) <= len(HIDDEN) + (len(before + after) + 2) * 4 // 3 + 4


@pytest.mark.parametrize("encode", [quote, quote_plus, html.escape])
def test_secret_in_an_address_a_form_or_a_page_is_redacted(encode: Callable[[str], str]) -> None:
    redaction = Redaction()
    redaction.values.add(value := "a b&<'/+")
    assert redaction.text(f"x={encode(value)};") == f"x={HIDDEN};"


@pytest.mark.parametrize(
    "written",
    [r"a\u00e9\"/\\b&<", r"a\u00e9\"\/\\b&<", r"a\u00e9\"/\\b\u0026\u003c", 'aé\\"/\\\\b&<',
     r"a\\u00e9\\\"/\\\\b&<", 'aé\\\\\\"/\\\\\\\\b&<'],
)  # fmt: skip
def test_secret_in_json_of_any_language_is_redacted(written: str) -> None:
    redaction = Redaction()
    redaction.values.add('aé"/\\b&<')
    assert redaction.text(f'"{written}"') == f'"{HIDDEN}"'


def test_errors_redact_secrets() -> None:
    redaction = Redaction()
    redaction.values.add(VALUE)
    error = secrets.no_value(OperationError(f"no: {VALUE}", remedy=VALUE, data={"out": [VALUE]}), redaction)
    assert "second line" not in f"{error} {error.data}"
    assert redaction.text("a line of output: second line of it") == f"a line of output: {HIDDEN}"


@pytest.mark.parametrize("written", ["secret('env:X')|upper", "secret('env:X')[:9]", "secret('env:X').upper()"])
def test_derived_forms_of_a_secret_are_refused(written: str) -> None:
    assert problems_of("command.exec.execute", argv=["env"], env={"A": f"{{{{ {written} }}}}"})
    together = "{{ 'Bearer ' ~ secret('env:X') }}"
    assert problems_of("command.exec.execute", argv=["env"], env={"A": together}) == []


def test_numeric_secret_is_redacted() -> None:
    redaction = Redaction()
    redaction.values.add("48151623")
    assert redaction.data({"pin": 48151623, "other": 4, "yes": True}) == {"pin": HIDDEN, "other": 4, "yes": True}


def test_every_line_of_a_secret_is_redacted() -> None:
    redaction = Redaction()
    redaction.values.add("pw12345\nqr67890\n")
    assert redaction.text("qr67890") == HIDDEN


def test_text_is_redacted_before_truncation() -> None:
    value = "S3cret" * 10
    context = {"redact": lambda text: text.replace(value, HIDDEN)}
    lines: list[str] = []
    context["printed"] = lambda _stream, printed: lines.extend(printed)  # type: ignore[assignment]
    for size in (64 * 1024 - 30, 8192 - 20):
        doing = Doing(
            "command.shell.execute", context, command=f"printf {value}; head -c {size} /dev/zero | tr '\\0' x"
        )
        data = doing.act().data
        assert "ret" not in data["stdout"].replace(HIDDEN, "")
    assert not [line for line in lines if "ret" in line]
    failing = Doing(
        "command.shell.execute", context, command=f"head -c 180 /dev/zero | tr '\\0' y; printf {value}; exit 1"
    )
    with pytest.raises(OperationError) as error:
        failing.act()
    assert "ret" not in str(error.value)


def test_replay_restores_marks_only() -> None:
    marks = SecretMarks()
    text = f"{{{{ secret('file:/etc/shadow') }}}} and {{% broken {marks('env:TOKEN')}"
    made = replay.Replay(Plan("again", params={}))
    again = replay._as_it_is(made, 0, "content", {"a": [text], "b": "{{ 1 + 1 }}", "c": "plain"}, marks.word)
    assert "shadow" not in str(again)
    rendered = templates.render(again, {"params": made.params, "secret": lambda reference: f"<{reference}>"})
    literal = "{{ secret('file:/etc/shadow') }} and {% broken <env:TOKEN>"
    assert rendered == {"a": [literal], "b": "{{ 1 + 1 }}", "c": "plain"}

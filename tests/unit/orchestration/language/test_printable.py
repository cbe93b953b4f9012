"""Escaping of external text: no control sequences, forged lines or bidirectional overrides in any output."""

from __future__ import annotations

import ast
import io
import json
import logging
import sys
import unicodedata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner
from tornado.httputil import HTTPHeaders, HTTPServerRequest, RequestStartLine
from tornado.web import ErrorHandler

from longshore.orchestration import Plan
from longshore.orchestration import cli as cli_package
from longshore.orchestration.cli import audit, doctor, run_reports, runs
from longshore.orchestration.cli import run as run_command
from longshore.orchestration.cli.console import PlainConsole
from longshore.orchestration.cli.main import call, cli
from longshore.orchestration.client import live
from longshore.orchestration.errors import UsageError
from longshore.orchestration.installation import doctor as doctor_checks
from longshore.orchestration.installation.checks import Finding
from longshore.orchestration.language import printable
from longshore.orchestration.monitoring import logs
from longshore.orchestration.plans.compiled import CompiledPlan
from longshore.orchestration.plans.explain import explain
from longshore.orchestration.runs import diagram
from longshore.orchestration.runs.events import Event
from longshore.orchestration.runs.report import Report
from longshore.orchestration.runs.step_report import ErrorReport, StepReport, UndoReport
from longshore.orchestration.states import RunState, StepState, UndoState
from longshore.orchestration.store import audit as audit_trail

#: A colour, a forged line, a window title, a C1 escape, right-to-left text, markup, and bytes that
#: are not UTF-8, decoded by `surrogateescape`, which no stream can encode.
HOSTILE = (
    "\x1b[31mred\r\nstep b  changed\x1b]0;title\x07 \x9b2J \u202egnp.exe\u2066 \u2028 [bold]x[/bold] \x7f\x00"
    + b"\xff\x80".decode(errors="surrogateescape")
)
_BIDI = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}


def hostile_report() -> Report:
    step = StepReport(
        name="a", op="noop.execute", level=0, status=StepState.FAILED, changed=False, attempts=1, error=HOSTILE,
        reason=HOSTILE, undo=UndoReport(status=UndoState.UNDO_FAILED, error=HOSTILE, reason=HOSTILE),
    )  # fmt: skip
    return Report(
        run_id="r", plan="p", state=RunState.UNDO_FAILED, summary=HOSTILE, steps=[step], left_over=[HOSTILE],
        error=ErrorReport(step="a", message=HOSTILE), exit_code=3,
    )  # fmt: skip


def harmless(text: str, *, lines: int) -> None:
    """Check that the text is printable and has the expected number of lines."""
    assert text.count("\n") == lines, text
    for char in text.replace("\n", "").replace("\t", ""):
        assert char == " " or unicodedata.category(char) not in {"Cc", "Cs", "Zl", "Zp"}, repr(char)
        assert unicodedata.bidirectional(char) not in _BIDI, repr(char)


@pytest.mark.parametrize("escape", [printable.line, printable.lines, printable.as_json])
def test_terminal_control_characters_are_escaped(escape: Any) -> None:
    for number in range(sys.maxunicode + 1):
        char = chr(number)
        acts = unicodedata.category(char) in {"Cc", "Cs", "Zl", "Zp"} or unicodedata.bidirectional(char) in _BIDI
        if acts and not (char in "\n\t" and escape is not printable.line):
            assert char not in escape(f"a{char}b"), hex(number)
    for fine in ("plain", "ünïcödé → ✓", "日本語", "a\u00a0b", "😀"):
        assert escape(fine) == fine


def test_escaped_json_is_equivalent() -> None:
    value = {"a": HOSTILE, "\u202e": ["\U000e0041", 1]}
    shown = printable.as_json(json.dumps(value, ensure_ascii=False, indent=2))
    assert json.loads(shown) == value
    harmless(shown, lines=6)


def test_report_lines_match_its_parts() -> None:
    for terminal in (False, True):
        out = io.StringIO()
        console = PlainConsole(file=out, force_terminal=terminal, no_color=True, width=1000)
        console.print(live.tree(hostile_report()), soft_wrap=False)
        drawn = out.getvalue()
        harmless(
            drawn.replace("\x1b[1m", "").replace("\x1b[2m", "").replace("\x1b[0m", "").replace("\x1b[1;2m", ""), lines=3
        )
        assert "[bold]x[/bold]" in drawn
        assert r"\x1b[31mred\r\nstep b" in drawn
    out = io.StringIO()
    PlainConsole(file=out, width=1000).print(live.closing(hostile_report()))
    harmless(out.getvalue(), lines=3)


@pytest.mark.parametrize(
    "fields",
    [
        {"event": "step_ended", "step": HOSTILE, "status": "failed", "error": HOSTILE},
        {"event": "step_skipped", "step": "a", "reason": HOSTILE},
        {"event": "run_suspended", "error": HOSTILE},
        {"event": "step_waiting", "step": "a", "for": HOSTILE},
        {"event": "run_aborting", "cause": HOSTILE, "step": HOSTILE},
    ],
)
def test_event_is_one_line_of_the_live_view(fields: dict[str, str]) -> None:
    out = io.StringIO()
    line = live._line(Event("1-0", fields["event"], 0, fields))
    PlainConsole(file=out, width=10_000).print(line)
    harmless(out.getvalue(), lines=1)


class _Run:
    id = "r"
    attached = False

    def report(self) -> Report:
        return hostile_report()

    def events(self) -> list[Event]:
        return [Event("1-0", "step_ended", 0, {"step": "a", "error": HOSTILE, "actor": HOSTILE})]

    def output(self, _step: str, *, follow: bool = False) -> list[tuple[str, str]]:
        return [("stdout", "one\ttwo\x1b[2J\u202e")]


@pytest.fixture
def hostile_client(monkeypatch: pytest.MonkeyPatch) -> None:
    found = SimpleNamespace(get=lambda _run: _Run(), runs=lambda _limit: [_Run()], store=None)
    for module in (run_reports, runs, audit, doctor, run_command):
        monkeypatch.setattr(module, "client", lambda: found)
    from datetime import UTC, datetime

    line = audit_trail.Line(
        at=datetime.now(UTC), what="start", actor=HOSTILE, origin=HOSTILE, run="r", plan="p", step="a", why=HOSTILE
    )
    monkeypatch.setattr(audit_trail, "lines", lambda *_args, **_given: [line])
    monkeypatch.setattr(doctor_checks, "examine", lambda _store: [Finding(HOSTILE, "warning", HOSTILE)])


@pytest.mark.parametrize(
    ("command", "lines"),
    [
        (["runs", "events", "r"], 1),
        (["runs", "ls"], 2),
        (["runs", "show", "r"], 10),
        (["runs", "logs", "r", "a"], 1),
        (["audit"], 2),
        (["doctor"], 1),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
@pytest.mark.usefixtures("hostile_client")
def test_commands_escape_external_text(command: list[str], lines: int) -> None:
    harmless(CliRunner().invoke(cli, command).output, lines=lines)
    as_json = CliRunner().invoke(cli, [*command, "-o", "json"]).output
    harmless(as_json, lines=as_json.count("\n"))
    assert [json.loads(each) for each in as_json.splitlines()] if "logs" in command else json.loads(as_json)


def test_plan_description_adds_no_line_to_explain() -> None:
    plain, hostile = Plan("p"), Plan("p", description=f"first\nLevel 9: forged{HOSTILE}")
    for plan in (plain, hostile):
        plan.step("a", "noop.execute")
    shown = explain(CompiledPlan(hostile))
    harmless(shown, lines=explain(CompiledPlan(plain)).count("\n") + 1)
    assert "\nLevel 9" not in shown


def test_error_is_always_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> None:
        raise UsageError(HOSTILE)

    monkeypatch.setattr(run_reports, "client", fails)
    call(["runs", "events", "r"])
    harmless(capsys.readouterr().err, lines=1)
    call(["runs", "events", "r", "-v"])
    err = capsys.readouterr().err
    harmless(err, lines=err.count("\n"))


def test_command_line_prints_through_one_function() -> None:
    """Output that bypasses the function is not escaped."""
    for path in sorted(Path(str(cli_package.__file__)).parent.glob("*.py")):
        if path.name in {"common.py", "console.py"}:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in {"click.echo", "click.secho", "print", "Console", "sys.stdout.write"}, path


@pytest.mark.parametrize("kind", ["text", "json"])
def test_log_record_is_one_line_with_an_indented_traceback(kind: str) -> None:
    out = io.StringIO()
    logger = logging.Logger("longshore.test")
    handler = logging.StreamHandler(out)
    logger.addHandler(handler)
    logs.configure(logger, kind, "web1")
    logger.warning("step %s", HOSTILE, extra={"run": HOSTILE})
    written = out.getvalue()
    harmless(written, lines=1)
    if kind == "json":
        assert json.loads(written)["message"] == f"step {HOSTILE}"
    try:
        raise ValueError(f"{HOSTILE}\n[2026-01-01 00:00:00: INFO/MainProcess] forged")
    except ValueError:
        logger.exception("failed")
    written = out.getvalue().removeprefix(written)
    harmless(written, lines=written.count("\n"))
    first, *others = written.splitlines()
    assert "failed" in first
    assert all(line.startswith("    ") for line in others)


# --- pages ------------------------------------------------------------------------------------------


def test_diagram_shows_hidden_characters() -> None:
    assert diagram.escape(f"<b>{HOSTILE}").startswith(r"&lt;b&gt;\x1b[31mred\r\nstep b")
    harmless(diagram.escape(HOSTILE), lines=0)


def test_flower_tasks_hold_no_control_characters() -> None:
    from longshore.workers import flower_pages

    task = flower_pages.format_task(
        SimpleNamespace(args=HOSTILE, result=None, exception=HOSTILE, traceback=f"a\n{HOSTILE}")
    )
    for text in (task.args, task.exception, task.traceback):
        harmless(text, lines=text.count("\n"))


def _request(method: str = "GET", host: str = "localhost:5555", **headers: str) -> HTTPServerRequest:
    given = HTTPHeaders({name.replace("_", "-"): value for name, value in headers.items()} | {"Host": host})
    connection: Any = SimpleNamespace(context=SimpleNamespace(remote_ip="127.0.0.1", protocol="http"))
    start = RequestStartLine(method, "/workers", "HTTP/1.1")
    return HTTPServerRequest(headers=given, connection=connection, start_line=start)


@pytest.mark.parametrize(
    ("request_", "login", "refused"),
    [
        (_request(), False, False),
        (_request(host="127.0.0.1:5555"), False, False),
        (_request(host="[::1]:5555"), False, False),
        (_request(host="evil.example"), False, True),
        (_request(host="evil.example:5555"), False, True),
        (_request(host="localhost.evil.example"), False, True),
        (_request(host="flower.lan"), True, False),
        (_request("POST"), False, False),
        (_request("POST", Origin="http://localhost:5555"), False, False),
        (_request("POST", Origin="http://evil.example"), False, True),
        (_request("POST", Origin="http://localhost:8080"), False, True),
        (_request("POST", Origin="null"), True, True),
        (_request("POST", "flower.lan", Origin="https://flower.lan"), True, False),
        (_request("POST", "flower.lan", Origin="https://evil.lan"), True, True),
        (_request("DELETE", "flower.lan", Sec_Fetch_Site="cross-site"), True, True),
        (_request("POST", "flower.lan", Sec_Fetch_Site="same-site"), True, True),
        (_request("POST", "flower.lan", Sec_Fetch_Site="same-origin"), True, False),
    ],
)
def test_cross_site_requests_to_flower_are_refused(request_: HTTPServerRequest, login: bool, refused: bool) -> None:
    from flower.app import Flower

    from longshore.workers import flower_pages

    flower_pages.install()
    app: Any = Flower.__new__(Flower)
    super(Flower, app).__init__(handlers=[("/workers", ErrorHandler, {"status_code": 200})])
    app.options = SimpleNamespace(basic_auth=["ops:x"] if login else [], auth="", unix_socket="")
    handler: Any = app.find_handler(request_)
    assert (handler.handler_kwargs == {"status_code": 403}) is refused

"""Error codes: stable, complete and explained; and the form of errors as text and as JSON."""

from __future__ import annotations

import importlib
import json
import pkgutil
import re
from collections.abc import Iterator

import click
import pytest

from longshore import orchestration, tasks
from longshore.orchestration.cli import explain as explain_command
from longshore.orchestration.cli.error_texts import ERRORS, error_reference, error_text
from longshore.orchestration.cli.lazy import LazyCommand
from longshore.orchestration.cli.main import call, cli
from longshore.orchestration.errors import (
    JobFailed,
    LongshoreError,
    PlanError,
    RunConflict,
    RunFailed,
    code_of,
)
from longshore.tasks.loaded_runs import NotOurs

Captured = pytest.CaptureFixture[str]

#: The codes of all public errors. Programs and documents name the codes: a renamed code is a breaking change.
CODES = {
    "LongshoreError": "general",
    "UsageError": "usage",
    "PlanError": "plan-invalid",
    "PlanDenied": "plan-denied",
    "ParamsError": "params-invalid",
    "UnknownName": "unknown-name",
    "JobNotFound": "job-not-found",
    "BadIdentifier": "bad-identifier",
    "RunConflict": "run-conflict",
    "ConfigError": "config-invalid",
    "StoreUnavailable": "store-unavailable",
    "WrongType": "wrong-type",
    "Damaged": "damaged-entry",
    "DecodeError": "decode-failed",
    "WaitTimeout": "wait-timeout",
    "QueueFull": "queue-full",
    "ServiceDown": "service-down",
    "RunLost": "run-lost",
    "CommandRefused": "refused",
    "RunFailed": "run-failed",
    "JobFailed": "job-failed",
    "ImageMissing": "image-missing",
    "StopFailed": "stop-failed",
    "WorkerFailed": "worker-failed",
    "JobTimeout": "job-timeout",
    "JobCancelled": "job-cancelled",
    "StartFailed": "start-failed",
    "OperationError": "operation-failed",
    "Transient": "transient",
    "Permanent": "permanent",
    "Unsuccessful": "unsuccessful",
    "Delayed": "delayed",
    "InDoubt": "in-doubt",
    "Blocked": "blocked",
    "Preflight": "preflight",
    "NotAllowed": "not-allowed",
    "StepTimeout": "step-timeout",
    "StepCancelled": "step-cancelled",
    "NotOurs": "foreign-run",
    "Newer": "newer-run",
    "UnknownOperation": "unknown-operation",
    "NoAnswer": "http-no-answer",
    "NotThere": "engine-not-found",
    "Conflict": "engine-conflict",
    "EngineTimeout": "engine-timeout",
}


def public_errors() -> dict[str, type[LongshoreError]]:
    """The public error classes of the product, by name."""
    for package in (orchestration, tasks):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if ".django" not in module.name and not module.name.endswith("__main__"):
                importlib.import_module(module.name)
    return {
        kind.__name__: kind
        for kind in [LongshoreError, *below(LongshoreError)]
        if kind.__module__.startswith("longshore.") and not kind.__name__.startswith("_")
    }


def below(kind: type[LongshoreError]) -> Iterator[type[LongshoreError]]:
    for child in kind.__subclasses__():
        yield child
        yield from below(child)


# --- codes and texts ------------------------------------------------------------------------------


def test_every_public_error_has_a_stable_code_of_its_own() -> None:
    found = public_errors()

    assert {name: vars(kind).get("code") for name, kind in found.items()} == CODES
    assert len(set(CODES.values())) == len(CODES)
    assert [code for code in CODES.values() if not re.fullmatch(r"[a-z]+(-[a-z]+)*", code)] == []


def test_every_code_is_explained_in_the_order_of_the_hierarchy() -> None:
    assert list(ERRORS) == list(CODES.values())


def test_exit_codes_in_the_texts_match_the_classes() -> None:
    for name, kind in public_errors().items():
        if issubclass(kind, NotOurs):  # an error of workers, which no command raises
            assert ERRORS[CODES[name]].exit_codes == "none"
        elif not issubclass(kind, RunFailed | JobFailed):  # these errors have the exit code of the run
            assert str(kind.exit_code) in ERRORS[CODES[name]].exit_codes.split(" or "), name


def test_texts_name_only_commands_that_exist() -> None:
    for code, entry in ERRORS.items():
        for words in re.findall(r"`longshore ([a-z ]+)", f"{entry.means} {entry.raised} {entry.remedy}"):
            first, *rest = words.split()
            command = cli.commands[first]
            assert isinstance(command, LazyCommand)
            loaded = command.load()
            if isinstance(loaded, click.Group):
                assert rest[0] in loaded.commands, code


def test_subclass_without_a_code_has_that_of_its_parent() -> None:
    class Special(RunConflict):
        pass

    error = RuntimeError("wrapped")
    error.__cause__ = Special("x")
    assert (code_of(Special("x")), code_of(error), code_of(ValueError("x"))) == ("run-conflict", "run-conflict", "")


def test_reference_has_one_heading_for_each_code() -> None:
    text = error_reference()

    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == list(ERRORS)
    for part, entry in zip(re.split(r"^## .+\n", text, flags=re.MULTILINE)[1:], ERRORS.values(), strict=True):
        for line in (entry.means, f"- **Exit code:** {entry.exit_codes}", entry.raised, entry.remedy):
            assert line in part


# --- longshore explain ----------------------------------------------------------------------------


@pytest.mark.parametrize("code", ERRORS)
def test_explain_prints_meaning_causes_and_remedy(code: str, capsys: Captured) -> None:
    assert call(["explain", code]) == 0

    out = capsys.readouterr().out
    assert out.strip() == error_text(code)
    for part in (ERRORS[code].means, ERRORS[code].raised, ERRORS[code].remedy):
        assert part.replace("`", "") in out


@pytest.mark.parametrize("text", ["run-conflict", "RUN_CONFLICT", "error[run-conflict]:"])
def test_explain_reads_a_code_as_it_was_printed(text: str, capsys: Captured) -> None:
    assert call(["explain", text, "-o", "json"]) == 0

    entry = json.loads(capsys.readouterr().out)
    assert entry["code"] == "run-conflict"
    assert entry["exit_codes"] == "2"
    assert set(entry) == {"code", "exit_codes", "means", "causes", "remedy"}


def test_explain_without_a_code_lists_all(capsys: Captured) -> None:
    assert call(["explain"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(ERRORS)

    assert call(["explain", "-o", "json"]) == 0
    assert [entry["code"] for entry in json.loads(capsys.readouterr().out)] == list(ERRORS)


@pytest.mark.parametrize(
    ("text", "near"), [("runconflict", "run-conflict"), ("queue", "queue-full"), ("x", "longshore explain")]
)
def test_unknown_code_suggests_similar_codes(text: str, near: str, capsys: Captured) -> None:
    assert call(["explain", text]) == 2

    err = capsys.readouterr().err
    assert err.startswith("error[unknown-name]: ")
    assert near in err


@pytest.mark.parametrize("text", ["undo-failed", "undo_failed", "held-back", "left-over", "suspended"])
def test_name_of_a_state_is_no_error_code(text: str, capsys: Captured) -> None:
    assert call(["explain", text]) == 2

    err = capsys.readouterr().err
    assert f"'{text.replace('-', '_')}' is a state, not an error code" in err
    assert "longshore runs show" in err


# --- the form of errors ---------------------------------------------------------------------------


def test_error_is_printed_with_its_code(capsys: Captured) -> None:
    assert call(["run", "nope"]) == 2

    assert capsys.readouterr().err.startswith("error[unknown-name]: no plan 'nope'")


def test_json_error_has_code_message_remedy_and_exit_code(capsys: Captured) -> None:
    assert call(["-o", "json", "run", "nope"]) == 2

    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    error = json.loads(err)["error"]
    assert (error["code"], error["exit_code"]) == ("unknown-name", 2)
    assert error["message"].startswith("no plan 'nope'")
    assert error["remedy"].startswith("give a file")


def test_wrong_usage_has_a_code_in_json(capsys: Captured) -> None:
    assert call(["-o", "json", "runs", "show"]) == 2

    assert json.loads(capsys.readouterr().err)["error"]["code"] == "usage"


def test_error_of_another_library_has_no_code(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    def fails(_text: str) -> str:
        raise ZeroDivisionError("x")

    monkeypatch.setattr(explain_command, "_code", fails)

    assert call(["explain", "usage"]) == 1
    assert capsys.readouterr().err == "error: ZeroDivisionError: x (-v shows the traceback)\n"
    assert call(["explain", "usage", "-o", "json"]) == 1
    assert json.loads(capsys.readouterr().err)["error"] == {
        "code": None,
        "message": "ZeroDivisionError: x",
        "remedy": "",
        "exit_code": 1,
    }


def test_wrapped_error_keeps_the_code_of_its_cause(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    def fails(_text: str) -> str:
        raise RuntimeError("wrapped") from PlanError("y")

    monkeypatch.setattr(explain_command, "_code", fails)

    assert call(["explain", "usage"]) == 2
    assert capsys.readouterr().err.startswith("error[plan-invalid]: RuntimeError: wrapped")

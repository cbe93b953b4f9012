"""Commands to runs: refusals."""

from __future__ import annotations

import json
from typing import Any

import pytest

from longshore.orchestration.cli import breakers, runs
from longshore.orchestration.cli.main import call
from longshore.orchestration.settings import Settings
from longshore.orchestration.states import RunState
from longshore.orchestration.store.breakers import Breakers
from longshore.tasks.simulation.memory_store import MemoryStore

Captured = pytest.CaptureFixture[str]


class UndoneRun:
    """A run whose worker refuses each command."""

    id = "r1"

    class store:  # noqa: N801 - an attribute of a run
        @staticmethod
        def newest_event(_run_id: str) -> str:
            return "0-0"

    def state(self) -> RunState:
        return RunState.UNDONE

    def answer(self, _command_id: str) -> str:
        return "the run is undone"

    def command(self, *_: object, **__: object) -> str:
        return "1-1"

    cancel = undo = resume = resolve = approve = reject = command


@pytest.fixture
def undone_run(monkeypatch: pytest.MonkeyPatch) -> None:
    class Client:
        def get(self, _run_id: str) -> UndoneRun:
            return UndoneRun()

    monkeypatch.setattr(runs, "client", Client)


COMMANDS = (
    ["cancel", "r1"],
    ["undo", "r1"],
    ["resume", "r1"],
    ["resolve", "r1", "a", "--done"],
    ["approve", "r1", "a"],
    ["approve", "r1", "a", "--reject"],
)


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_refused_command_is_an_error_with_a_code(undone_run: None, arguments: list[str], capsys: Captured) -> None:
    assert call(["runs", *arguments]) == 1
    assert tuple(capsys.readouterr()) == ("", "error[refused]: run r1: the run is undone\n")

    assert call(["-q", "-o", "json", "runs", *arguments]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert json.loads(err)["error"] == {
        "code": "refused",
        "message": "run r1: the run is undone",
        "remedy": "",
        "exit_code": 1,
    }


def test_dry_run_of_a_refused_command_is_an_error_with_a_code(undone_run: None, capsys: Captured) -> None:
    assert call(["--dry-run", "-o", "json", "runs", "cancel", "r1"]) == 1

    error: dict[str, Any] = json.loads(capsys.readouterr().err)["error"]
    assert (error["code"], error["message"]) == ("refused", "would be refused: run r1 is undone")


def test_reset_of_a_closed_breaker_is_an_error_with_a_code(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    class Client:
        store = MemoryStore(Settings())

    Breakers(Client.store).hold("billing", "it does not answer")
    monkeypatch.setattr(breakers, "client", Client)

    assert call(["breaker", "reset", "paging"]) == 2
    expected = "error[unknown-name]: the breaker of service 'paging' is not open: choose one of: billing\n"
    assert capsys.readouterr().err == expected

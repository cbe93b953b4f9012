"""Commands to runs: refusals, quiet output, and the deletion of several runs."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from longshore.orchestration import Plan
from longshore.orchestration.cli import breakers, run, run_reports, runs
from longshore.orchestration.cli.main import call
from longshore.orchestration.errors import UnknownName, WaitTimeout
from longshore.orchestration.runs.report import Report
from longshore.orchestration.settings import Settings
from longshore.orchestration.states import RunState
from longshore.orchestration.store.breakers import Breakers
from longshore.orchestration.testing import Sandbox
from longshore.tasks.simulation.memory_store import MemoryStore

if TYPE_CHECKING:
    from longshore.orchestration.client.run import Run

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


@pytest.mark.parametrize("irreversible", [False, True])
def test_dry_run_of_an_undo_names_the_steps_that_are_undone(
    irreversible: bool, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    plan, undo = Plan("p"), {"path": "/x", "content": "y"}
    plan.step("write", "file.deploy.execute", **undo)
    plan.step("show", "command.exec.execute", argv=["x"])
    point = plan.step("log", "command.exec.execute", argv=["x"]).always()
    if irreversible:
        point = plan.step("send", "command.exec.execute", argv=["x"]).irreversible()
    point.after("write", "show")
    sandbox = Sandbox()
    assert sandbox.run(plan, run_id="r1").state == "succeeded"
    found = SimpleNamespace(
        id="r1", plan=sandbox.plans.get("r1").plan, store=sandbox.store, state=lambda: RunState.SUCCEEDED
    )
    monkeypatch.setattr(runs, "client", lambda: SimpleNamespace(get=lambda _run_id: found))

    code = call(["runs", "undo", "r1", "--dry-run"])

    out, err = capsys.readouterr()
    if irreversible:
        assert (code, out) == (1, "")
        assert err == (
            "error[refused]: would be refused: run r1: the run is past its point of no return and cannot be undone\n"
        )
    else:
        assert (code, out) == (0, "would undo, in reverse: write (the run is succeeded)\n")


def test_reset_of_a_closed_breaker_is_an_error_with_a_code(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    class Client:
        store = MemoryStore(Settings())

    Breakers(Client.store).hold("billing", "it does not answer")
    monkeypatch.setattr(breakers, "client", Client)

    assert call(["breaker", "reset", "paging"]) == 2
    expected = "error[unknown-name]: the breaker of service 'paging' is not open: choose one of: billing\n"
    assert capsys.readouterr().err == expected


# --- --quiet --------------------------------------------------------------------------------------


class Finished:
    """A client that has one run, which has failed."""

    def __init__(self) -> None:
        plan = Plan("shop")
        plan.step("ship", "noop.execute", fail="out of stock")
        self._report = Sandbox().run(plan)

    def report(self) -> Report:
        return self._report

    def get(self, _run_id: str) -> Finished:
        return self

    def runs(self, _limit: int) -> list[Finished]:
        return [self]


@pytest.mark.parametrize(("arguments", "code"), [(["ls"], 0), (["show", "r1"], 1)], ids=["ls", "show"])
def test_quiet_command_prints_what_was_requested(
    arguments: list[str], code: int, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setattr(run_reports, "client", Finished)
    monkeypatch.setattr(run_reports, "print_next", lambda *_, **__: None)

    outputs = []
    for quiet in ([], ["-q"]):
        assert call(["runs", *arguments, *quiet]) == code
        outputs.append(tuple(capsys.readouterr()))

    assert outputs[0] == outputs[1]
    assert "1 failed" in outputs[1][0]


@pytest.mark.parametrize("possible", [True, False])
def test_quiet_dry_run_prints_its_prediction(
    possible: bool, monkeypatch: pytest.MonkeyPatch, capsys: Captured, tmp_path: Path
) -> None:
    answer = {"level": 0, "step": "a", "op": "noop.execute", "host": "web1", "changed": True, "action": "would act"}
    answer |= {"undo": "", "impossible": "" if possible else "no such file"}
    monkeypatch.setattr(run, "client", lambda: SimpleNamespace(dry_run=lambda *_: [answer]))
    plan = tmp_path / "plan.yaml"
    plan.write_text("name: p\nsteps: {a: {op: noop.execute}}\n")

    assert call(["run", str(plan), "--dry-run", "-q"]) == (0 if possible else 1)

    out, err = capsys.readouterr()
    assert ("would act" in out, "cannot succeed: no such file" in out, err) == (True, not possible, "")


# --- prune ----------------------------------------------------------------------------------------


class StoredRun:
    """An ended run of the plan `shop`; `there` of its store has the runs that exist."""

    def __init__(self, run_id: str, store: Installation) -> None:
        self.id = run_id
        self.store = store
        self.plan = SimpleNamespace(plan=SimpleNamespace(name="shop"))

    def state(self) -> RunState:
        return RunState.SUCCEEDED

    def prune(self) -> str:
        if self.id == self.store.slow:
            raise WaitTimeout("no worker has read the command")
        if self.store.parent_of(self.id) in self.store.there:
            return "only an ended run that is no child run can be pruned"
        if self.id not in self.store.there:
            raise UnknownName(f"no run {self.id!r}")
        self.store.there -= {self.id, *(child for child, parent in self.store.parents.items() if parent == self.id)}
        return "done"


class Installation:
    """A store with the ended runs a, b and c, of which `parents` are the parents."""

    def __init__(self) -> None:
        self.there = {"a", "b", "c"}
        self.parents: dict[str, str] = {}
        #: A run that no worker deletes.
        self.slow = ""
        self.settings = Settings()
        self.store = self

    def ended_since(self, _seconds: float) -> list[str]:
        return ["a", "b", "c"]

    def parent_of(self, run_id: str) -> str:
        return self.parents.get(run_id, "") if run_id in self.there else ""

    def body(self, run_id: str) -> dict[str, Any] | None:
        return {} if run_id in self.there else None

    def get(self, run_id: str) -> StoredRun:
        if run_id not in self.there:
            raise UnknownName(f"run {run_id!r} does not exist")
        return StoredRun(run_id, self)


@pytest.fixture
def installation(monkeypatch: pytest.MonkeyPatch) -> Installation:
    found = Installation()
    monkeypatch.setattr(runs, "client", lambda: found)
    return found


@pytest.mark.parametrize("dry_run", [False, True])
def test_prune_of_old_runs_leaves_child_runs_to_their_parent(
    installation: Installation, dry_run: bool, capsys: Captured
) -> None:
    installation.parents = {"a": "b", "c": "b"}

    code = call(["-o", "json", "runs", "prune", *(["--dry-run"] if dry_run else [])])

    out, err = capsys.readouterr()
    assert (code, err) == (0, "")
    assert json.loads(out) == {"dry_run": dry_run, "forgotten": ["b"], "refused": [], "skipped": []}
    assert installation.there == ({"a", "b", "c"} if dry_run else set())


def test_child_run_whose_parent_is_deleted_is_pruned(installation: Installation) -> None:
    installation.parents = {"a": "gone"}

    assert call(["runs", "prune"]) == 0
    assert installation.there == set()


@pytest.mark.parametrize("dry_run", [False, True])
def test_prune_of_a_named_child_run_is_refused(installation: Installation, dry_run: bool, capsys: Captured) -> None:
    installation.parents = {"a": "b"}

    assert call(["runs", "prune", "a", *(["--dry-run"] if dry_run else [])]) == 1

    out, err = capsys.readouterr()
    assert (out, "error[refused]: " in err, "child run" in err) == ("", True, True)


def test_second_ctrl_c_during_the_notice_cancels_the_run(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    cancelled: list[str] = []

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "print_lines", interrupted)

    assert run.stop_watching(cast("Run", SimpleNamespace(id="r1", cancel=cancelled.append))) == 130
    assert (cancelled, "cancelling run r1" in capsys.readouterr().err) == (["Ctrl-C twice"], True)


def test_prune_with_an_unknown_name_deletes_nothing(installation: Installation, capsys: Captured) -> None:
    assert call(["runs", "prune", "a", "nothing", "b"]) == 2

    out, err = capsys.readouterr()
    assert (out, err) == ("", "error[unknown-name]: run 'nothing' does not exist\n")
    assert installation.there == {"a", "b", "c"}


def test_run_that_expires_during_the_command_counts_as_deleted(
    installation: Installation, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    prune = StoredRun.prune

    def expiring(run: StoredRun) -> str:
        installation.there -= {"b"}
        return prune(run)

    monkeypatch.setattr(StoredRun, "prune", expiring)

    assert call(["-o", "json", "runs", "prune", "a", "b", "a"]) == 0
    assert json.loads(capsys.readouterr().out)["forgotten"] == ["a", "b"]


def test_error_during_a_prune_follows_the_report_of_deleted_runs(installation: Installation, capsys: Captured) -> None:
    installation.slow = "b"

    assert call(["-o", "json", "runs", "prune", "a", "b", "c"]) == 1

    out, err = capsys.readouterr()
    assert json.loads(out)["forgotten"] == ["a"]
    assert json.loads(err)["error"]["code"] == "wait-timeout"

"""The sandbox: scripted outcomes of steps, in memory only."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from longshore.orchestration import Event, Hooks, Plan
from longshore.orchestration.cli.main import call
from longshore.orchestration.errors import ConfigError, PlanError
from longshore.orchestration.testing import MemoryEngine, Sandbox, simulate
from longshore.tasks.control.event_forwarder import EventForwarder


def release() -> Plan:
    plan = Plan("release")
    plan.step("stop", "docker.stop.execute", container="shop")
    plan.step("migrate", "command.exec.execute", argv=["migrate"]).after("stop").undo("none")
    plan.step("start", "docker.start.execute", container="shop").after("migrate").always()
    return plan


def test_run_acts_on_the_memory_engine_and_undoes() -> None:
    sandbox = Sandbox()
    sandbox.engine.run("shop", "shop:1")
    sandbox.fail("migrate")

    report = sandbox.run(release())

    assert report.state == "undone"
    assert sandbox.done == ["stop", "migrate", "start"]
    assert sandbox.undone == ["stop"]
    shop = sandbox.engine.inspect("shop")
    assert shop is not None
    assert shop.running


def test_commands_are_simulated() -> None:
    plan = Plan("p")
    plan.step("a", "command.exec.execute", argv=["rm", "-rf", "/nowhere"])
    plan.step("b", "noop.execute", data={"text": "{{ steps.a.data.stdout }}"}).after("a")

    report = Sandbox().run(plan)
    assert report.step("b").data == {"text": "a-stdout"}

    sandbox = Sandbox()
    sandbox.give("a", {"stdout": "hello"}, changed=False)
    report = sandbox.run(plan)
    assert (report.step("a").status, report.step("b").data) == ("unchanged", {"text": "hello"})


def test_simulation_has_placeholders_for_secrets() -> None:
    plan = Plan("p")
    value = "{{ secret('env:LONGSHORE_SECRET_NONE') }}"
    plan.step("env", "file.deploy.execute", path="/srv/.env", content=f"PW={value}", mode="0600")
    plan.step("use", "command.exec.execute", argv=["x"], env={"A": value}, stdin=value).undo(
        "command.exec.execute", argv=["y"], env={"A": value}
    ).after("env")
    plan.step("last", "noop.execute").after("use")

    without, *others = simulate(plan)

    assert without.report.state == "succeeded", without.report.error
    assert [each.report.exit_code for each in others] == [1, 1, 1]
    assert [each.report.error.message for each in others if each.report.error] == ["simulated failure"] * 3


def test_scripted_step_can_hang_vanish_and_recover() -> None:
    plan = Plan("p", on_error="continue")
    plan.step("hangs", "noop.execute").timeout("2s")
    plan.step("vanishes", "command.exec.execute", argv=["x"], changes=False)
    plan.step("recovers", "noop.execute").retry(3, initial=10)
    sandbox = Sandbox()
    sandbox.hang("hangs")
    sandbox.vanish("vanishes", times=2)
    sandbox.fail("recovers", times=2)

    report = sandbox.run(plan)

    assert report.step("hangs").error == "exceeded its time limit (2s)"
    assert (report.step("vanishes").status, report.step("vanishes").attempts) == ("unchanged", 3)
    assert (report.step("recovers").status, report.step("recovers").attempts) == ("changed", 3)
    assert (report.duration_s or 0) > 15, "the run took real time"


def test_sandbox_approves_and_rejects() -> None:
    plan = Plan("p")
    plan.approval("ask", timeout="1h")
    plan.step("after", "noop.execute").after("ask")

    sandbox = Sandbox()
    sandbox.approve("ask", "go")
    assert sandbox.run(plan).step("ask").data["note"] == "go"
    sandbox.reject("ask", "no")
    assert (sandbox.run(plan).step("ask").error or "").endswith(": no")
    late = Sandbox().run(plan)
    assert late.step("ask").error == "no approval within 1h"
    assert (late.duration_s or 0) >= 3600


def test_single_operation_and_its_undo(tmp_path: Path) -> None:
    sandbox = Sandbox()
    done = sandbox.act("file.deploy.execute", path=str(tmp_path / "f"), content="x")
    assert (done.outcome.changed, (tmp_path / "f").read_text()) == (True, "x")
    assert done.undo().changed
    assert not (tmp_path / "f").exists()

    sandbox.engine.run("shop", "shop:1")
    stopped = sandbox.act("docker.stop.execute", container="shop")
    assert not sandbox.act("docker.stop.execute", container="shop").outcome.changed
    stopped.undo()
    shop = sandbox.engine.inspect("shop")
    assert shop is not None
    assert shop.running


def test_sandbox_calls_hooks() -> None:
    calls: list[str] = []
    Sandbox().run(release_of_two(), hooks=Hooks(before_step=calls.append))
    assert calls == ["a", "b"]


def release_of_two() -> Plan:
    plan = Plan("two")
    plan.step("a", "noop.execute")
    plan.step("b", "noop.execute").after("a")
    return plan


def test_pytest_fixture_provides_a_sandbox(longshore_sandbox: Any) -> None:
    assert longshore_sandbox.run(release_of_two()).state == "succeeded"


def test_sandbox_refuses_an_invalid_plan() -> None:
    with pytest.raises(PlanError):
        Sandbox().run(Plan("empty"))


def test_simulation_fails_each_step_in_turn() -> None:
    found = {each.step: each.report for each in simulate(release())}

    assert {step: (str(report.state), report.exit_code) for step, report in found.items()} == {
        None: ("succeeded", 0),
        "stop": ("undone", 1),
        "migrate": ("undone", 1),
        "start": ("partial", 3),
    }
    assert found["migrate"].step("start").status == "changed"


def test_simulate_command_shows_each_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "plan.yaml").write_text(release().to_yaml())

    code = call(["plan", "simulate", str(tmp_path / "plan.yaml")])

    assert code == 3, "a failed always step ended with another exit code"
    assert capsys.readouterr().out.splitlines() == [
        "no step fails: succeeded, exit code 0",
        "stop fails: undone, exit code 1; undone: stop",
        "migrate fails: undone, exit code 1; undone: stop",
        "start fails: partial, exit code 3; left over: stop, migrate",
    ]
    call(["plan", "simulate", str(tmp_path / "plan.yaml"), "-o", "json"])
    ends = json.loads(capsys.readouterr().out)
    assert [each["fails"] for each in ends] == [None, "stop", "migrate", "start"]


def test_server_hooks_get_each_event_at_least_once() -> None:
    """A worker dies while it calls a hook: an event without a mark is sent again, with the same id."""
    calls: list[tuple[str, str]] = []
    hooks = Hooks(before_step=lambda name: calls.append((hooks.event.id if hooks.event else "", name)))
    sandbox = Sandbox()
    sandbox.run(release_of_two(), run_id="r")
    plan = sandbox.plans.get("r").plan

    EventForwarder(sandbox.store, [hooks]).tell("r", plan)
    EventForwarder(sandbox.store, [hooks]).tell("r", plan)
    assert [name for _, name in calls] == ["a", "b"]

    first = next(event for event in sandbox.events("r") if event.name == "step_started")
    sandbox.store.notified("r", first.id)
    EventForwarder(sandbox.store, [hooks]).tell("r", plan)
    assert [name for _, name in calls] == ["a", "b", "b"]
    assert calls[1] == calls[2]


def test_failing_server_hook_affects_no_run_or_other_hook(
    caplog: pytest.LogCaptureFixture,
) -> None:
    calls: list[Event | None] = []
    good = Hooks(before_step=lambda _name: calls.append(good.event))
    bad = Hooks(before_step=lambda _name: 1 / 0)
    sandbox = Sandbox()
    sandbox.run(release_of_two(), run_id="r")

    EventForwarder(sandbox.store, [bad, good]).tell("r", sandbox.plans.get("r").plan)

    assert len(calls) == 2
    assert "a hook failed at event" in caplog.text


def test_memory_engine_ends_containers_with_exit_codes() -> None:
    engine = MemoryEngine(exit_codes={"job:1": 3})
    engine.run("job", "job:1")
    ended = engine.inspect("job")
    assert ended is not None
    assert (ended.running, ended.exit_code, ended.status) == (False, 3, "exited")


def test_missing_fakeredis_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fakeredis", None)

    with pytest.raises(ConfigError, match=r"plan simulate need fakeredis") as missing:
        Sandbox()

    assert missing.value.remedy == "pip install 'longshore[testing]'"

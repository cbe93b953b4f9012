"""The plan language on real workers. Tests of the sandbox have its policies, items and results."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import pytest

from longshore.orchestration import E, Event, Hooks, Plan, StepReport, WaitTimeout, parse
from longshore.orchestration.settings import LARGE_DATA_BYTES, MAX_DATA_BYTES
from tests.integration.conftest import MakeInstallation
from tests.integration.processes import Installation, fork_server, lines, names, wait_for
from tests.integration.processes import report_of as run

# --- every field -----------------------------------------------------------------------------------------

WHOLE = """
name: whole
description: Every field of the language
labels: {team: blue}
params:
  folder: {type: string, description: Where, pattern: "/.*"}
  count: {type: integer, default: 3, min: 1, max: 9}
  kind: {type: string, default: big, enum: [big, small]}
on_error: continue
on_failure: keep
target: _any
retry: {attempts: 2, initial: 50ms, maximum: 100ms, jitter: false}
timeout: 5m
steps:
  list:
    op: noop.execute
    with: {data: {names: [a, b, c]}, changed: false}
    description: What there is
  copy:
    op: file.deploy.execute
    with: {path: "{{ params.folder }}/{{ item }}", content: "{{ item }} of {{ params.count }}\\n"}
    after: list
    foreach: "{{ steps.list.data.names }}"
    max_parallel: 2
    tolerate: 10%
    timeout: 30s
  look:
    op: command.exec.execute
    with: {argv: [cat, "{{ steps.copy.items[0].data.path }}"], changes: false}
    after: [copy]
    only_if: [changed, any_host_changed]
    when: ["steps.copy.status == 'changed'", {if: "params.kind == 'big'", reason: only big ones}]
    target: _any
  small:
    op: noop.execute
    after: list
    when: {if: "params.kind == 'small'", reason: only small ones}
  flaky:
    op: noop.execute
    with: {fail: it never works}
    after: look
    on_error: continue
    retry: {attempts: 3, initial: 0}
    undo: {op: noop.execute, with: {data: {was: "{{ data.x | default('nothing') }}"}}}
  repair:
    op: noop.execute
    after: flaky
    only_if: failed
    undo: none
  publish:
    op: noop.execute
    after: repair
    irreversible: true
    undo: none
  tidy:
    op: noop.execute
    after: publish
    always: true
"""


def whole() -> Plan:
    plan = Plan(
        "whole",
        description="Every field of the language",
        labels={"team": "blue"},
        params={
            "folder": {"type": "string", "description": "Where", "pattern": "/.*"},
            "count": {"type": "integer", "default": 3, "min": 1, "max": 9},
            "kind": {"type": "string", "default": "big", "enum": ["big", "small"]},
        },
        on_error="continue",
        on_failure="keep",
        target="_any",
        retry={"attempts": 2, "initial": 0.05, "maximum": 0.1, "jitter": False},
        timeout="5m",
    )
    names_ = plan.step("list", "noop.execute", data={"names": ["a", "b", "c"]}, changed=False).describe("What there is")
    copy = plan.step(
        "copy", "file.deploy.execute", path=f"{E.params.folder}/{E.item}", content=f"{E.item} of {E.params.count}\n"
    )
    copy.after(names_).foreach(names_.data.names).max_parallel(2).tolerate("10%").timeout("30s")
    look = plan.step("look", "command.exec.execute", argv=["cat", copy.items[0].data.path], changes=False).after(copy)
    look.only_if_changed().only_if_any_host_changed().target("_any")
    look.when("steps.copy.status == 'changed'").when("params.kind == 'big'", reason="only big ones")
    plan.step("small", "noop.execute").after(names_).when("params.kind == 'small'", reason="only small ones")
    flaky = plan.step("flaky", "noop.execute", fail="it never works").after(look).continue_on_error().retry(2)
    flaky.undo("noop.execute", data={"was": "{{ data.x | default('nothing') }}"})
    repair = plan.step("repair", "noop.execute").after(flaky).only_if_failed().undo("none")
    publish = plan.step("publish", "noop.execute").after(repair).irreversible().undo("none")
    plan.step("tidy", "noop.execute").after(publish).always()
    return plan


def test_plan_with_every_field_is_equal_in_yaml_and_python_and_runs(shop: Installation, tmp_path: Path) -> None:
    written = parse(WHOLE)
    assert written == whole()
    assert parse(written.to_yaml()) == written == parse(written.to_json())

    report = run(shop, written, folder=str(tmp_path))

    assert [(s.name, s.status, s.changed, s.attempts, s.reason, s.error, s.level) for s in report.steps] == [
        ("list", "unchanged", False, 1, None, None, 0),
        ("copy", "changed", True, 1, None, None, 1),
        ("look", "unchanged", False, 1, None, None, 2),
        ("small", "skipped", False, 0, "only small ones", None, 1),
        ("flaky", "failed", False, 3, None, "it never works", 3),
        ("repair", "changed", True, 1, None, None, 4),
        ("publish", "changed", True, 1, None, None, 5),
        ("tidy", "changed", True, 1, None, None, 6),
    ]
    assert report.step("look").data["stdout"] == "a of 3\n"
    assert [item.item for item in report.step("copy").items] == ["a", "b", "c"]
    assert [item["path"] for item in report.step("copy").data["results"]] == [f"{tmp_path}/{n}" for n in "abc"]
    assert (report.state, report.exit_code, report.left_over) == (
        "partial",
        3,
        ["copy[0]", "copy[1]", "copy[2]", "repair", "publish"],
    )
    assert report.summary == "8 steps, 4 changed, 2 unchanged, 1 failed, 1 skipped"


# --- items -----------------------------------------------------------------------------------------------


def many(count: int, tolerate: str) -> Plan:
    """A plan with `count` items, of which three fail."""
    plan = Plan("many")
    numbers = plan.step("numbers", "noop.execute", data={"all": list(range(count))}, changed=False)
    fail = f"{{{{ 'it is ' ~ item if item in (5, {count // 2}, {count - 1}) else false }}}}"
    each = plan.step("each", "noop.execute", data={"n": E.item}, fail=fail)
    each.after(numbers).foreach(numbers.data.all).tolerate(tolerate)
    return plan


def test_items_tolerate_two_percent_of_failures(shop: Installation) -> None:
    report = run(shop, many(150, "2%"))

    each = report.step("each")
    assert (each.status, report.state, report.exit_code) == ("changed", "succeeded", 0)
    assert [(item.item, item.error) for item in each.failures()] == [(n, f"it is {n}") for n in (5, 75, 149)]
    assert [data.get("n") for data in each.data["results"]] == [None if n in {5, 75, 149} else n for n in range(150)]
    assert each.error is not None
    assert each.error.startswith("3 of 150 failed; the first: it is ")


def test_max_parallel_limits_items_and_each_is_undone(shop: Installation, tmp_path: Path) -> None:
    plan = Plan("items")
    each = plan.step("each", "own.touch", path=f"{tmp_path}/{E.item.name}", text=E.item.text)
    each.foreach([{"name": n, "text": n * 2} for n in "abcd"]).max_parallel(1)
    plan.step("boom", "noop.execute", fail="{{ not params.good }}").after(each)
    plan.params["good"] = parse("name: x\nparams: {good: boolean}\nsteps: {a: {op: noop.execute}}").params["good"]

    good = shop.run(plan, good=True)
    assert good.wait(timeout=60).state == "succeeded"
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {n: n * 2 for n in "abcd"}
    events = [event for event in good.events() if event.name in {"item_started", "item_ended"}]
    assert [event.name for event in events] == ["item_started", "item_ended"] * 4, "two items ran at the same time"

    bad = shop.run(plan, good=False)
    assert bad.wait(timeout=60).state == "undone"
    assert list(tmp_path.iterdir()) == []
    assert sorted(names(bad, "undo_ended"))[1:] == [f"each[{n}]" for n in range(4)]


# --- results ---------------------------------------------------------------------------------------------


def test_large_result_is_stored_separately_up_to_a_limit(shop: Installation) -> None:
    plan = Plan("large", on_error="continue")
    plan.step("large", "own.large", size=LARGE_DATA_BYTES * 10)
    plan.step("length", "noop.execute", data={"n": "{{ steps.large.data.text | length }}"}).after("large")
    plan.step("huge", "own.large", size=MAX_DATA_BYTES)
    started = shop.run(plan)

    report = started.wait(timeout=60)

    assert len(report.step("large").data["text"]) == LARGE_DATA_BYTES * 10
    assert report.step("length").data == {"n": LARGE_DATA_BYTES * 10}
    assert f"bytes exceeds the {MAX_DATA_BYTES}" in (report.step("huge").error or "")
    keys = started.store.keys.of(started.id)
    assert shop.redis.memory_usage(keys.steps) < LARGE_DATA_BYTES


# --- function operations ---------------------------------------------------------------------------------


def test_function_operation_journals_retries_undoes_and_predicts(shop: Installation, tmp_path: Path) -> None:
    ledger = tmp_path / "ledger"
    ledger.write_text("was\n")
    plan = Plan("own")
    bill = {"customer": "ann", "amount": 5}
    plan.step("charge", "own.charge", bill=bill, ledger=str(ledger), away=1)
    plan.step("touch", "own.touch", path=str(tmp_path / "touched")).after("charge")
    plan.step("boom", "noop.execute", fail=True).after("touch")

    (dry_run, *_) = shop.client().dry_run(plan)
    assert (dry_run["action"], dry_run["changed"]) == ("would charge 5", True)

    report = run(shop, plan)

    assert lines(ledger) == ["was", "try 1", "try 2", "charge 5", "refund 5 since line 1"]
    assert report.step("touch").data["key"] == f"{report.run_id}.touch"
    assert not (tmp_path / "touched").exists(), "the named undo has not run"
    assert report.state == "undone"


def test_parameters_of_a_function_are_checked_before_the_start(shop: Installation) -> None:
    plan = Plan("own")
    plan.step("charge", "own.charge", bill={"customer": "ann", "amount": "much"}, ledger="/tmp/x")
    with pytest.raises(Exception, match=r"step 'charge': bill.amount: "):
        shop.run(plan)


def test_heartbeat_of_a_function_raises_a_cancel(shop: Installation) -> None:
    plan = Plan("own")
    plan.step("patient", "own.patient", seconds=60)
    started = shop.run(plan)
    wait_for("the step to start", lambda: names(started, "step_started"))
    started.cancel()

    report = started.wait(timeout=30)

    assert report.step("patient").status == "cancelled"
    assert "still here" in list(started.log("patient"))


# --- Celery tasks of an application ------------------------------------------------------------------------


@pytest.mark.parametrize("results", ["", "yes"])
def test_failed_second_celery_task_compensates_the_first(
    shop: Installation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, results: str
) -> None:
    prefix = shop.settings.broker_prefix()
    environment = {
        "BANK_BROKER": shop.redis_url, "BANK_LEDGER": str(tmp_path / "ledger"), "BANK_PREFIX": prefix,
        "BANK_RESULTS": results, "PYTHONPATH": shop.pythonpath,
    }  # fmt: skip
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    sys.modules.pop("tests.integration.bank", None)
    from tests.integration import bank

    log = tmp_path / "bank.log"
    command = ["celery", "-A", "tests.integration.bank", "worker", "-Q", "celery,shipping", "-c", "1"]
    worker = fork_server().start(command, env=shop.environment | environment, cwd=tmp_path, log=log)
    try:
        plan = Plan("order")
        plan.celery("charge", bank.charge.s(42), undo=bank.refund.s(42), timeout=30)
        ship = plan.celery("ship", bank.ship.s("o-1", fails=True), undo=bank.fetch_back.s("o-1"), timeout=30)
        ship.after("charge")
        assert Plan.model_validate(plan.to_dict()) == plan

        report = run(shop, plan)

        assert (report.state, report.exit_code) == ("undone", 1), (tmp_path / "bank.log").read_text()
        assert report.step("charge").data == {"charged": 42}
        assert report.step("ship").status == "failed"
        expected = "RuntimeError: no lorry" if results else "the task failed"
        assert expected in (report.step("ship").error or "")
        assert lines(tmp_path / "ledger") == ["charge 42", "ship o-1", "fetch back o-1", "refund 42"]

        good = Plan("good")
        good.celery("ship", bank.ship.s("o-2"), timeout=30)
        assert run(shop, good).step("ship").data == {"result": "o-2"}
    finally:
        worker.terminate()
        worker.wait(20)
        bank.app.close()


# --- approvals ---------------------------------------------------------------------------------------------


def plan_with_approval(**approval: Any) -> Plan:
    plan = Plan("asking")
    before = plan.step("before", "noop.execute")
    ask = plan.approval("ask", "go on?", **approval).after(before)
    plan.step("after", "noop.execute", data={"by": ask.data.by}).after(ask)
    return plan


def is_waiting(started: Any) -> bool:
    return started.report().step("ask").status == "waiting"


def test_approval_continues_the_run_with_actor_time_and_note(shop: Installation) -> None:
    started = shop.run(plan_with_approval())
    wait_for("the approval to wait", lambda: is_waiting(started))

    approved = shop.longshore("runs", "approve", started.id, "ask", "--note", "looks good", "--actor", "ann")

    assert (approved.code, approved.err) == (0, "")
    report = started.wait(timeout=30)
    assert report.state == "succeeded"
    assert report.step("after").data == {"by": "ann"}
    assert report.step("ask").data["note"] == "looks good"
    (command,) = [event for event in started.events() if event.name == "command"]
    assert (command.fields["kind"], command.fields["actor"], command.fields["reason"], command.step) == (
        "approve", "ann", "looks good", "ask",
    )  # fmt: skip


def test_only_a_waiting_step_can_be_approved_or_rejected_and_only_once(shop: Installation) -> None:
    started = shop.run(plan_with_approval())
    wait_for("the approval to wait", lambda: is_waiting(started))
    assert started.answer(started.approve("after")) == "the step does not wait for an approval"

    assert shop.longshore("runs", "approve", started.id, "ask", "--reject", "--note", "not today").code == 0

    report = started.wait(timeout=30)
    assert (report.state, report.exit_code) == ("undone", 1)
    assert report.step("ask").error == "rejected by tester: not today"
    assert report.step("before").undo is not None
    assert "its state is failed" in started.answer(started.approve("ask"))
    assert shop.longshore("runs", "approve", started.id, "zzz").code == 2


def test_waiting_approvals_occupy_no_worker(shop: Installation) -> None:
    # given more waiting steps than processes of the worker
    runs = [shop.run(plan_with_approval(), run_id=f"wait-{n}") for n in range(12)]
    wait_for("all approvals to wait", lambda: all(is_waiting(each) for each in runs))

    plan = Plan("meanwhile")
    plan.step("a", "noop.execute")
    began = time.monotonic()
    assert run(shop, plan).state == "succeeded"
    assert time.monotonic() - began < 15

    for each in runs:
        each.cancel()
    assert {str(each.wait(timeout=90).state) for each in runs} == {"undone"}
    assert runs[0].report().step("ask").reason == "the run was aborted while the step waited"


# --- child runs --------------------------------------------------------------------------------------------


def child(folder: Path, *, fails: bool = False, sleep: str = "0s") -> Plan:
    plan = Plan("child", params={"name": str})
    plan.step("touch", "own.touch", path=f"{folder}/{E.params.name}")
    plan.step("sleep", "noop.execute", sleep=sleep).after("touch")
    plan.step("end", "noop.execute", fail=fails).after("sleep")
    return plan


def test_child_run_has_an_id_of_its_own(shop: Installation, tmp_path: Path) -> None:
    plan = Plan("parent")
    sub = plan.run_plan("sub", child(tmp_path), {"name": "x"})
    plan.step("after", "noop.execute", data={"path": sub.data.steps.touch.path}).after(sub)
    started = shop.run(plan, run_id="parent-1")

    report = started.wait(timeout=60)

    assert report.state == "succeeded"
    assert report.step("sub").data["run_id"] == "parent-1.sub"
    assert report.step("after").data["path"] == f"{tmp_path}/x"
    assert shop.client().get("parent-1.sub").report().state == "succeeded"


def test_failed_child_fails_its_parent_and_undo_of_the_parent_undoes_the_child(
    shop: Installation, tmp_path: Path
) -> None:
    plan = Plan("parent")
    plan.run_plan("good", child(tmp_path), {"name": "good"})
    plan.run_plan("bad", child(tmp_path, fails=True), {"name": "bad"}).after("good")
    started = shop.run(plan, run_id="parent-2")

    report = started.wait(timeout=60)

    assert (report.state, report.exit_code) == ("undone", 1)
    assert report.step("bad").error == "run parent-2.bad ended undone: step end: fail is set"
    assert {str(shop.client().get(f"parent-2.{name}").report().state) for name in ("good", "bad")} == {"undone"}
    assert list(tmp_path.iterdir()) == []


def test_cancel_of_the_parent_cancels_the_child(shop: Installation, tmp_path: Path) -> None:
    plan = Plan("parent")
    plan.run_plan("sub", child(tmp_path, sleep="60s"), {"name": "x"})
    started = shop.run(plan, run_id="parent-3")
    wait_for("the file to exist", (tmp_path / "x").exists)
    started.cancel("enough")

    report = started.wait(timeout=60)

    assert (report.state, report.step("sub").status) == ("undone", "cancelled")
    assert not (tmp_path / "x").exists()


def test_run_keeps_the_version_of_a_stored_plan(shop: Installation, tmp_path: Path) -> None:
    (tmp_path / "child.yaml").write_text(child(tmp_path).to_yaml())
    (tmp_path / "parent.yaml").write_text(
        "name: parent\nsteps:\n  ask: {op: approval.wait.execute}\n"
        "  sub: {op: plan.run.execute, with: {plan: child.yaml, params: {name: pinned}}, after: ask}\n"
    )
    from longshore.orchestration import load

    started = shop.run(load(str(tmp_path / "parent.yaml")))
    wait_for("the approval to wait", lambda: started.report().step("ask").status == "waiting")
    for name in ("child.yaml", "parent.yaml"):
        (tmp_path / name).write_text("name: other\nsteps: {other: {op: noop.execute}}\n")
    started.approve("ask")

    assert started.wait(timeout=60).state == "succeeded"
    assert (tmp_path / "pinned").exists()


# --- hooks -------------------------------------------------------------------------------------------------


def test_nine_hooks_are_called_in_order_with_their_arguments(shop: Installation) -> None:
    called: list[tuple[str, Any]] = []

    def note(name: str) -> Any:
        def hook(*args: Any) -> None:
            called.append((name, tuple(short(each) for each in args)))

        return hook

    def short(value: Any) -> Any:
        if isinstance(value, StepReport):
            return value.name, str(value.undo.status if value.undo else value.status)
        if isinstance(value, list):
            return [short(item) for item in value]
        return value if isinstance(value, str | int | bool) else type(value).__name__

    plan = Plan("hooks")
    plan.step("a", "noop.execute")
    plan.step("skipped", "noop.execute").when("false")
    plan.step("boom", "noop.execute", fail=True).after("a").retry(1)
    hooks = Hooks(**{name: note(name) for name in (
        "before_plan", "after_plan", "before_level", "after_level", "before_step", "after_step", "on_retry",
        "on_skip", "on_undo",
    )})  # fmt: skip
    started = shop.run(plan)

    events = list(started.watch(hooks=hooks))

    assert called == [
        ("before_plan", ("PlanSummary",)),
        ("before_level", (0, ["a", "skipped"], True)),
        ("on_skip", ("skipped", "when: guard returned false")),
        ("after_step", (("skipped", "skipped"),)),
        ("before_step", ("a",)),
        ("after_step", (called[5][1][0],)),
        ("after_level", (0, called[6][1][1])),
        ("before_level", (1, ["boom"], False)),
        ("before_step", ("boom",)),
        ("on_retry", ("boom", 1, "fail is set")),
        ("after_step", (called[10][1][0],)),
        ("after_level", (1, called[11][1][1])),
        ("on_undo", (("boom", "undone"),)),
        ("on_undo", (("a", "undone"),)),
        ("after_plan", ("Report",)),
    ]
    assert isinstance(events[0], Event)

    later: list[str] = []
    cursor = next(event.id for event in events if event.name == "step_ended")
    for _ in started.watch(cursor, hooks=Hooks(before_step=later.append)):
        pass
    assert later == ["boom"], "hooks were called for events before the cursor"


def test_workers_call_hooks_of_installed_packages(install: MakeInstallation, tmp_path: Path) -> None:
    """Hooks by an entry point: each event at least once, with its id, and in order."""
    package = tmp_path / "site"
    (package / "called-1.0.dist-info").mkdir(parents=True)
    (package / "called-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: called\nVersion: 1.0\n")
    (package / "called-1.0.dist-info" / "entry_points.txt").write_text("[longshore.hooks]\ncalled = called:hooks\n")
    (package / "called.py").write_text(
        "from longshore.orchestration import Hooks\n"
        "def note(text):\n"
        f"    open({str(tmp_path / 'called')!r}, 'a').write(f'{{hooks.event.id}} {{text}}\\n')\n"
        "hooks = Hooks(before_plan=lambda summary: note(f'begin {summary.run_id}'),\n"
        "              after_step=lambda step: note(f'{step.name} {step.status}'),\n"
        "              after_plan=lambda report: note(f'end {report.state}'))\n"
    )
    where = install()
    with where.worker("called", "-c", "1", PYTHONPATH=str(package)):
        plan = Plan("called")
        plan.step("a", "noop.execute")
        plan.step("b", "noop.execute").after("a")
        run(where, plan)
        wait_for("the last event", lambda: any("end succeeded" in line for line in lines(tmp_path / "called")))

    called = list(dict.fromkeys(lines(tmp_path / "called")))
    assert [line.split(" ", 1)[1].split()[0] for line in called] == ["begin", "a", "b", "end"]
    assert called == sorted(called, key=lambda line: tuple(map(int, line.split()[0].split("-"))))


def test_wait_with_a_timeout_has_called_the_hooks_until_then(shop: Installation) -> None:
    called: list[str] = []
    started = shop.run(plan_with_approval())
    with pytest.raises(WaitTimeout):
        started.wait(timeout=2, hooks=Hooks(before_step=called.append))
    started.cancel()
    started.wait(timeout=30)
    assert called == ["before", "ask"]

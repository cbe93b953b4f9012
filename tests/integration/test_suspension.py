"""Suspended runs and their continuation: unavailable services, unknown outcomes, and decisions of a person."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

from longshore.orchestration import Plan, Run
from longshore.orchestration.store.breakers import Breakers
from tests.integration.conftest import MakeInstallation
from tests.integration.processes import PATIENCE, Installation, lines, names, statuses, wait_for

OWN = "tests.integration.own_operations"


@pytest.fixture(scope="module")
def shop(module_installation: MakeInstallation) -> Iterator[Installation]:
    """An installation whose operations need services; the breaker tries an unavailable service after one second."""
    made = module_installation(options={"imports": OWN, "slow_retry": "1s", "retry_spread": "1s", "ask_timeout": "60s"})
    made.worker("own", "--concurrency", "4", PYTHONPATH=made.pythonpath).start()
    import_module(OWN)  # this process validates the plans
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LONGSHORE_IMPORTS", OWN)
        patch.setenv("PYTHONPATH", made.pythonpath)
        yield made


def billing(folder: Path, name: str = "bill") -> Plan:
    plan = Plan(name)
    first = plan.step("first", "noop.execute")
    bill = plan.step("bill", "own.bill", folder=str(folder)).after(first)
    plan.step("last", "noop.execute").after(bill)
    return plan


def wait_for_state(run: Run, state: str) -> None:
    wait_for(f"{run.id} to be {state}", lambda: run.state() == state)


def test_run_is_suspended_while_its_service_is_down(shop: Installation, tmp_path: Path) -> None:
    # given
    (tmp_path / "down").touch()
    run = shop.run(billing(tmp_path))

    # when
    wait_for_state(run, "suspended")
    error = run.report().error
    listed = shop.longshore("breaker", "ls").out

    # then the report and `breaker ls` show the reason
    assert error is not None
    assert "billing is down: connection refused" in error.message
    assert "billing" in listed
    assert "connection refused" in listed

    # when
    (tmp_path / "down").unlink()
    report = run.wait(PATIENCE)

    # then the run continues from the same step, and failed trials count as no attempt
    assert (report.state, report.exit_code) == ("succeeded", 0)
    assert "run_suspended" in [event.name for event in run.events()]
    assert names(run, "step_ended") == ["first", "bill", "last"]
    assert shop.longshore("breaker", "ls").out == ""


def test_open_breaker_lets_no_step_call_the_service(shop: Installation, tmp_path: Path) -> None:
    # given a breaker opened by one run
    (tmp_path / "down").touch()
    first = shop.run(billing(tmp_path))
    wait_for_state(first, "suspended")

    # when other runs need the service, too
    others = [shop.run(billing(tmp_path, f"other-{n}")) for n in range(8)]
    began = time.monotonic()
    time.sleep(3.0)

    # then about one trial a second reaches the service
    calls = len(lines(tmp_path / "calls"))
    elapsed = time.monotonic() - began
    assert calls <= 2 + elapsed, f"{calls} calls in {elapsed:.1f} s"
    assert all(run.state() in {"suspended", "pending", "running"} for run in others)
    (tmp_path / "down").unlink()
    for run in [first, *others]:
        assert run.wait(PATIENCE).exit_code == 0


def test_undo_waits_for_its_service(shop: Installation, tmp_path: Path) -> None:
    # given
    plan = Plan("back")
    first = plan.step("first", "noop.execute").undo("own.unbill", folder=str(tmp_path))
    plan.step("last", "noop.execute", fail=True).after(first)
    (tmp_path / "down").touch()
    run = shop.run(plan)

    # when
    wait_for_state(run, "suspended")
    (tmp_path / "down").unlink()
    report = run.wait(PATIENCE)

    # then
    assert (report.state, report.exit_code) == ("undone", 1)
    assert (tmp_path / "unbilled").exists()


def test_service_named_by_an_error_opens_its_breaker(shop: Installation, tmp_path: Path) -> None:
    plan = Plan("page")
    plan.step("page", "own.undeclared", folder=str(tmp_path))
    (tmp_path / "down").touch()
    run = shop.run(plan)

    wait_for_state(run, "suspended")
    assert [breaker.service for breaker in Breakers(shop.client().store).open()] == ["paging"]
    (tmp_path / "down").unlink()
    result = shop.longshore("breaker", "reset", "paging")

    assert result.code == 0, result.err
    assert run.wait(PATIENCE).exit_code == 0
    assert shop.longshore("breaker", "reset", "paging").code == 2


def test_suspended_run_can_be_cancelled(shop: Installation, tmp_path: Path) -> None:
    (tmp_path / "down").touch()
    run = shop.run(billing(tmp_path))
    wait_for_state(run, "suspended")

    result = shop.longshore("runs", "cancel", run.id)

    assert result.code == 0, result.err
    report = run.report()
    assert (report.state, report.cause) == ("undone", "cancel")
    assert (report.step("bill").status, report.left_over) == ("cancelled", [])
    (tmp_path / "down").unlink()
    Breakers(shop.client().store).close("billing")


def test_timeout_of_a_suspended_run_continues(shop: Installation, tmp_path: Path) -> None:
    (tmp_path / "down").touch()
    plan = billing(tmp_path)
    plan.timeout = 3.0
    report = shop.run(plan).wait(PATIENCE)

    assert (report.state, report.cause) == ("undone", "deadline")
    (tmp_path / "down").unlink()
    Breakers(shop.client().store).close("billing")


def test_delayed_outcome_is_queried_again_with_the_same_key(shop: Installation, tmp_path: Path) -> None:
    # given
    plan = Plan("order")
    plan.step("order", "own.slow_order", folder=str(tmp_path)).retry(0)
    run = shop.run(plan)
    wait_for("two queries", lambda: len(lines(tmp_path / "asked")) >= 2)

    # when
    (tmp_path / "known").touch()
    report = run.wait(PATIENCE)

    # then all queries have one key, and count as no attempt
    assert (report.exit_code, report.step("order").data) == (0, {"order": 7})
    assert len(set(lines(tmp_path / "asked"))) == 1


def test_delayed_outcome_is_unknown_after_the_timeout(shop: Installation, tmp_path: Path) -> None:
    plan = Plan("order")
    plan.step("order", "own.slow_order", folder=str(tmp_path)).timeout(2)

    report = shop.run(plan).wait(PATIENCE)

    assert report.step("order").status == "unknown"
    assert (report.left_over, report.exit_code) == (["order"], 3)


def risky(folder: Path) -> Plan:
    folder.mkdir()
    plan = Plan("risky", on_unknown="ask")
    first = plan.step("first", "file.deploy.execute", path=f"{folder}/conf", content="new")
    act = plan.step("act", "command.shell.execute", command=f"echo x >> {folder}/tries; sleep 60").after(first)
    plan.step("last", "noop.execute").after(act)
    return plan


def test_person_or_cancel_decides_an_unknown_step(shop: Installation, tmp_path: Path) -> None:
    # given suspended runs whose worker was killed during a step
    words = ("done", "undone", "cancel")  # tests of the sandbox cover the other words
    runs = {word: shop.run(risky(tmp_path / word)) for word in words}
    wait_for("the commands to run", lambda: all(lines(tmp_path / word / "tries") for word in words))
    shop.workers[0].kill()
    shop.workers[0].start()
    for run in runs.values():
        wait_for_state(run, "suspended")
    refused = shop.longshore("runs", "resume", runs["done"].id)
    assert (refused.code, "longshore runs resolve" in refused.err) == (1, True)

    # when
    for word in ("done", "undone"):
        result = shop.longshore("runs", "resolve", runs[word].id, "act", f"--{word}", "--note", "looked")
        assert result.code == 0, result.err
    runs["cancel"].cancel()

    # then
    reports = {word: run.wait(PATIENCE) for word, run in runs.items()}
    found = {word: (str(r.state), r.exit_code, str(r.step("act").status), r.left_over) for word, r in reports.items()}
    assert found["done"][:3] == ("succeeded", 0, "changed")
    assert found["undone"] == ("undone", 1, "failed", [])
    assert found["cancel"] == ("undone", 3, "unknown", ["act"])
    for word in words:
        assert lines(tmp_path / word / "tries") == ["x"]
        assert (tmp_path / word / "conf").exists() == (word == "done")
    assert shop.longshore("runs", "resolve", runs["done"].id, "act", "--done").code == 1


def flaky(folder: Path, **more: object) -> Plan:
    plan = Plan("flaky", **more)  # type: ignore[arg-type]
    first = plan.step("first", "command.shell.execute", command=f"echo first >> {folder}/log")
    middle = plan.step("middle", "command.shell.execute", command=f"test -e {folder}/ok && echo middle >> {folder}/log")
    middle.after(first)
    last = plan.step("last", "command.shell.execute", command=f"echo last >> {folder}/log").after(middle)
    plan.step("up", "command.shell.execute", command=f"echo up >> {folder}/log").after(last).always()
    return plan


def test_resume_continues_a_kept_run_at_the_failed_step(shop: Installation, tmp_path: Path) -> None:
    # given
    run = shop.run(flaky(tmp_path, on_failure="keep"))
    assert run.wait(PATIENCE).state == "failed"

    # when the step fails again, and then succeeds
    assert shop.longshore("runs", "resume", run.id).code == 3
    (tmp_path / "ok").touch()
    would = shop.longshore("--dry-run", "runs", "resume", run.id).out
    result = shop.longshore("runs", "resume", run.id)

    # then
    assert "middle, last, up" in would
    assert result.code == 0, result.err
    assert result.out.splitlines()[0] == "resumed", "the output repeats the earlier failure"
    assert lines(tmp_path / "log") == ["first", "up", "up", "middle", "last", "up"]
    report = run.report()
    assert (report.state, report.error, report.cause) == ("succeeded", None, None)
    assert (report.step("first").attempts, report.step("middle").attempts) == (1, 3)
    assert shop.longshore("runs", "resume", run.id).code == 1


def test_resume_skips_a_step_resolved_as_done(shop: Installation, tmp_path: Path) -> None:
    run = shop.run(flaky(tmp_path, on_failure="keep"))
    run.wait(PATIENCE)

    assert shop.longshore("runs", "resolve", run.id, "middle", "--done", "--note", "by hand").code == 0
    assert shop.longshore("runs", "resume", run.id).code == 0
    assert lines(tmp_path / "log") == ["first", "up", "last", "up"]
    assert run.report().step("middle").reason == "done by tester: by hand"


def test_resume_repeats_only_the_failed_items(shop: Installation, tmp_path: Path) -> None:
    # given
    plan = Plan("many", on_error="continue")
    plan.step(
        "each",
        "command.shell.execute",
        command=f"test {{{{ item }}}} != b -o -e {tmp_path}/ok && echo {{{{ item }}}} >> {tmp_path}/log",
    ).foreach(["a", "b", "c"])
    other = plan.step("other", "noop.execute")
    plan.step("last", "noop.execute").after("each", other)
    run = shop.run(plan)
    assert run.wait(PATIENCE).state == "partial"
    (tmp_path / "ok").touch()

    # when
    result = shop.longshore("runs", "resume", run.id)

    # then
    assert result.code == 0, result.err
    assert sorted(lines(tmp_path / "log")) == ["a", "b", "c"]
    assert statuses(run.report()) == {"each": "changed", "other": "changed", "last": "changed"}


def test_resume_repeats_a_failed_undo_unless_abandoned(shop: Installation, tmp_path: Path) -> None:
    # given
    def run_it(name: str) -> Run:
        plan = Plan(name)
        first = plan.step("first", "noop.execute").undo("command.shell.execute", command=f"test -e {tmp_path}/ok")
        plan.step("last", "noop.execute", fail=True).after(first)
        run = shop.run(plan)
        assert run.wait(PATIENCE).state == "undo_failed"
        return run

    again, by_hand, given_up = run_it("again"), run_it("by-hand"), run_it("given-up")
    (tmp_path / "ok").touch()

    # when
    shop.longshore("runs", "resume", again.id)
    shop.longshore("runs", "resolve", by_hand.id, "first", "--undone")
    shop.longshore("runs", "resolve", given_up.id, "first", "--abandon", "--note", "it may stay")

    # then
    assert [again.wait(PATIENCE).state, again.report().exit_code] == ["undone", 1]
    assert [by_hand.wait(PATIENCE).state, by_hand.report().exit_code] == ["undone", 1]
    left = given_up.wait(PATIENCE)
    assert (left.state, left.left_over, left.exit_code) == ("undone", ["first"], 3)


def test_worker_killed_during_a_trial_does_not_block_the_breaker(shop: Installation, tmp_path: Path) -> None:
    (tmp_path / "down").touch()
    run = shop.run(billing(tmp_path))
    wait_for_state(run, "suspended")
    shop.workers[0].signal_group(signal.SIGKILL)
    (tmp_path / "down").unlink()
    shop.workers[0].kill()
    shop.workers[0].start()

    assert run.wait(PATIENCE).exit_code == 0

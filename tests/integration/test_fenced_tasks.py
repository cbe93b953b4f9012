"""Celery tasks of an application as steps, on its own workers, with and without `install`."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from longshore.orchestration import Plan, Report, Run
from tests.fork_server import Process
from tests.integration.conftest import MakeInstallation
from tests.integration.processes import Installation, fork_server, wait_for

COMMAND = [
    "celery", "-A", "tests.integration.till", "worker", "-c", "2", "--loglevel", "INFO", "--without-gossip",
    "--without-mingle",
]  # fmt: skip
FENCED = pytest.mark.parametrize("fenced", [True, False], ids=["fenced", "unfenced"])
Start = Callable[[], Process]


class Till:
    """The application: its tasks, its workers and its ledger."""

    def __init__(self, shop: Installation, folder: Path, fenced: bool) -> None:
        self.shop = shop
        self.folder = folder
        self.environment = {
            "TILL_BROKER": shop.redis_url, "TILL_PREFIX": shop.settings.broker_prefix(),
            "TILL_LEDGER": str(folder / "ledger"), "TILL_FENCED": "yes" if fenced else "",
            "LONGSHORE_LEASE": "1s", "LONGSHORE_REDIS_URL": "", "LONGSHORE_NAMESPACE": "",
            "PYTHONPATH": shop.pythonpath,
        }  # fmt: skip
        self.tasks: ModuleType
        self._workers: list[Process] = []

    def worker(self, *arguments: str) -> Process:
        """Start a worker of the application, which finds the Redis of Longshore through its own broker."""
        log = self.folder / f"till-{len(self._workers)}.log"
        process = fork_server().start(
            [*COMMAND, *arguments], env=self.shop.environment | self.environment, cwd=self.folder, log=log,
            new_session=True,
        )  # fmt: skip
        self._workers.append(process)
        wait_for("the worker of the application", lambda: b" ready." in log.read_bytes(), 30.0)
        return process

    def kill(self, process: Process) -> None:
        """Kill each process of a worker."""
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(15.0)

    def replace_worker_with_received_messages(self, process: Process) -> None:
        """Kill a worker that has received every message of the queue, and start another one."""
        wait_for("the worker to receive the last message", lambda: self.shop.queue("celery") == [])
        self.kill(process)
        self.worker("-c", "1")

    def close(self) -> None:
        for process in self._workers:
            self.kill(process)
        self.tasks.app.close()

    @property
    def ledger(self) -> list[str]:
        path = self.folder / "ledger"
        return path.read_text().splitlines() if path.exists() else []

    def waits_for(self, line: str) -> None:
        wait_for(line, lambda: line in self.ledger, 20.0)

    def logs(self) -> str:
        return "\n".join(path.read_text(errors="replace") for path in self.folder.glob("till-*.log"))


@pytest.fixture(scope="module")
def shop(module_installation: MakeInstallation) -> Installation:
    made = module_installation(options={"lease": "1s"})
    made.worker("shop", "-c", "2").start()
    return made


@pytest.fixture
def till(shop: Installation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[bool], Till]]:
    made: list[Till] = []

    def make(fenced: bool) -> Till:
        one = Till(shop, tmp_path, fenced)
        for name, value in one.environment.items():
            monkeypatch.setenv(name, value)
        sys.modules.pop("tests.integration.till", None)
        one.tasks = importlib.import_module("tests.integration.till")
        made.append(one)
        return one

    yield make
    for one in made:
        one.close()


def till_with_redelivery_after_an_hour(till: Callable[[bool], Till], monkeypatch: pytest.MonkeyPatch) -> Till:
    """An application whose broker redelivers the messages of a killed worker after one hour."""
    monkeypatch.setenv("TILL_PATIENT", "yes")
    one = till(True)
    one.environment["TILL_PATIENT"] = "yes"
    return one


def undo_state(run: Run, step: str) -> str | None:
    """The state of the compensation of a step."""
    undo = run.report().step(step).undo
    return str(undo.status) if undo else None


def charging(till: Till, timeout: float, seconds: float = 0.0, **more: bool) -> Plan:
    plan = Plan("order")
    plan.celery("charge", till.tasks.charge.s(42, seconds), undo=till.tasks.refund.s(42), timeout=timeout, **more)
    return plan


def ended(run: Run) -> Report:
    return run.wait(timeout=30)


def assert_ledger_unchanged(till: Till) -> None:
    """Check that the ledger is unchanged for longer than the visibility timeout of the application's broker."""
    before = till.ledger
    time.sleep(4.0)
    assert till.ledger == before, till.logs()


@FENCED
def test_task_not_received_in_time_is_never_executed(till: Callable[[bool], Till], fenced: bool) -> None:
    bank = till(fenced)
    bank.worker()  # executes the refund
    plan = Plan("order")
    charge = bank.tasks.charge.s(42).set(queue="elsewhere")
    plan.celery("charge", charge, undo=bank.tasks.refund.s(42), timeout=1.0)

    report = ended(bank.shop.run(plan))
    bank.worker("-Q", "elsewhere")

    assert_ledger_unchanged(bank)
    if fenced:
        assert (report.state, report.step("charge").status) == ("failed", "failed")
        assert (report.exit_code, report.left_over, report.in_doubt) == (1, [], [])
        assert "no worker of the application began the task within 1s" in (report.step("charge").error or "")
        assert bank.ledger == []
    else:
        assert (report.state, report.step("charge").status) == ("undone", "unknown")
        assert (report.exit_code, report.in_doubt) == (3, ["charge"])
        assert bank.ledger == ["refund 42"]


@FENCED
def test_task_of_a_killed_worker_is_not_executed_after_its_refund(till: Callable[[bool], Till], fenced: bool) -> None:
    bank = till(fenced)
    first = bank.worker()
    run = bank.shop.run(charging(bank, 5.0, seconds=60.0))
    bank.waits_for("charge begins")
    killed = time.monotonic()
    bank.kill(first)

    bank.worker()  # receives the message again, after the visibility timeout
    report = ended(run)

    if fenced:
        assert time.monotonic() - killed < 5.0
    assert_ledger_unchanged(bank)
    assert (report.state, report.step("charge").status) == ("undone", "unknown")
    assert bank.ledger.index("refund 42") == len(bank.ledger) - 1
    assert (report.exit_code, report.in_doubt) == ((1, []) if fenced else (3, ["charge"]))
    expected = "its worker was lost" if fenced else "the task did not report its end"
    assert expected in (report.step("charge").error or "")


def test_own_retry_due_after_the_time_limit_is_not_executed(till: Callable[[bool], Till]) -> None:
    bank = till(True)
    bank.worker()
    plan = Plan("order")
    plan.celery("charge", bank.tasks.charge_later.s(42, 4), undo=bank.tasks.refund.s(42), timeout=2.0)

    report = ended(bank.shop.run(plan))

    assert_ledger_unchanged(bank)
    assert (report.state, report.step("charge").status) == ("undone", "unknown")
    assert bank.ledger == ["no charge yet", "refund 42"]
    assert (report.exit_code, report.in_doubt) == (1, [])


def test_lost_worker_of_an_idempotent_task_is_replaced(till: Callable[[bool], Till]) -> None:
    bank = till(True)
    first = bank.worker()
    run = bank.shop.run(charging(bank, 30.0, seconds=3.0, idempotent=True))
    bank.waits_for("charge begins")
    bank.kill(first)
    bank.worker()

    report = ended(run)

    assert (report.state, report.step("charge").status, report.step("charge").attempts) == ("succeeded", "changed", 2)
    assert bank.ledger == ["charge begins", "charge begins", "charge 42"]


def test_message_received_by_a_killed_worker_is_resent(
    till: Callable[[bool], Till], monkeypatch: pytest.MonkeyPatch
) -> None:
    bank = till_with_redelivery_after_an_hour(till, monkeypatch)
    first = bank.worker("-c", "1")
    plan = Plan("order")
    for name in ("one", "two"):
        plan.celery(name, bank.tasks.charge.s(name, 4.0), undo=bank.tasks.refund.s(name), timeout=60, idempotent=True)
    run = bank.shop.run(plan)
    bank.waits_for("charge begins")
    wait_for("both steps to wait", lambda: [run.report().step(n).status for n in ("one", "two")] == ["waiting"] * 2)
    bank.replace_worker_with_received_messages(first)

    report = run.wait(timeout=60)

    assert (report.state, report.summary) == ("succeeded", "2 steps, 2 changed"), bank.logs()
    assert sorted(bank.ledger) == [*["charge begins"] * 3, "charge one", "charge two"]
    assert any(event.name == "message_resent" for event in run.events())


def test_compensation_message_received_by_a_killed_worker_is_resent(
    till: Callable[[bool], Till], monkeypatch: pytest.MonkeyPatch
) -> None:
    bank = till_with_redelivery_after_an_hour(till, monkeypatch)
    first = bank.worker("-c", "1")
    plan = Plan("order")
    for name in ("one", "two"):
        plan.celery(name, bank.tasks.charge.s(name), undo=bank.tasks.refund.s(name, 4.0), timeout=60)
    plan.step("ship", "noop.execute", fail="no carrier").after("one", "two")
    run = bank.shop.run(plan)
    bank.waits_for("refund begins")
    wait_for(
        "both compensations to wait", lambda: [undo_state(run, name) for name in ("one", "two")] == ["waiting"] * 2
    )
    bank.replace_worker_with_received_messages(first)

    report = run.wait(timeout=60)

    assert (report.state, report.left_over) == ("undone", []), bank.logs()
    assert {"refund one", "refund two"} <= set(bank.ledger)


def test_resume_repeats_a_failed_compensation(till: Callable[[bool], Till]) -> None:
    bank = till(True)
    bank.worker()  # receives the revocation of the first undo
    plan = Plan("order")
    refund = bank.tasks.refund.s(42).set(queue="elsewhere")
    plan.celery("charge", bank.tasks.charge.s(42), undo=refund, timeout=2.0)
    plan.step("ship", "noop.execute", fail="no carrier").after("charge")
    run = bank.shop.run(plan)
    report = ended(run)
    assert (report.state, undo_state(run, "charge")) == ("undo_failed", "undo_failed")

    bank.tasks.app.control.add_consumer("elsewhere", reply=True)
    bank.waits_for("charge 42")
    assert "refund 42" not in bank.ledger
    assert run.answer(run.resume(), timeout=30) == "done"

    assert ended(run).state == "undone", bank.logs()
    assert bank.ledger[-1] == "refund 42"


def test_task_that_no_worker_began_is_retried_by_the_retry_policy(till: Callable[[bool], Till]) -> None:
    bank = till(True)
    plan = Plan("order")
    charge = bank.tasks.charge.s(42).set(queue="elsewhere")
    plan.celery("charge", charge, undo=bank.tasks.refund.s(42), timeout=3.0).retry(20, initial=0.1, maximum=0.2)
    run = bank.shop.run(plan)
    wait_for("the second attempt", lambda: run.report().step("charge").attempts > 1)

    bank.worker("-Q", "elsewhere")
    report = run.wait(timeout=60)

    assert (report.state, report.step("charge").status) == ("succeeded", "changed"), bank.logs()
    assert bank.ledger == ["charge begins", "charge 42"]


def test_lost_process_of_a_task_is_detected_within_the_lease(till: Callable[[bool], Till]) -> None:
    bank = till(True)
    bank.worker()
    run = bank.shop.run(charging(bank, 30.0, seconds=3.0, idempotent=True))
    bank.waits_for("charge begins")
    os.kill(int((bank.folder / "pid").read_text()), signal.SIGKILL)
    killed = time.monotonic()

    wait_for("another attempt", lambda: bank.ledger == ["charge begins", "charge begins"], 10.0)
    assert time.monotonic() - killed < 3.0
    assert (ended(run).state, bank.ledger) == ("succeeded", ["charge begins", "charge begins", "charge 42"])


def test_lost_compensation_runs_again(till: Callable[[bool], Till]) -> None:
    bank = till(True)
    first = bank.worker()
    plan = Plan("order")
    charge = plan.celery("charge", bank.tasks.charge.s(42), undo=bank.tasks.refund.s(42, 2.0), timeout=30.0)
    plan.step("ship", "noop.execute", fail=True).after(charge)
    run = bank.shop.run(plan)
    bank.waits_for("refund begins")
    bank.kill(first)
    bank.worker()

    report = ended(run)

    assert (report.state, report.exit_code) == ("undone", 1)
    assert bank.ledger == ["charge begins", "charge 42", "refund begins", "refund begins", "refund 42"]


def test_cancelled_task_that_no_worker_has_begun_leaves_nothing(till: Callable[[bool], Till]) -> None:
    bank = till(True)
    run = bank.shop.run(charging(bank, 60.0))
    wait_for("the task", lambda: run.report().step("charge").status == "waiting")
    assert run.waits_for() == ["no worker of the application has begun task till.charge"]
    run.cancel()

    report = ended(run)
    bank.worker()

    assert_ledger_unchanged(bank)
    assert (report.step("charge").status, report.exit_code, report.in_doubt) == ("cancelled", 1, [])
    assert report.summary.startswith("nothing was changed")
    assert bank.ledger == []


@FENCED
def test_cancel_does_not_wait_for_the_own_retries_of_a_task(till: Callable[[bool], Till], fenced: bool) -> None:
    bank = till(fenced)
    bank.worker()
    plan = Plan("order")
    plan.celery("charge", bank.tasks.charge_later.s(42, 3), undo=bank.tasks.refund.s(42), timeout=60.0)
    run = bank.shop.run(plan)
    bank.waits_for("no charge yet")
    cancelled = time.monotonic()
    run.cancel()

    report = ended(run)

    assert time.monotonic() - cancelled < 2.5
    assert_ledger_unchanged(bank)
    assert (report.state, report.step("charge").status) == ("undone", "cancelled")
    assert bank.ledger == ["no charge yet", "refund 42"]
    assert (report.exit_code, report.in_doubt) == ((1, []) if fenced else (3, ["charge"]))


def test_running_task_learns_that_its_run_is_cancelled(till: Callable[[bool], Till]) -> None:
    bank = till(True)
    bank.worker()
    plan = Plan("order")
    plan.celery("work", bank.tasks.patient.s(60.0), timeout=60.0)
    run = bank.shop.run(plan)
    bank.waits_for("patient begins")
    run.cancel()

    report = ended(run)

    assert bank.ledger == ["patient begins", "patient stops"]
    assert report.step("work").status == "changed"


def test_task_that_exceeds_its_time_limit_is_interrupted_before_its_compensation(till: Callable[[bool], Till]) -> None:
    bank = till(True)
    bank.worker()

    report = ended(bank.shop.run(charging(bank, 1.5, seconds=5.0)))

    assert_ledger_unchanged(bank)
    assert report.state == "undone"
    assert bank.ledger == ["charge begins", "refund 42"]
    assert "SoftTimeLimitExceeded" in (report.step("charge").error or "")


def test_output_context_and_reason_of_a_task_reach_the_record(till: Callable[[bool], Till]) -> None:
    bank = till(True)
    bank.worker()
    good, bad = Plan("good"), Plan("bad")
    good.celery("talk", bank.tasks.talk.s(), timeout=30.0)
    bad.celery("talk", bank.tasks.talk.s("no card"), timeout=30.0).retry(1, initial=0.1)
    bad_for_good = Plan("bad-for-good")
    bad_for_good.celery("talk", bank.tasks.talk.s("permanent"), timeout=30.0).retry(5)

    run = bank.shop.run(good)
    report = ended(run)
    failed = bank.shop.run(bad)
    failure = ended(failed).step("talk")
    permanent = ended(bank.shop.run(bad_for_good)).step("talk")

    assert report.step("talk").data == {"key": f"{run.id}.talk", "attempt": 1, "plan": "good"}, bank.logs()
    assert list(run.output("talk")) == [
        ("stdout", "a printed line"), ("", "WARNING till: a logged line"), ("", "a line of the context"),
    ]  # fmt: skip
    assert (failure.status, failure.error, failure.attempts) == ("failed", "ValueError: no card", 2)
    assert ("stderr", "ValueError: no card") in list(failed.output("talk"))
    assert (permanent.status, permanent.error, permanent.attempts) == ("failed", "the card is stolen", 1)


def test_task_without_a_step_runs_as_before(till: Callable[[bool], Till]) -> None:
    bank = till(True)
    bank.worker()
    bank.tasks.charge.delay(7)
    bank.waits_for("charge 7")

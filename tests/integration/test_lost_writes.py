"""Redis loses acknowledged writes, the workers die, and the run ends: the report names every remaining effect.

A test restores the record from before the creation of the run or the claim of the step, like a truncated file.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from longshore.orchestration import Plan, Run
from tests.conftest import get
from tests.integration.conftest import MakeInstallation
from tests.integration.processes import PATIENCE, Installation, wait_for
from tests.servers import RedisServer

Record = dict[str, bytes]


def record(place: Installation, run: Run) -> Record:
    keys = place.client().store.keys.of(run.id)
    found = {key: place.redis.dump(key) for key in keys.record()}
    return {key: value for key, value in found.items() if value is not None}  # type: ignore[misc]


def restore_record(place: Installation, run: Run, before: Record) -> None:
    """Restore an earlier record, and delete the messages of the run."""
    for key in place.client().store.keys.of(run.id).record():
        place.redis.delete(key)
    for key, value in before.items():
        place.redis.restore(key, 0, value)
    for queue in ("control", "file", "file.undo"):
        place.redis.delete(place.queue_key(queue))


def run_with_lost_writes(place: Installation, tmp_path: Path, moment: str) -> tuple[Run, Path]:
    """A run whose step has replaced a file; the record is lost from `moment` on, and all workers are dead."""
    control = place.worker("control", "--concurrency", "1", "-Q", "control", LONGSHORE_HOST="web2")
    hand = place.worker("hand", "--concurrency", "1", "-Q", "file,file.undo", LONGSHORE_HOST="web1")
    control.start()
    target = tmp_path / "file"
    target.write_text("before")
    plan = Plan("forgetful", params={"text": str})
    deploy = plan.step("deploy", "file.deploy.execute", path=str(target), content="{{ params.text }}")
    plan.step("gate", "approval.wait.execute").after(deploy)
    run = place.run(plan, text="after")
    wait_for("the step to be dispatched", lambda: place.queue("file"))
    moments: dict[str, Record] = {"create": {}, "claim": record(place, run)}
    hand.start()
    wait_for("the approval to wait", lambda: run.report().step("gate").status == "waiting")
    assert target.read_text() == "after"
    for worker in place.workers:
        worker.kill()
    restore_record(place, run, moments[moment])
    return run, target


@pytest.fixture
def redis_server() -> Iterator[RedisServer]:
    """A new server: a coordinator compares receipts only if Redis may have lost writes."""
    with get(RedisServer) as server:
        yield server


@pytest.fixture
def place(install: MakeInstallation) -> Installation:
    # A worker starts within this time.
    return install(options={"lease": "8s"})


@pytest.mark.parametrize("moment", ["create", "claim"])
def test_step_with_a_lost_claim_is_found_by_its_receipt_and_undone(
    place: Installation, tmp_path: Path, moment: str
) -> None:
    # given
    run, target = run_with_lost_writes(place, tmp_path, moment)

    # when the run is cancelled before a worker claims the step again
    if moment == "create":
        place.at(f"control@{place.namespace}").start()
        wait_for("the run to begin again", lambda: run.state() == "running")
    run.cancel()
    for worker in place.workers:
        worker.keep_alive()
    report = run.wait(PATIENCE)

    # then
    assert target.read_text() == "before"
    deploy = report.step("deploy")
    assert (report.state, report.exit_code, report.left_over, report.in_doubt) == ("undone", 1, [], [])
    assert (deploy.status, deploy.undo and deploy.undo.status) == ("changed", "undone")


def test_report_names_a_host_that_does_not_answer(place: Installation, tmp_path: Path) -> None:
    # given
    place.options["lease"] = "1s"
    run, target = run_with_lost_writes(place, tmp_path, "claim")

    # when
    run.cancel()
    place.at(f"control@{place.namespace}").start()
    report = run.wait(PATIENCE)

    # then
    assert target.read_text() == "after"
    # The record has no claim, and the host is in doubt.
    assert (report.state, report.exit_code) == ("failed", 3)
    assert "nothing was changed" not in report.summary
    assert [doubt.partition(":")[0] for doubt in report.in_doubt] == ["host web1 did not answer"]


def test_undo_detects_that_its_record_is_older_than_its_receipt(install: MakeInstallation, tmp_path: Path) -> None:
    """Receipts are compared before the undo. The undo itself detects later losses."""
    # given a run whose undo waits for a worker
    place = install()
    for name, queues in (("control", "control"), ("hand", "file"), ("back", "file.undo")):
        place.worker(name, "--concurrency", "1", "-Q", queues, LONGSHORE_HOST="web1")
    control, hand, back = place.workers
    control.start()
    hand.start()
    plan = Plan("forgetful")
    target = tmp_path / "file"
    deploy = plan.step("deploy", "file.deploy.execute", path=str(target), content="x").undo(
        "file.deploy.execute", path=str(target), content="undone"
    )
    plan.step("gate", "approval.wait.execute").after(deploy)
    run = place.run(plan)
    wait_for("the approval to wait", lambda: run.report().step("gate").status == "waiting")
    run.cancel()
    wait_for("the undo to be dispatched", lambda: run.state() == "undoing")
    # when the host has seen a higher version of the run than that in Redis
    from longshore.tasks.attempts.receipts import Ledger

    ledger = Ledger(place.settings.state_dir, place.namespace)
    store = place.client().store
    ledger.seen(run.id, store.fields(run.id)["instance_id"], store.version(run.id) + 1000)
    back.start()

    # then the run is suspended before a compensation runs
    wait_for("the suspension", lambda: run.state() == "suspended")
    assert target.read_text() == "x"
    assert place.longshore("runs", "resume", run.id, "--detach").code == 0
    assert run.wait(PATIENCE).state == "undone"
    assert target.read_text() == "undone"

"""Redis has lost what it acknowledged, the workers have died with it, and the run is ended: nothing stands unseen.

The record is put back to what it was before a moment of the step's life, as a truncated append-only file does.
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


def put_back(place: Installation, run: Run, before: Record) -> None:
    """And with it, no message of the run is under way."""
    for key in place.client().store.keys.of(run.id).record():
        place.redis.delete(key)
    for key, value in before.items():
        place.redis.restore(key, 0, value)
    for queue in ("control", "file", "file.undo"):
        place.redis.delete(place.queue_key(queue))


def at_work_and_dead(place: Installation, tmp_path: Path, moment: str) -> tuple[Run, Path]:
    """A run whose step has replaced a file, when its record is lost from that moment on, and nobody lives."""
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
    wait_for("the gate", lambda: run.report().step("gate").status == "waiting")
    assert target.read_text() == "after"
    for worker in place.workers:
        worker.kill()
    put_back(place, run, moments[moment])
    return run, target


@pytest.fixture
def redis_server() -> Iterator[RedisServer]:
    """A server that was just started: a coordinator compares receipts only where Redis may have lost writes."""
    with get(RedisServer) as server:
        yield server


@pytest.fixture
def place(install: MakeInstallation) -> Installation:
    # Long enough for a worker to start in.
    return install(options={"lease": "8s"})


@pytest.mark.parametrize("moment", ["create", "claim"])
def test_a_step_whose_claim_was_lost_is_found_and_undone(place: Installation, tmp_path: Path, moment: str) -> None:
    # given
    run, target = at_work_and_dead(place, tmp_path, moment)

    # when the run is ended before anybody has begun the step again
    if moment == "create":
        place.at(f"control@{place.namespace}").start()
        wait_for("it to be begun again", lambda: run.state() == "running")
    run.cancel()
    for worker in place.workers:
        worker.keep_alive()
    report = run.wait(PATIENCE)

    # then
    assert target.read_text() == "before"
    deploy = report.step("deploy")
    assert (report.state, report.exit_code, report.left_over, report.in_doubt) == ("undone", 1, [], [])
    assert (deploy.status, deploy.undo and deploy.undo.status) == ("changed", "undone")


def test_a_host_that_does_not_come_back_is_named(place: Installation, tmp_path: Path) -> None:
    # given
    place.options["lease"] = "1s"
    run, target = at_work_and_dead(place, tmp_path, "claim")

    # when
    run.cancel()
    place.at(f"control@{place.namespace}").start()
    report = run.wait(PATIENCE)

    # then
    assert target.read_text() == "after"
    # The record knows of no claim, and the doubt remains.
    assert (report.state, report.exit_code) == ("failed", 3)
    assert "nothing was changed" not in report.summary
    assert [doubt.partition(":")[0] for doubt in report.in_doubt] == ["host web1 did not answer"]


def test_an_undo_notices_that_its_record_is_older_than_its_host_knows(
    install: MakeInstallation, tmp_path: Path
) -> None:
    """The receipts are compared before the undo; what is lost after that, the undo itself notices."""
    # given a run whose undo waits for its worker
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
    wait_for("the gate", lambda: run.report().step("gate").status == "waiting")
    run.cancel()
    wait_for("the undo to be dispatched", lambda: run.state() == "undoing")
    # when the host has seen more of the run than Redis has
    from longshore.tasks.attempts.receipts import Ledger

    ledger = Ledger(place.settings.state_dir, place.namespace)
    store = place.client().store
    ledger.seen(run.id, store.fields(run.id)["instance_id"], store.version(run.id) + 1000)
    back.start()

    # then it is held before anything is undone
    wait_for("it to be suspended", lambda: run.state() == "suspended")
    assert target.read_text() == "x"
    assert place.longshore("runs", "resume", run.id, "--detach").code == 0
    assert run.wait(PATIENCE).state == "undone"
    assert target.read_text() == "undone"

"""Limits of live runs, concurrency keys, the run queue, and the deletion of ended runs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

from longshore.orchestration import Plan, Run
from longshore.orchestration.errors import QueueFull, ServiceDown
from longshore.orchestration.store.admission import Admission
from tests.integration.conftest import MakeInstallation
from tests.integration.processes import PATIENCE, Installation, lines, wait_for

OWN = "tests.integration.own_operations"


def sleeper(name: str, folder: Path, seconds: float = 0.5) -> Plan:
    """A plan whose step logs its begin and its end."""
    plan = Plan(name)
    text = f"echo begin {name} >> {folder}/log; sleep {seconds}; echo end {name} >> {folder}/log"
    plan.step("work", "command.shell.execute", command=text)
    return plan


def most_at_once(log: list[str]) -> int:
    live = most = 0
    for line in log:
        live += 1 if line.startswith("begin") else -1
        most = max(most, live)
    return most


@pytest.fixture(scope="module")
def five(module_installation: MakeInstallation) -> Iterator[Installation]:
    """An installation that admits five runs."""
    made = module_installation(options={"max_runs": "5"})
    made.worker("five", "--concurrency", "8").start()
    return made


def test_max_runs_limits_live_runs_and_others_begin_in_order(five: Installation, tmp_path: Path) -> None:
    # when
    runs = [five.run(sleeper(f"r{n:02}", tmp_path, 0.2)) for n in range(20)]
    seen = []
    while not all(run.report().ended for run in runs):
        seen.append(len(Admission(five.client().store).admitted()))
        time.sleep(0.1)

    # then
    log = list(lines(tmp_path / "log"))
    assert max(seen) <= 5
    assert most_at_once(log) <= 5
    begun = [line.split()[1] for line in log if line.startswith("begin")]
    assert all(abs(begun.index(name) - n) < 5 for n, name in enumerate(sorted(begun))), begun
    assert {run.report().exit_code for run in runs} == {0}


def test_queued_run_reports_its_reason_and_can_be_cancelled(five: Installation, tmp_path: Path) -> None:
    # given
    live = [five.run(sleeper(f"live{n}", tmp_path, 20.0)) for n in range(5)]
    wait_for("five live runs", lambda: all(run.state() == "running" for run in live))
    waiting = five.run(sleeper("waiting", tmp_path))

    # then
    error = wait_for("the pending reason", lambda: waiting.report().error)
    assert "5 runs are live, of at most 5" in error.message
    assert waiting.state() == "pending"

    # when
    waiting.cancel()
    assert waiting.wait(PATIENCE).state == "cancelled"
    live[0].cancel()
    after = five.run(sleeper("after", tmp_path, 0.0))
    assert after.wait(PATIENCE).exit_code == 0
    for run in live:
        run.cancel()
        run.wait(PATIENCE)


def test_full_run_queue_refuses_a_start_and_stores_nothing(
    module_installation: MakeInstallation, tmp_path: Path
) -> None:
    # given an installation without workers
    closed = module_installation(options={"max_runs": "1", "max_queued": "3"})
    plan = tmp_path / "plan.yaml"
    plan.write_text(sleeper("p", tmp_path).to_yaml())
    for n in range(3):
        begun = closed.longshore("run", str(plan), "--run-id", f"r{n}", "--detach")
        assert begun.code == 0
        assert "no worker serves command,control" in begun.err

    # when
    refused = closed.longshore("run", str(plan), "--run-id", "r3", "--detach")
    again = closed.longshore("run", str(plan), "--run-id", "r0", "--detach")

    # then
    assert refused.code == 1
    assert "3 runs wait already" in refused.err
    assert len(refused.err.splitlines()) == 1
    assert closed.client().store.body("r3") is None
    assert again.code == 0  # the run with this id is in the queue already
    with pytest.raises(QueueFull):
        closed.run(sleeper("p", tmp_path))


def with_key(name: str, folder: Path, seconds: float = 0.5, on_limit: str = "queue", limit: int = 1) -> Plan:
    plan = sleeper(name, folder, seconds)
    return Plan.model_validate(
        plan.to_dict()
        | {"params": {"app": {"type": "string"}}}
        | {"concurrency": {"key": "deploy-{{ params.app }}", "on_limit": on_limit, "limit": limit}}
    )


@pytest.fixture(scope="module")
def keyed(module_installation: MakeInstallation) -> Iterator[Installation]:
    made = module_installation(options={"max_runs_per_plan": "3", "retention": "1h"})
    made.worker("open", "--concurrency", "6").start()
    return made


def test_runs_with_the_same_concurrency_key_do_not_overlap(keyed: Installation, tmp_path: Path) -> None:
    # when
    one = keyed.run(with_key("one", tmp_path, 2.0), app="shop")
    two = keyed.run(with_key("two", tmp_path), app="shop")
    other = keyed.run(with_key("other", tmp_path), app="blog")
    error = wait_for("the pending reason", lambda: two.report().error)

    # then
    assert f"'deploy-shop' is held by {one.id}" in error.message
    assert other.wait(PATIENCE).exit_code == 0
    assert not one.report().ended
    assert two.wait(PATIENCE).exit_code == 0
    log = [line for line in lines(tmp_path / "log") if "other" not in line]
    assert log == ["begin one", "end one", "begin two", "end two"]


def test_run_with_skip_is_cancelled_while_its_key_is_held(keyed: Installation, tmp_path: Path) -> None:
    one = keyed.run(with_key("one", tmp_path, 2.0), app="shop2")
    wait_for("the run to begin", lambda: one.state() == "running")

    report = keyed.run(with_key("two", tmp_path, on_limit="skip"), app="shop2").wait(PATIENCE)

    assert (report.state, report.exit_code, report.step("work").status) == ("cancelled", 1, "not_run")
    assert report.error is not None
    assert f"not run: 'deploy-shop2' is held by {one.id}" in report.error.message
    one.wait(PATIENCE)


def test_cancelled_queued_run_begins_only_after_a_resume(keyed: Installation, tmp_path: Path) -> None:
    one = keyed.run(with_key("one", tmp_path, 3.0), app="shop4")
    wait_for("the run to begin", lambda: one.state() == "running")
    two = keyed.run(with_key("two", tmp_path), app="shop4")
    two.cancel("not today")

    report = two.wait(PATIENCE)
    assert (report.state, report.cause, report.exit_code) == ("cancelled", "cancel", 1)
    assert (report.summary, report.error and report.error.message) == (
        "nothing was changed; 1 step, 1 not run",
        "not today",
    )
    assert one.wait(PATIENCE).exit_code == 0
    assert not [line for line in lines(tmp_path / "log") if "two" in line]

    two.resume()
    wait_for("the run to begin", lambda: two.state() == "succeeded")
    assert two.wait(PATIENCE).exit_code == 0


def test_run_with_cancel_running_replaces_the_holder_of_its_key(keyed: Installation, tmp_path: Path) -> None:
    one = keyed.run(with_key("one", tmp_path, 60.0), app="shop3")
    wait_for("the run to begin", lambda: one.state() == "running")

    two = keyed.run(with_key("two", tmp_path, on_limit="cancel_running"), app="shop3")

    assert two.wait(PATIENCE).exit_code == 0
    report = one.wait(PATIENCE)
    assert (report.cause, report.error and report.error.message) == ("cancel", f"replaced by run {two.id}")


def test_max_runs_per_plan_limits_runs_of_one_plan(keyed: Installation, tmp_path: Path) -> None:
    runs = [keyed.run(sleeper("same", tmp_path)) for _ in range(6)]
    other = keyed.run(sleeper("other", tmp_path / ".."))
    assert other.wait(PATIENCE).exit_code == 0
    assert all(run.wait(PATIENCE).exit_code == 0 for run in runs)
    assert most_at_once(list(lines(tmp_path / "log"))) <= 3


def test_new_run_that_needs_a_down_service_is_queued_or_refused(
    module_installation: MakeInstallation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given
    shop = module_installation(options={"imports": OWN, "slow_retry": "30s", "retry_spread": "500ms"})
    import_module(OWN)
    monkeypatch.setenv("LONGSHORE_IMPORTS", OWN)
    shop.worker("own", "--concurrency", "2", PYTHONPATH=shop.pythonpath).start()
    plan = Plan("bill")
    plan.step("bill", "own.bill", folder=str(tmp_path))
    (tmp_path / "down").touch()
    first = shop.run(plan)
    wait_for("the suspension", lambda: first.state() == "suspended")

    # when
    queued = shop.run(plan)
    error = wait_for("the pending reason", lambda: queued.report().error)
    refusing = shop.client()
    refusing.store.settings = refusing.store.settings.model_copy(update={"on_blocked": "refuse"})

    # then
    assert "service billing is down" in error.message
    assert queued.state() == "pending"
    with pytest.raises(ServiceDown, match="needs service billing, which is down"):
        refusing.start(plan, run_id="refused")
    assert shop.client().store.body("refused") is None

    # when
    (tmp_path / "down").unlink()
    assert shop.longshore("breaker", "reset", "billing", PYTHONPATH=shop.pythonpath).code == 0

    # then
    assert (first.wait(PATIENCE).exit_code, queued.wait(PATIENCE).exit_code) == (0, 0)


# --- retention ------------------------------------------------------------------------------------------


def keys_of(installation: Installation, run: Run) -> list[bytes]:
    return list(installation.redis.keys(f"{installation.namespace}:*{{{run.id}}}*"))


def test_prune_deletes_ended_runs_and_refuses_live_ones(keyed: Installation, tmp_path: Path) -> None:
    # given an ended run and a live one
    done = keyed.run(sleeper("done", tmp_path, 0))
    done.wait(PATIENCE)
    live = keyed.run(sleeper("live", tmp_path, 60))
    wait_for("the run to begin", lambda: live.state() == "running")

    # when
    would = keyed.longshore("--dry-run", "runs", "prune", done.id)
    young = keyed.longshore("runs", "prune", done.id, live.id, "--older-than", "1h")
    unknown = keyed.longshore("runs", "prune", "nothing", "--older-than", "1h")
    other = keyed.longshore("runs", "prune", done.id, "--plan", "other", "-o", "json")
    pruned = keyed.longshore("runs", "prune", done.id, "-o", "json")
    refused = keyed.longshore("runs", "prune", live.id)

    # then
    assert f"would delete run {done.id}" in would.out
    assert f"skipped: run {done.id}: ended less than 1h ago" in young.err
    assert (young.code, f"error[refused]: run {live.id}: " in young.err) == (1, True)
    assert unknown.code == 2
    assert (other.code, other.json["skipped"]) == (0, [done.id])
    assert pruned.code == 0, pruned.err
    assert pruned.json == {"dry_run": False, "forgotten": [done.id], "refused": [], "skipped": []}
    assert keys_of(keyed, done) == []
    assert keyed.longshore("runs", "show", done.id).code == 2
    assert refused.code == 1
    assert "only an ended run" in refused.err
    assert live.state() == "running", "the live run has ended"
    live.cancel()
    live.wait(PATIENCE)


def test_ended_runs_are_deleted_after_the_retention(module_installation: MakeInstallation, tmp_path: Path) -> None:
    brief = module_installation(options={"retention": "2s"})
    brief.worker("brief", "--concurrency", "2").start()
    live = brief.run(sleeper("live", tmp_path, 5))
    old = brief.run(sleeper("old", tmp_path, 0))
    old.wait(PATIENCE)
    assert keys_of(brief, old)

    def purged() -> bool:
        brief.redis.delete(f"{brief.namespace}:purged")  # purge now, not once a minute
        return not keys_of(brief, old)

    wait_for("the deletion of the run", purged)
    assert live.wait(PATIENCE).exit_code == 0


def test_runs_with_the_same_project_on_a_host_do_not_overlap(install: MakeInstallation, tmp_path: Path) -> None:
    # Given a plan whose second step is on a Compose project of a host
    place = install(options={"host": "web1"})
    place.worker("one", "-c", "4").start()
    text = """
name: {name}
steps:
  note: {{op: command.shell.execute, with: {{command: "echo {name} >> {log}; sleep 0.7; echo {name} >> {log}"}}}}
  stop:
    op: compose.stop.execute
    with: {{project: {project}}}
    target: {target}
    after: note
    retry: {{attempts: 1}}
"""
    log = tmp_path / "log"
    first = place.run(text.format(name="first", project="shop", target="web1", log=log))
    wait_for("the run to begin", log.exists)

    # When
    second = place.run(text.format(name="second", project="shop", target="web1", log=log))
    other = place.run(text.format(name="other", project="wiki", target="web1", log=log))
    waits = wait_for("the pending reason", lambda: second.report().error)
    held = Admission(place.client().store).held()

    # Then
    assert ("web1/shop", first.id) in {(name, run) for name, run, _ in held}
    assert f"web1/shop is held by {first.id}" in str(waits)
    for run in (first, second, other):
        run.wait(PATIENCE)
    written = [line for line in log.read_text().split() if line != "other"]
    assert written == ["first", "first", "second", "second"]
    assert place.longshore("locks", "ls", "-o", "json").json == []

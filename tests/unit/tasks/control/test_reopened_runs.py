"""Suspended, queued, resumed, resolved and purged runs, in the sandbox without clock and processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from longshore.orchestration import Blocked, Delayed, Plan, operation
from longshore.orchestration.client.request import request_body
from longshore.orchestration.store.admission import Admission
from longshore.orchestration.testing import Sandbox
from longshore.tasks.simulation.messages import _Message
from longshore.tasks.simulation.sandbox import ADVANCE
from tests.sweeping import sweep

State = dict[str, str | None]


class Table(Sandbox):
    """A sandbox with several concurrent runs and commands."""

    def begin(self, plan: Plan, run_id: str) -> None:
        Admission(self.store).submit(run_id, request_body(plan, {}, "ann"))
        self.tell(run_id)

    def tell(self, run_id: str, seconds: int = 0) -> None:
        """Advance a run and the clock."""
        self._queue.append(_Message(ADVANCE, run_id))
        self.go_on(seconds)

    def go_on(self, seconds: int) -> None:
        with self.engine_in_use():
            for _ in range(seconds + 1):
                while self._queue:
                    self._deliver(self._queue.popleft())
                if seconds:
                    self.store.advance(1.0)
                    sweep(self._coordinator)

    def ask(self, run_id: str, kind: str, step: str = "", word: str = "", seconds: int = 0) -> str:
        at = self.plans.get(run_id).plan.id_of(step) if step else None
        self.store.command(run_id, kind, step=at, resolved_as=word)
        self.tell(run_id, seconds)
        return self.store.fields(run_id).get("answer", "")

    def state(self, run_id: str) -> str | None:
        return self.store.state(run_id)


@pytest.fixture
def table(own_registry: None) -> Table:
    return Table()


def limited(**settings: Any) -> Table:
    made = Table()
    made.settings = made.settings.model_copy(update=settings)
    made.store.settings = made.settings
    return made


def kept(*names: str, **more: Any) -> Plan:
    plan = Plan("p", on_failure="keep", **more)
    before = None
    for name in names:
        step = plan.step(name, "noop.execute")
        before = step.after(before) if before else step
    return plan


def waiting(name: str = "p", **more: Any) -> Plan:
    plan = Plan(name, **more)
    plan.approval("ok")
    return plan


def release(**settings: Any) -> Plan:
    """env → build → up → smoke, and a step beside them; smoke fails."""
    plan = Plan("release", **settings)
    plan.step("env", "noop.execute")
    plan.step("beside", "noop.execute")
    plan.step("build", "noop.execute").after("env")
    plan.step("up", "noop.execute").after("build")
    plan.step("smoke", "noop.execute", fail=True).after("up").undo("none")
    return plan


# --- failed and held back compensations -----------------------------------------------------------------


def test_failed_undo_leaves_what_the_step_depends_on(table: Table) -> None:
    table.fail_undo("up", "the image is gone")
    table.begin(release(), "r")

    report = table.report("r")

    assert (report.state, report.exit_code, table.undone) == ("undo_failed", 3, ["up", "beside"])
    assert report.left_over == ["env", "build", "up"]
    undos = {step.name: (step.undo.status, step.undo.error) for step in report.steps if step.undo}
    why = ("held_back", "up depends on it, and its undo failed")
    assert undos == {"env": why, "build": why, "up": ("undo_failed", "the image is gone"), "beside": ("undone", None)}
    assert report.summary == "5 steps, 4 changed, 1 failed; 1 undone, 1 undo failed, 2 held back"


def test_plan_may_go_on_after_a_failed_undo(table: Table) -> None:
    table.fail_undo("up")
    table.begin(release(on_undo_failure="continue"), "r")

    assert table.undone == ["up", "build", "env", "beside"]
    assert table.report("r").left_over == ["up"]


@pytest.mark.parametrize("word", ["", "undone", "abandon"])
def test_resume_undoes_what_was_held_back(table: Table, word: str) -> None:
    table.fail_undo("up")
    table.begin(release(), "r")
    if word:
        assert table.ask("r", "resolve", "up", word) == "done"
        assert (table.state("r"), table.undone) == ("undo_failed", ["up", "beside"]), "a decision undoes nothing itself"
    else:
        table.undo_scripts.clear()

    assert table.ask("r", "resume") == "done"

    report = table.report("r")
    assert table.undone == ["up", "beside", *(["up"] if not word else []), "build", "env"]
    assert (report.state, report.left_over) == ("undone", ["up"] if word == "abandon" else [])
    undo = report.step("env").undo
    assert undo is not None
    assert (undo.status, undo.error) == ("undone", None)


# --- resume and resolve ---------------------------------------------------------------------------------


def test_resume_repeats_a_manually_undone_step(table: Table) -> None:
    table.fail("b", times=1)
    table.begin(kept("a", "b"), "r")
    assert table.state("r") == "failed"

    assert table.ask("r", "resolve", "a", "undone") == "done"
    table.ask("r", "resume")

    assert table.state("r") == "succeeded"
    assert table.done == ["a", "b", "a", "b"]


@pytest.mark.parametrize("word", ["done", "skip"])
def test_resume_completes_a_step_whose_last_item_was_resolved(table: Table, word: str) -> None:
    plan = Plan("p", on_failure="keep")
    plan.step("s", "noop.execute").foreach(["a", "b"])
    plan.step("t", "noop.execute").after("s")
    table.fail("s[1]")
    table.begin(plan, "r")

    assert table.ask("r", "resolve", "s[1]", word) == "done"
    table.ask("r", "resume", seconds=5)

    assert table.state("r") == "succeeded"
    assert table.done.count("s[1]") == 1


def test_abandoned_steps_are_kept_and_reported(table: Table) -> None:
    plan = Plan("p", on_unknown="ask")
    plan.step("a", "command.exec.execute", argv=["x"]).undo("command.exec.execute", argv=["y"])
    table.vanish("a")
    table.begin(plan, "r")
    table.go_on(40)
    assert table.state("r") == "suspended"

    table.ask("r", "resolve", "a", "abandon", seconds=3)

    report = table.report("r")
    assert (report.state, report.left_over, report.exit_code) == ("undone", ["a"], 3)


def test_long_delayed_step_asks_an_operator(table: Table) -> None:
    plan = Plan("p", on_unknown="ask")
    plan.step("a", "noop.execute").timeout("60s").undo("none")
    table.fail("a", Delayed("not yet"))
    table.begin(plan, "r")
    table.go_on(120)

    assert (table.state("r"), table.report("r").step("a").status) == ("suspended", "waiting")
    table.ask("r", "resolve", "a", "done", seconds=2)
    assert table.state("r") == "succeeded"


@pytest.mark.parametrize("on_failure", ["keep", "undo"])
def test_resuming_a_parent_resumes_its_child(table: Table, on_failure: str) -> None:
    child = Plan("child", on_failure=on_failure)
    child.step("s", "noop.execute")
    child.step("t", "noop.execute").after("s")
    parent = kept()
    parent.run_plan("c", child)
    parent.step("z", "noop.execute").after("c")
    table.fail("t", times=1)
    table.begin(parent, "P")
    table.go_on(2)
    assert table.state("P") == "failed"

    table.ask("P", "resume", seconds=4)

    assert table.state("P") == "succeeded"
    # What the child had done stands, or was taken back and is done anew.
    assert table.done.count("s") == (1 if on_failure == "keep" else 2)
    assert table.done[-2:] == ["t", "z"]


# --- services -------------------------------------------------------------------------------------------


@pytest.fixture
def service(own_registry: None) -> Iterator[dict[str, bool]]:
    up = {"up": True}

    @operation("table.bill", service="billing", idempotent=True)
    def bill() -> None:
        if not up["up"]:
            raise Blocked("refused")

    return up


def bill(**more: Any) -> Plan:
    plan = Plan("p", **more)
    plan.step("s", "table.bill").undo("table.bill")
    return plan


def test_step_blocked_by_a_down_service_is_not_undone(service: dict[str, bool], table: Table) -> None:
    service["up"] = False
    table.begin(bill(), "r")
    assert table.state("r") == "suspended"

    table.ask("r", "cancel", seconds=2)

    report = table.report("r")
    assert (report.state, report.exit_code, report.step("s").undo) == ("failed", 1, None)


def test_blocked_step_does_not_delay_an_ending_run(own_registry: None, table: Table) -> None:
    @operation("table.ends")
    def ends() -> None:
        table.store.command("r", "cancel")
        table._coordinator.advance("r")
        raise Blocked("refused", service="billing")

    plan = Plan("p")
    plan.step("s", "table.ends")
    table.begin(plan, "r")
    table.go_on(2)

    assert table.state("r") == "failed"


def test_admitted_run_gets_the_half_open_trial_before_waiting_runs(
    service: dict[str, bool], own_registry: None
) -> None:
    table = limited(max_runs=1)
    service["up"] = False
    table.begin(bill(), "first")
    for n in range(5):
        table.begin(bill(), f"q{n}")
    table.go_on(10)
    service["up"] = True

    table.go_on(180)

    assert [table.state(run_id) for run_id in ("first", "q0", "q4")] == ["succeeded"] * 3


def test_suspended_run_retries_always_steps(service: dict[str, bool], table: Table) -> None:
    service["up"] = False
    plan = Plan("p")
    plan.step("lights", "noop.execute").always().retry(3, initial=5, jitter=False)
    plan.step("s", "table.bill")
    table.fail("lights", times=1)
    table.begin(plan, "r")
    assert table.state("r") == "suspended"

    table.go_on(12)

    assert table.report("r").step("lights").status == "changed"


# --- admission ------------------------------------------------------------------------------------------


def test_resume_does_not_bypass_the_run_queue(own_registry: None) -> None:
    table = limited(max_runs=1)
    table.begin(waiting(), "one")
    table.begin(waiting(), "two")

    assert table.ask("two", "resume") == "the run is pending"
    assert (table.state("one"), table.state("two")) == ("running", "pending")


def test_child_run_is_admitted_before_runs_queued_behind_its_parent(own_registry: None) -> None:
    table = limited(max_runs=1)
    child = Plan("child")
    child.step("w", "noop.execute")
    parent = Plan("parent")
    parent.approval("ok")
    parent.run_plan("c", child).after("ok")
    table.begin(parent, "P")
    table.begin(waiting(), "Q")

    table.ask("P", "approve", "ok", seconds=3)

    assert (table.state("P.c"), table.state("P"), table.state("Q")) == ("succeeded", "succeeded", "running")


def test_cancelled_queued_run_is_not_admitted(own_registry: None) -> None:
    """A reader of the queue tries to admit a run that has left the queue since."""
    table = limited(max_runs=1)
    admission = Admission(table.store)
    table.begin(waiting(), "one")
    table.begin(waiting(), "two")
    wanted = admission.known()["two"]
    table.ask("two", "cancel")

    table.ask("one", "cancel")
    assert admission.admit("two", wanted) == "gone"
    table.begin(waiting(), "three")

    assert admission.admitted() == ["three"]


def test_concurrency_key_serialises_children_but_not_with_their_parents(own_registry: None) -> None:
    table = Table()
    key = {"concurrency": {"key": "prod"}}
    child = Plan("child", **key)
    child.approval("ok")

    def parent(**more: Any) -> Plan:
        plan = Plan("parent", **more)
        plan.run_plan("c", child)
        return plan

    table.begin(parent(), "one")
    table.begin(parent(), "two")
    assert (table.state("one.c"), table.state("two.c")) == ("running", "pending")
    table.ask("one.c", "cancel", seconds=70)
    assert table.state("two.c") == "running"
    table.ask("two.c", "cancel", seconds=3)

    # a parent with the key, a child without, and a grandchild with it
    middle = Plan("middle")
    middle.run_plan("c", child)
    top = Plan("top", **key)
    top.run_plan("m", middle)
    table.begin(top, "top")
    table.go_on(2)
    assert table.state("top.m.c") == "running"


# --- purged runs ----------------------------------------------------------------------------------------


def all_keys(table: Table, run_id: str) -> list[str]:
    return [key for key in table.store.client.keys("*") if f"{{{run_id}" in key]


def test_purged_run_leaves_no_keys_and_frees_its_id(table: Table) -> None:
    # given a reopened parent with a child and large data
    child = Plan("child")
    child.step("inner", "noop.execute")
    parent = kept()
    parent.run_plan("c", child)
    parent.step("big", "noop.execute").always()
    parent.step("f", "noop.execute").after("c")
    table.give("big", {"text": "x" * 100_000})
    table.fail("f", times=1)
    table.begin(parent, "n")
    table.go_on(2)
    table.ask("n", "resume", seconds=3)
    assert table.state("n") == "succeeded"

    # when
    table.store.command("n", "prune")
    table.tell("n", 2)

    # then
    assert all_keys(table, "n") == []
    assert table.store.live_count() == 0
    table.begin(parent, "n")
    table.go_on(3)
    assert (table.state("n"), table.done.count("inner")) == ("succeeded", 2)


def test_command_for_a_purged_run_does_not_reach_its_successor(table: Table) -> None:
    table.begin(kept("a"), "n")
    table.store.command("n", "prune")
    table.tell("n")

    with pytest.raises(Exception, match="no run"):
        table.store.command("n", "cancel")
    table.store.client.xadd(table.store.keys.of("n").commands, {"kind": "cancel"})
    table.begin(kept("a"), "n")
    assert table.state("n") == "succeeded"


def test_cached_plan_of_a_purged_run_is_not_used_for_a_new_run(table: Table) -> None:
    from longshore.tasks.control.coordinator import Coordinator
    from longshore.tasks.loaded_runs import Plans

    # given a process that has cached the first run at a higher version than the second's
    old = Plans(table.store)
    make: Callable[..., Any] = table._canvas
    elsewhere = Coordinator(None, table.store, old, make)  # type: ignore[arg-type]
    table.begin(kept("a0", "a1", "a2"), "n")
    elsewhere.advance("n")
    table.store.command("n", "prune")
    table.tell("n")

    # when
    table.begin(waiting("second"), "n")
    elsewhere.advance("n")

    # then
    assert table.state("n") == "running"
    assert old.get("n").plan.plan.name == "second"


def test_idle_installation_purges_expired_runs(own_registry: None) -> None:
    table = limited(retention=5.0)
    table.begin(kept("a"), "n")
    table.go_on(2)
    assert (table.state("n"), table.store.live_count()) == ("succeeded", 0)
    table.store.client.delete(table.store.keys.purged)  # once a minute is enough, but not for a test

    table.go_on(10)

    assert all_keys(table, "n") == []

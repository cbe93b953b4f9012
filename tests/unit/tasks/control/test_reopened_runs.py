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


class ConcurrentSandbox(Sandbox):
    """A sandbox with several concurrent runs and commands."""

    def begin(self, plan: Plan, run_id: str) -> None:
        Admission(self.store).submit(run_id, request_body(plan, {}, "ann"))
        self.advance_run(run_id)

    def advance_run(self, run_id: str, seconds: int = 0) -> None:
        """Advance a run and the clock."""
        self._queue.append(_Message(ADVANCE, run_id))
        self.advance(seconds)

    def advance(self, seconds: int) -> None:
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
        self.advance_run(run_id, seconds)
        return self.store.fields(run_id).get("answer", "")

    def state(self, run_id: str) -> str | None:
        return self.store.state(run_id)


@pytest.fixture
def sandbox(own_registry: None) -> ConcurrentSandbox:
    return ConcurrentSandbox()


def limited(**settings: Any) -> ConcurrentSandbox:
    made = ConcurrentSandbox()
    made.settings = made.settings.model_copy(update=settings)
    made.store.settings = made.settings
    return made


def chain(*names: str, **more: Any) -> Plan:
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
    """A plan env → build → up → smoke with an independent step; smoke fails."""
    plan = Plan("release", **settings)
    plan.step("env", "noop.execute")
    plan.step("beside", "noop.execute")
    plan.step("build", "noop.execute").after("env")
    plan.step("up", "noop.execute").after("build")
    plan.step("smoke", "noop.execute", fail=True).after("up").undo("none")
    return plan


# --- failed and held back compensations -----------------------------------------------------------------


def test_failed_undo_keeps_the_dependencies_of_its_step(sandbox: ConcurrentSandbox) -> None:
    sandbox.fail_undo("up", "the image is gone")
    sandbox.begin(release(), "r")

    report = sandbox.report("r")

    assert (report.state, report.exit_code, sandbox.undone) == ("undo_failed", 3, ["up", "beside"])
    assert report.left_over == ["env", "build", "up"]
    undos = {step.name: (step.undo.status, step.undo.error) for step in report.steps if step.undo}
    why = ("held_back", "up depends on it, and its undo failed")
    assert undos == {"env": why, "build": why, "up": ("undo_failed", "the image is gone"), "beside": ("undone", None)}
    assert report.summary == "5 steps, 4 changed, 1 failed; 1 undone, 1 undo failed, 2 held back"


def test_plan_can_continue_the_undo_after_a_failed_undo(sandbox: ConcurrentSandbox) -> None:
    sandbox.fail_undo("up")
    sandbox.begin(release(on_undo_failure="continue"), "r")

    assert sandbox.undone == ["up", "build", "env", "beside"]
    assert sandbox.report("r").left_over == ["up"]


@pytest.mark.parametrize("word", ["", "undone", "abandon"])
def test_resume_undoes_held_back_steps(sandbox: ConcurrentSandbox, word: str) -> None:
    sandbox.fail_undo("up")
    sandbox.begin(release(), "r")
    if word:
        assert sandbox.ask("r", "resolve", "up", word) == "done"
        assert (sandbox.state("r"), sandbox.undone) == ("undo_failed", ["up", "beside"]), (
            "the decision alone has undone a step"
        )
    else:
        sandbox.undo_scripts.clear()

    assert sandbox.ask("r", "resume") == "done"

    report = sandbox.report("r")
    assert sandbox.undone == ["up", "beside", *(["up"] if not word else []), "build", "env"]
    assert (report.state, report.left_over) == ("undone", ["up"] if word == "abandon" else [])
    undo = report.step("env").undo
    assert undo is not None
    assert (undo.status, undo.error) == ("undone", None)


# --- resume and resolve ---------------------------------------------------------------------------------


def test_resume_repeats_a_manually_undone_step(sandbox: ConcurrentSandbox) -> None:
    sandbox.fail("b", times=1)
    sandbox.begin(chain("a", "b"), "r")
    assert sandbox.state("r") == "failed"

    assert sandbox.ask("r", "resolve", "a", "undone") == "done"
    sandbox.ask("r", "resume")

    assert sandbox.state("r") == "succeeded"
    assert sandbox.done == ["a", "b", "a", "b"]


@pytest.mark.parametrize("word", ["done", "skip"])
def test_resume_completes_a_step_whose_last_item_was_resolved(sandbox: ConcurrentSandbox, word: str) -> None:
    plan = Plan("p", on_failure="keep")
    plan.step("s", "noop.execute").foreach(["a", "b"])
    plan.step("t", "noop.execute").after("s")
    sandbox.fail("s[1]")
    sandbox.begin(plan, "r")

    assert sandbox.ask("r", "resolve", "s[1]", word) == "done"
    sandbox.ask("r", "resume", seconds=5)

    assert sandbox.state("r") == "succeeded"
    assert sandbox.done.count("s[1]") == 1


def test_abandoned_steps_are_kept_and_reported(sandbox: ConcurrentSandbox) -> None:
    plan = Plan("p", on_unknown="ask")
    plan.step("a", "command.exec.execute", argv=["x"]).undo("command.exec.execute", argv=["y"])
    sandbox.vanish("a")
    sandbox.begin(plan, "r")
    sandbox.advance(40)
    assert sandbox.state("r") == "suspended"

    sandbox.ask("r", "resolve", "a", "abandon", seconds=3)

    report = sandbox.report("r")
    assert (report.state, report.left_over, report.exit_code) == ("undone", ["a"], 3)


def test_long_delayed_step_waits_for_an_operator(sandbox: ConcurrentSandbox) -> None:
    plan = Plan("p", on_unknown="ask")
    plan.step("a", "noop.execute").timeout("60s").undo("none")
    sandbox.fail("a", Delayed("not yet"))
    sandbox.begin(plan, "r")
    sandbox.advance(120)

    assert (sandbox.state("r"), sandbox.report("r").step("a").status) == ("suspended", "waiting")
    sandbox.ask("r", "resolve", "a", "done", seconds=2)
    assert sandbox.state("r") == "succeeded"


@pytest.mark.parametrize("on_failure", ["keep", "undo"])
def test_resuming_a_parent_resumes_its_child(sandbox: ConcurrentSandbox, on_failure: str) -> None:
    child = Plan("child", on_failure=on_failure)
    child.step("s", "noop.execute")
    child.step("t", "noop.execute").after("s")
    parent = chain()
    parent.run_plan("c", child)
    parent.step("z", "noop.execute").after("c")
    sandbox.fail("t", times=1)
    sandbox.begin(parent, "P")
    sandbox.advance(2)
    assert sandbox.state("P") == "failed"

    sandbox.ask("P", "resume", seconds=4)

    assert sandbox.state("P") == "succeeded"
    # The effect of the child was kept, or was undone and is repeated.
    assert sandbox.done.count("s") == (1 if on_failure == "keep" else 2)
    assert sandbox.done[-2:] == ["t", "z"]


# --- services -------------------------------------------------------------------------------------------


@pytest.fixture
def service(own_registry: None) -> Iterator[dict[str, bool]]:
    up = {"up": True}

    @operation("sandbox.bill", service="billing", idempotent=True)
    def bill() -> None:
        if not up["up"]:
            raise Blocked("refused")

    return up


def bill(**more: Any) -> Plan:
    plan = Plan("p", **more)
    plan.step("s", "sandbox.bill").undo("sandbox.bill")
    return plan


def test_step_blocked_by_a_down_service_is_not_undone(service: dict[str, bool], sandbox: ConcurrentSandbox) -> None:
    service["up"] = False
    sandbox.begin(bill(), "r")
    assert sandbox.state("r") == "suspended"

    sandbox.ask("r", "cancel", seconds=2)

    report = sandbox.report("r")
    assert (report.state, report.exit_code, report.step("s").undo) == ("failed", 1, None)


def test_blocked_step_does_not_delay_an_ending_run(own_registry: None, sandbox: ConcurrentSandbox) -> None:
    @operation("sandbox.ends")
    def ends() -> None:
        sandbox.store.command("r", "cancel")
        sandbox._coordinator.advance("r")
        raise Blocked("refused", service="billing")

    plan = Plan("p")
    plan.step("s", "sandbox.ends")
    sandbox.begin(plan, "r")
    sandbox.advance(2)

    assert sandbox.state("r") == "failed"


def test_admitted_run_gets_the_half_open_trial_before_waiting_runs(
    service: dict[str, bool], own_registry: None
) -> None:
    sandbox = limited(max_runs=1)
    service["up"] = False
    sandbox.begin(bill(), "first")
    for n in range(5):
        sandbox.begin(bill(), f"q{n}")
    sandbox.advance(10)
    service["up"] = True

    sandbox.advance(180)

    assert [sandbox.state(run_id) for run_id in ("first", "q0", "q4")] == ["succeeded"] * 3


def test_suspended_run_retries_always_steps(service: dict[str, bool], sandbox: ConcurrentSandbox) -> None:
    service["up"] = False
    plan = Plan("p")
    plan.step("lights", "noop.execute").always().retry(3, initial=5, jitter=False)
    plan.step("s", "sandbox.bill")
    sandbox.fail("lights", times=1)
    sandbox.begin(plan, "r")
    assert sandbox.state("r") == "suspended"

    sandbox.advance(12)

    assert sandbox.report("r").step("lights").status == "changed"


# --- admission ------------------------------------------------------------------------------------------


def test_resume_does_not_bypass_the_run_queue(own_registry: None) -> None:
    sandbox = limited(max_runs=1)
    sandbox.begin(waiting(), "one")
    sandbox.begin(waiting(), "two")

    assert sandbox.ask("two", "resume") == "the run is pending"
    assert (sandbox.state("one"), sandbox.state("two")) == ("running", "pending")


def test_child_run_is_admitted_before_runs_queued_behind_its_parent(own_registry: None) -> None:
    sandbox = limited(max_runs=1)
    child = Plan("child")
    child.step("w", "noop.execute")
    parent = Plan("parent")
    parent.approval("ok")
    parent.run_plan("c", child).after("ok")
    sandbox.begin(parent, "P")
    sandbox.begin(waiting(), "Q")

    sandbox.ask("P", "approve", "ok", seconds=3)

    assert (sandbox.state("P.c"), sandbox.state("P"), sandbox.state("Q")) == ("succeeded", "succeeded", "running")


def test_cancelled_queued_run_is_not_admitted(own_registry: None) -> None:
    """A worker that has read the queue tries to admit a run that has left the queue."""
    sandbox = limited(max_runs=1)
    admission = Admission(sandbox.store)
    sandbox.begin(waiting(), "one")
    sandbox.begin(waiting(), "two")
    wanted = admission.known()["two"]
    sandbox.ask("two", "cancel")

    sandbox.ask("one", "cancel")
    assert admission.admit("two", wanted) == "gone"
    sandbox.begin(waiting(), "three")

    assert admission.admitted() == ["three"]


def test_concurrency_key_serialises_children_but_not_with_their_parents(own_registry: None) -> None:
    sandbox = ConcurrentSandbox()
    key = {"concurrency": {"key": "prod"}}
    child = Plan("child", **key)
    child.approval("ok")

    def parent(**more: Any) -> Plan:
        plan = Plan("parent", **more)
        plan.run_plan("c", child)
        return plan

    sandbox.begin(parent(), "one")
    sandbox.begin(parent(), "two")
    assert (sandbox.state("one.c"), sandbox.state("two.c")) == ("running", "pending")
    sandbox.ask("one.c", "cancel", seconds=70)
    assert sandbox.state("two.c") == "running"
    sandbox.ask("two.c", "cancel", seconds=3)

    # a parent with the key, a child without, and a grandchild with the key
    middle = Plan("middle")
    middle.run_plan("c", child)
    top = Plan("top", **key)
    top.run_plan("m", middle)
    sandbox.begin(top, "top")
    sandbox.advance(2)
    assert sandbox.state("top.m.c") == "running"


# --- purged runs ----------------------------------------------------------------------------------------


def all_keys(sandbox: ConcurrentSandbox, run_id: str) -> list[str]:
    return [key for key in sandbox.store.client.keys("*") if f"{{{run_id}" in key]


def test_purged_run_leaves_no_keys_and_frees_its_id(sandbox: ConcurrentSandbox) -> None:
    # given a reopened parent with a child and large data
    child = Plan("child")
    child.step("inner", "noop.execute")
    parent = chain()
    parent.run_plan("c", child)
    parent.step("big", "noop.execute").always()
    parent.step("f", "noop.execute").after("c")
    sandbox.give("big", {"text": "x" * 100_000})
    sandbox.fail("f", times=1)
    sandbox.begin(parent, "n")
    sandbox.advance(2)
    sandbox.ask("n", "resume", seconds=3)
    assert sandbox.state("n") == "succeeded"

    # when
    sandbox.store.command("n", "prune")
    sandbox.advance_run("n", 2)

    # then
    assert all_keys(sandbox, "n") == []
    assert sandbox.store.live_count() == 0
    sandbox.begin(parent, "n")
    sandbox.advance(3)
    assert (sandbox.state("n"), sandbox.done.count("inner")) == ("succeeded", 2)


def test_command_for_a_purged_run_does_not_reach_its_successor(sandbox: ConcurrentSandbox) -> None:
    sandbox.begin(chain("a"), "n")
    sandbox.store.command("n", "prune")
    sandbox.advance_run("n")

    with pytest.raises(Exception, match="no run"):
        sandbox.store.command("n", "cancel")
    sandbox.store.client.xadd(sandbox.store.keys.of("n").commands, {"kind": "cancel"})
    sandbox.begin(chain("a"), "n")
    assert sandbox.state("n") == "succeeded"


def test_cached_plan_of_a_purged_run_is_not_used_for_a_new_run(sandbox: ConcurrentSandbox) -> None:
    from longshore.tasks.control.coordinator import Coordinator
    from longshore.tasks.loaded_runs import Plans

    # given a process that has cached the first run at a higher version than the second's
    old = Plans(sandbox.store)
    make: Callable[..., Any] = sandbox._canvas
    elsewhere = Coordinator(None, sandbox.store, old, make)  # type: ignore[arg-type]
    sandbox.begin(chain("a0", "a1", "a2"), "n")
    elsewhere.advance("n")
    sandbox.store.command("n", "prune")
    sandbox.advance_run("n")

    # when
    sandbox.begin(waiting("second"), "n")
    elsewhere.advance("n")

    # then
    assert sandbox.state("n") == "running"
    assert old.get("n").plan.plan.name == "second"


def test_idle_installation_purges_expired_runs(own_registry: None) -> None:
    sandbox = limited(retention=5.0)
    sandbox.begin(chain("a"), "n")
    sandbox.advance(2)
    assert (sandbox.state("n"), sandbox.store.live_count()) == ("succeeded", 0)
    sandbox.store.client.delete(sandbox.store.keys.purged)  # purge now, not once a minute

    sandbox.advance(10)

    assert all_keys(sandbox, "n") == []

"""The text of `plan explain`."""

from __future__ import annotations

import pytest
from hypothesis import given, settings

from longshore.orchestration import Plan
from longshore.orchestration.plans.explain import explain
from tests.unit.plans import compiled, diamond, plans


def explained(plan: Plan) -> list[str]:
    return explain(compiled(plan)).splitlines()


def line_of(plan: Plan, step: str) -> str:
    """The line about a step's undo."""
    lines = explained(plan)
    undo = lines[lines.index("Undo, if a step fails:") + 1 :]
    return next(line.partition(": ")[2] for line in undo if line.strip().startswith(f"{step}: "))


def test_explain_shows_order_queues_limits_and_retries() -> None:
    plan = diamond(description="A release")
    plan.step("sweep", "command.exec.execute", argv=["sweep"]).after("tell").timeout("10m").retry(2, initial=1)

    assert explained(plan) == [
        "Plan diamond: 6 steps, 5 levels",
        "A release",
        "",
        "Level 0: one step",
        "  build: noop.execute",
        "      queue noop; at most 1h an attempt; up to 4 tries after a temporary error, waiting at most 7s in all",
        "",
        "Level 1: 2 steps in parallel, one chord",
        "  test: noop.execute after build",
        "      queue noop; at most 1h an attempt; up to 4 tries after a temporary error, waiting at most 7s in all",
        "  lint: noop.execute after build",
        "      queue noop; at most 1h an attempt; up to 4 tries after a temporary error, waiting at most 7s in all",
        "",
        "Level 2: one step",
        "  ship: noop.execute after test, lint",
        "      queue noop; at most 1h an attempt; up to 4 tries after a temporary error, waiting at most 7s in all",
        "",
        "Level 3: one step",
        "  tell: noop.execute after ship",
        "      queue noop; at most 1h an attempt; up to 4 tries after a temporary error, waiting at most 7s in all",
        "",
        "Level 4: one step",
        "  sweep: command.exec.execute after tell",
        "      queue command; at most 10m an attempt; up to 3 tries after any error that is not permanent, "
        "waiting at most 3s in all",
        "",
        "Critical path, at most 16h 31m: build → test → ship → tell → sweep",
        "",
        "Undo, if a step fails:",
        "  sweep: WARNING: the step has no undo, and its changes would remain: declare undo, or undo: none",
        "  tell: full undo by noop.execute on queue noop.undo",
        "  ship: full undo by noop.execute on queue noop.undo",
        "  test: full undo by noop.execute on queue noop.undo",
        "  lint: full undo by noop.execute on queue noop.undo",
        "  build: full undo by noop.execute on queue noop.undo",
    ]


def test_explain_warns_of_steps_without_undo() -> None:
    plan = Plan("p")
    plan.step("bare", "command.exec.execute", argv=["x"])
    plan.step("looks", "command.exec.execute", argv=["x"], changes=False)
    plan.step("none", "command.exec.execute", argv=["x"]).undo("none")
    plan.step("own", "command.exec.execute", argv=["x"]).undo("file.deploy.execute", path="/x", content="")
    plan.step("last", "command.exec.execute", argv=["x"]).always()

    assert line_of(plan, "bare").startswith("WARNING: the step has no undo")
    assert line_of(plan, "looks") == "nothing to undo, the step is read-only"
    assert line_of(plan, "none") == "nothing to undo, the plan sets undo: none"
    assert line_of(plan, "own") == "file.deploy.execute on queue file.undo"
    assert line_of(plan, "last") == "never undone (always)"


def test_explain_shows_the_queue_of_the_application_for_celery_tasks() -> None:
    plan = Plan("p")
    pay = plan.step("pay", "celery.task.execute", task="shop.pay", queue="shop").timeout("1h")
    pay.undo("celery.task.execute", task="shop.refund")
    other = plan.step("any", "celery.task.execute", task="shop.any", queue="{{ steps.pay.data.queue }}").timeout("1h")
    other.after("pay").undo("none")

    text = explain(compiled(plan))

    assert "      the application's queue shop; at most 1h" in text
    assert "      the application's queue {{ steps.pay.data.queue }}; at most 1h" in text
    assert line_of(plan, "pay") == "celery.task.execute on the application's queue celery"
    assert "queue control" not in text


def test_explain_shows_guards_items_and_limits() -> None:
    plan = Plan("p", on_error="continue", timeout="1h")
    a = plan.step("a", "noop.execute")
    b = plan.step("b", "noop.execute").after(a).foreach(a.data.all).max_parallel(3).tolerate("5%").target("web1")
    b.only_if_any_host_changed().when(a.changed)
    plan.approval("ask", timeout="10m").after(b)
    plan.step("point", "noop.execute").irreversible().after("ask")

    text = explain(compiled(plan))

    assert "Timeout of the run: 1h" in text
    assert "queue noop on web1; at most 1h an attempt; up to 4 tries after a temporary error" in text
    assert "waiting at most 7s in all; only if any host" in text
    assert (
        "host changed; when steps.a.changed; for each of {{ steps.a.data.all }}; 3 at once; 5% may fail; the run"
        in text
    )
    assert "Level 1: one step, its items and hosts in one chord" in text
    assert "queue control; at most 10m an attempt; tried once" in text
    assert "the point of no return: once the step has succeeded, nothing is undone" in text


def test_explain_shows_steps_that_continue_after_a_failure() -> None:
    plan = Plan("p", on_failure="keep")
    plan.step("may", "noop.execute").on_error("continue")
    plan.step("must", "noop.execute").always()

    lines = explained(plan)

    assert lines[4].endswith("the run continues if the step fails")
    assert lines[6].endswith("always runs, however the run ends")
    assert lines[-1] == "  nothing is undone: on_failure is keep"


def test_explain_shows_that_failed_undos_hold_nothing_back() -> None:
    assert "on_undo_failure" not in explained(diamond())[-1]
    assert explained(diamond(on_undo_failure="continue"))[-1] == (
        "  if an undo fails, the other undos run all the same: on_undo_failure is continue"
    )


def test_explain_shows_what_a_release_without_a_way_back_does() -> None:
    plan = Plan("release")
    plan.step("refuses", "compose.up.execute", project="shop")
    plan.step("accepts", "compose.up.execute", project="shop", no_way_back="accept")
    text = " ".join(" ".join(explained(plan)).split())

    assert "refuses before its first change if what runs could not be brought back" in text
    assert text.count("WARNING: accepts that what runs may not be brought back") == 1


@pytest.mark.parametrize(
    ("retries", "expected"),
    [(0, "tried once"), (1, "up to 2 tries after any error that is not permanent, waiting at most 0s in all")],
)
def test_explain_shows_immediate_retries(retries: int, expected: str) -> None:
    plan = Plan("p")
    plan.step("a", "noop.execute").retry(retries)

    assert expected in explained(plan)[4]


@settings(max_examples=25)
@given(plans())
def test_explain_lists_every_step_of_any_plan(plan: Plan) -> None:
    text = explain(compiled(plan))

    assert all(f"  {name}: {step.op}" in text for name, step in plan.steps.items())


def test_explain_names_operations_without_receipts() -> None:
    plan = Plan("p")
    plan.step("call", "network.http.request", url="http://x/", method="POST").undo("none")
    plan.step("look", "network.http.get", url="http://x/")
    plan.step("write", "file.deploy.execute", path="/x", content="x")
    plan.step("resolve", "network.dns.update", servers=["10.0.0.1"])

    assert "Effects in other services: call" in explained(plan)
    plan.steps.pop("call")
    assert not any("Effects in other services" in line for line in explained(plan))


def test_one_step_is_singular() -> None:
    plan = Plan("p")
    plan.step("only", "noop.execute")

    assert explained(plan)[0] == "Plan p: 1 step, 1 level"

"""An application's Celery tasks as steps: supported and refused parts of signatures."""

from __future__ import annotations

from typing import Any

import pytest
from celery import Celery, chain

from longshore.orchestration import Plan, PlanError, UnknownName, UsageError, validate
from longshore.orchestration.client.client import _same_server
from longshore.orchestration.testing import Sandbox

#: Applications may use a setting that Celery deprecates.
pytestmark = pytest.mark.filterwarnings("ignore::celery.exceptions.CDeprecationWarning")


@pytest.fixture
def app() -> Celery:
    made = Celery("app", broker="memory://", set_as_current=False)
    made.conf.task_routes = {"routed": {"queue": "by-route"}}

    def echo(n: int) -> int:
        return n

    made.task(name="plain", shared=False)(echo)
    made.task(name="routed", shared=False)(echo)
    made.task(name="own", queue="special", shared=False)(echo)
    return made


@pytest.mark.parametrize(("task", "queue"), [("plain", None), ("routed", "by-route"), ("own", "special")])
def test_celery_task_uses_its_applications_route(app: Celery, task: str, queue: str | None) -> None:
    plan = Plan("p")
    plan.celery("a", app.tasks[task].s(1), timeout="5s")

    given = plan.steps["a"].with_
    assert (given["task"], given["args"], given.get("queue")) == (task, [1], queue)
    validate(plan)


def test_signature_queue_overrides_the_route(app: Celery) -> None:
    plan = Plan("p")
    plan.celery("a", app.tasks["own"].s(1).set(queue="urgent"), timeout="5s")
    assert plan.steps["a"].with_["queue"] == "urgent"


def test_unsupported_signature_is_refused_without_a_step(app: Celery) -> None:
    plain: Any = app.tasks["plain"]
    plan = Plan("p")
    for signature, message in (
        (plain.s(1).set(countdown=3), "countdown"),
        (chain(plain.s(1), plain.s()), "the signature of a single task"),
        (plain, "is not a signature: pass one, such as task.s"),
    ):
        with pytest.raises(UsageError, match=message):
            plan.celery("a", signature, timeout="5s")
    with pytest.raises(UsageError, match="is not a signature"):
        plan.celery("a", plain.s(1), timeout="5s", undo="plain")  # type: ignore[arg-type]
    with pytest.raises(PlanError, match="timeout"):
        plan.celery("b", plain.s(1), timeout=0)
    assert "a" not in plan.steps


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("redis://localhost:6379/0", "redis://127.0.0.1:6379", True),
        ("redis://127.0.0.1:6379/0?x=1", "redis://127.0.0.1/0", True),
        ("redis://127.0.0.1:6379/1", "redis://127.0.0.1:6379/0", False),
        ("redis://other:6379/0", "redis://127.0.0.1:6379/0", False),
        ("redis+socket:///run/a.sock", "redis+socket:///run/b.sock", False),
        ("amqp://127.0.0.1:6379/0", "redis://127.0.0.1:6379/0", False),
    ],
)
def test_equivalent_server_urls_are_equal(one: str, other: str, same: bool) -> None:
    assert _same_server(one, other) is same


def test_sandbox_refuses_an_unknown_step() -> None:
    plan = Plan("p")
    plan.step("check", "noop.execute")
    sandbox = Sandbox()
    sandbox.fail("chek")
    with pytest.raises(UnknownName, match="'chek', which is not in the plan: did you mean 'check'"):
        sandbox.run(plan)

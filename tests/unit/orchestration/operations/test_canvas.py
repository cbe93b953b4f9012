"""Canvases of Celery as plans: the same results as an execution by Celery, and compensations in reverse."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from celery import Celery, chain, chord, group
from celery.canvas import Signature, xmap
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from longshore.orchestration import E, Plan, PlanError, UsageError, validate
from longshore.orchestration.operations.canvas import COMPENSATIONS, convert
from longshore.orchestration.testing import Sandbox

app = Celery("unit", broker="memory://", set_as_current=False)
app.conf.task_always_eager = True
app.conf.task_store_eager_result = False

#: Calls of the tasks, in order.
calls: list[tuple[str, Any]] = []
#: The call that fails, counted from 0; none fails for -1.
failing = -1


def record_call(task: str, *args: Any) -> None:
    if len(calls) == failing:
        raise RuntimeError("out of order")
    calls.append((task, list(args)))


@app.task(name="unit.add")
def add(x: Any, y: Any = 0) -> Any:
    """Add numbers, and concatenate lists of results."""
    record_call("add", x, y)
    return [x, y] if isinstance(x, list | dict) or isinstance(y, list | dict) else x + y


@app.task(name="unit.total")
def total(values: Any, extra: int = 0) -> Any:
    record_call("total", values, extra)
    return {"total": values, "extra": extra}


@app.task(name="unit.forget")
def forget(*args: Any) -> None:
    record_call("forget", *args)


@app.task(name="unit.undo_add")
def undo_add(x: Any, y: Any = 0) -> None:
    calls.append(("take back add", [x, y]))


@app.task(name="unit.undo_total")
def undo_total(values: Any, extra: int = 0) -> None:
    calls.append(("take back total", [values, extra]))


UNDO = {add: undo_add, total: undo_total, forget: "none"}


@pytest.fixture(autouse=True)
def _reset_calls() -> None:
    calls.clear()


def plan_of(signature: Signature[Any]) -> Plan:
    named = {step.params.get("task") for step in convert(signature).steps}
    return Plan.from_canvas(signature, undo={task: each for task, each in UNDO.items() if task.name in named})


def run(signature: Signature[Any]) -> tuple[Any, Any]:
    """The report of a canvas that runs as a plan in memory, and the canvas's result."""
    report = Sandbox(app=app).run(plan_of(signature))
    return report, convert(signature).value({step.name: step.data for step in report.steps})


def of_celery(signature: Signature[Any]) -> Any:
    return signature.apply().get()


SHAPES = {
    "a task": add.s(1, 2),
    "a chain": chain(add.s(1, 2), add.s(3), add.s(y=4)),
    "an immutable link": chain(add.s(1, 2), add.si(5, 5), add.s(1)),
    "a group": group(add.s(1, 1), add.s(2, 2)),
    "a group inside of a group": group(add.s(1, 1), group(add.s(2, 2), add.s(3, 3)), add.s(4, 4)),
    "a chain in a group": group(chain(add.s(1, 1), add.s(2)), add.s(3, 3)),
    "a chain that ends with a group": chain(add.s(1, 1), group(add.s(1), add.si(2, 2))),
    "a group that gets a list": chain(group(add.s(1, 1), add.s(2, 2)), group(total.s(), total.s(extra=3))),
    "a chord": chord([add.s(1, 1), add.s(2, 2)], total.s()),
    "a chord with an immutable body": chord([add.s(1, 1), add.s(2, 2)], add.si(7, 7)),
    "a chord whose body is a chain": chord([add.s(1, 1)], chain(total.s(), add.s(1))),
    "a chord whose body is a group": chord([add.s(1, 1), add.s(2, 2)], group(total.s(), total.s(1))),
    "a chord in a chain": chain(add.s(1, 1), group(add.s(1), add.s(2)), total.s(), add.s([])),
    "a chord in a chord": chord([chord([add.s(1, 1), add.s(2, 2)], total.s()), add.s(3, 3)], total.s()),
    "a group of one in a chain": chain(add.s(1, 1), group(add.s(2)), add.s(3)),
    "a group of one before a task": group(add.s(1, 1)) | total.s(),
    "an empty group in a chain": chain(add.s(1, 1), group(), add.s(1)),
    "starmap": add.starmap([(1, 2), (3, 4)]),
    "map": xmap(add.s(), [1, 2, 3], app=app),
    "starmap in a chain": chain(add.starmap([(1, 2), (3, 4)]), total.s()),
    "a mapping as result": chain(total.s([1]), add.s([2])),
    "no result": chain(forget.s(1), total.s()),
    "text with braces": chain(add.s("{{ x }} {% if", "}}\"'"), add.s("{# y #}")),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_canvas_returns_the_result_of_celery(shape: str) -> None:
    signature = SHAPES[shape]
    expected, expected_calls = of_celery(signature), sorted(map(repr, calls))
    calls.clear()

    report, result = run(signature)

    assert report.exit_code == 0, report.error
    assert result == expected
    assert sorted(map(repr, calls)) == expected_calls


PARTIAL = [
    add.s(2),
    chain(add.s(2), add.s(3)),
    group(add.s(2), add.si(3, 3), chain(add.s(4), add.s(5))),
    chord([add.s(2), add.s(3)], total.s()),
    chain(group(add.s(2), add.s(3)), total.s()),
]


@pytest.mark.parametrize("signature", PARTIAL, ids=repr)
def test_arguments_of_a_call_come_first(signature: Any) -> None:
    report = Sandbox(app=app).run(Plan.from_canvas(signature, args=[1]))

    found = convert(signature, [1]).value({step.name: step.data for step in report.steps})
    assert found == signature.apply((1,)).get()


def test_chunks_are_lists_of_results() -> None:
    report, result = run(add.chunks([(n, n) for n in range(5)], 2))
    assert report.exit_code == 0
    assert result == [[0, 2], [4, 6], [8]]


NUMBERS = st.integers(-9, 9)
#: First tasks, which have all of their arguments, and later tasks, which receive the previous result.
FIRST = st.builds(add.s, NUMBERS, NUMBERS) | st.builds(total.s, st.lists(NUMBERS, max_size=2))
LATER = (
    st.builds(add.s, NUMBERS)
    | st.builds(add.si, NUMBERS, NUMBERS)
    | st.builds(lambda n: add.s(y=n), NUMBERS)
    | st.builds(total.s, NUMBERS)
    | st.just(total.s())
)


def canvases(first: st.SearchStrategy[Any], depth: int) -> st.SearchStrategy[Any]:
    """Canvases of any shape whose first tasks come from `first`."""
    if not depth:
        return first
    inner, later = canvases(first, depth - 1), canvases(LATER, depth - 1)
    members = st.lists(inner, min_size=1, max_size=3)
    return st.one_of(
        first,
        st.builds(lambda head, tail: chain(head, *tail), inner, st.lists(later, min_size=1, max_size=2)),
        st.builds(group, members),
        st.builds(chord, members, later),
    )


CANVASES = canvases(FIRST, 2)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(CANVASES)
def test_generated_canvases_return_the_results_of_celery(signature: Any) -> None:
    calls.clear()
    expected, expected_calls = of_celery(signature), sorted(map(repr, calls))
    calls.clear()

    report, result = run(signature)

    assert report.exit_code == 0, report.error
    assert result == expected
    assert sorted(map(repr, calls)) == expected_calls


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(CANVASES, st.integers(0, 20))
def test_generated_canvases_are_compensated_once_and_in_reverse(signature: Any, at: int) -> None:
    global failing  # noqa: PLW0603
    calls.clear()
    failing = at % len(convert(signature).steps)
    sandbox = Sandbox(app=app)
    try:
        report = sandbox.run(plan_of(signature))
    finally:
        failing = -1

    assert report.state == "undone", report.summary
    assert (report.left_over, report.in_doubt) == ([], [])
    done = [call for call in calls if not call[0].startswith("take back")]
    undone = [(name.removeprefix("take back "), args) for name, args in calls if name.startswith("take back")]
    # The failed task may have acted: its compensation runs too, but its call is not in the log.
    assert len(undone) == len(done) + 1
    for call in done:
        undone.remove(call)
    levels = {step.name: step.level for step in report.steps}
    order = [name.removesuffix("@undo") for name in sandbox.done if name.endswith("@undo")]
    assert len(order) == len(set(order)) == len(done) + 1
    assert [levels[name] for name in order] == sorted((levels[name] for name in order), reverse=True)


def step_of(signature: Signature[Any], **undo: Any) -> Any:
    return Plan.from_canvas(signature, **undo).to_dict()["steps"]["add"]


def test_compensation_is_a_task_a_name_a_signature_or_none() -> None:
    first = chain(add.s(1, 2), add.s(3))
    undo = Plan.from_canvas(first, undo={"unit.add": undo_add}).to_dict()["steps"]["add-2"]["undo"]
    assert undo["with"]["args"] == ["{{ steps['add'].data.result | default(none) }}", 3]
    assert undo == Plan.from_canvas(first, undo={add: "unit.undo_add"}).to_dict()["steps"]["add-2"]["undo"]
    own = step_of(add.s(1, 2), undo={add: undo_add.s("{{ data.result | default(none) }}")})
    assert own["undo"]["with"] == {"task": "unit.undo_add", "args": ["{{ data.result | default(none) }}"]}
    assert step_of(add.s(1, 2), undo={add: "none"})["undo"] == "none"
    assert "undo" not in step_of(add.s(1, 2))


def test_template_of_a_missing_field_of_a_result_is_a_problem() -> None:
    plan = Plan.from_canvas(total.s([1]), undo={total: undo_total.s("{{ data.total | default(none) }}")})
    with pytest.raises(PlanError, match=r"data\.total does not exist.*write data\.result\.total"):
        validate(plan)
    validate(Plan.from_canvas(total.s([1]), undo={total: undo_total.s("{{ data.result.total | default(none) }}")}))


def test_registered_compensation_needs_no_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(COMPENSATIONS, "unit.add", undo_add)
    assert step_of(add.s(1, 2))["undo"]["with"] == {"task": "unit.undo_add", "args": [1, 2]}
    assert step_of(add.s(1, 2), undo={add: "none"})["undo"] == "none", (
        "the registered compensation replaced the entry of the plan"
    )


def test_undo_of_a_task_outside_of_the_canvas_is_refused() -> None:
    with pytest.raises(UsageError, match=r"undo names the task unit.total, which is not in the canvas") as refused:
        Plan.from_canvas(chain(add.s(1, 2), forget.s()), undo={total: "none"})
    assert refused.value.remedy == "name one of its tasks: unit.add, unit.forget"


def test_idempotent_tasks_are_named_by_task_or_name() -> None:
    canvas = chain(add.s(1, 2), forget.s(), add.s(3))
    for named in (add, "unit.add"):
        steps = Plan.from_canvas(canvas, idempotent=[named]).steps
        assert {name: step.with_.get("idempotent", False) for name, step in steps.items()} == {
            "add": True, "forget": False, "add-2": True,
        }  # fmt: skip
    with pytest.raises(UsageError, match=r"idempotent names the task unit.total, which is not in the canvas"):
        Plan.from_canvas(canvas, idempotent=[total])


def test_supported_options_of_a_task_are_kept() -> None:
    until = datetime(2030, 1, 2, 3, 4, tzinfo=UTC)
    signature = add.s(1, 2).set(
        queue="sums", priority=5, expires=until, soft_time_limit=7, time_limit=9, headers={"tenant": "a"}
    )
    step = step_of(signature)
    assert step["with"]["queue"] == "sums"
    assert step["with"]["options"] == {
        "priority": 3, "expires": until.isoformat(), "soft_time_limit": 7, "time_limit": 9, "headers": {"tenant": "a"},
    }  # fmt: skip
    assert step["timeout"] == "1h"
    assert step_of(add.s(1, 2), timeout="5m")["timeout"] == "5m"
    validate(Plan.from_canvas(signature))


def test_delay_is_a_timer_step() -> None:
    until = datetime(2030, 1, 2, 3, 4, tzinfo=UTC)
    steps = Plan.from_canvas(chain(add.s(1, 2), add.s(3).set(countdown=90), add.s(4).set(eta=until))).to_dict()["steps"]
    assert steps["add-2-delay"] == {"op": "timer.wait.execute", "with": {"delay": 90}, "after": ["add"]}
    assert steps["add-2"]["after"] == ["add-2-delay"]
    assert steps["add-3-delay"]["with"] == {"until": until.isoformat()}

    calls.clear()
    report, result = run(chain(add.s(1, 2), add.s(3).set(countdown=90)))
    assert result == 6
    assert report.step("add-2-delay").status == "unchanged"
    assert report.step("add-2-delay").duration_s == pytest.approx(90, abs=5)


@pytest.mark.parametrize(
    ("signature", "why", "remedy"),
    [
        (
            add.s(1, 2).set(link_error=forget.s()),
            "unit.add has the option link_error",
            "name the compensation of the task",
        ),
        (add.s(1, 2).set(serializer="pickle"), "has the option serializer", "remove it: arguments are stored as JSON"),
        (group(add.s(1, 2)).set(queue="x"), "the group has the option queue", "set queue on each task of the group"),
        (add.s(1, datetime(2030, 1, 1, tzinfo=UTC)), "an argument of type datetime, which is not JSON", "pass text"),
        (add.s(1, 2).set(shadow="x"), "has unsupported options: shadow", "remove other options"),
        (add, "is not a signature", "pass one, such as"),
    ],
)
def test_unsupported_option_of_a_task_is_refused(signature: Any, why: str, remedy: str) -> None:
    with pytest.raises(UsageError, match=why) as refused:
        Plan.from_canvas(signature)
    assert remedy in refused.value.remedy


def test_link_of_a_task_is_refused_by_name() -> None:
    linked = add.s(1, 2)
    linked.link(total.s())
    with pytest.raises(UsageError, match="the option link, which a step cannot keep") as refused:
        Plan.from_canvas(linked)
    assert refused.value.remedy == "make the callback the next task of the chain"


def test_expressions_become_templates_and_text_stays_text() -> None:
    args = step_of(add.s(E.params.order, "{{ params.order }}"))["with"]["args"]
    assert args == ["{{ params.order }}", '{{ "{{ params.order }}" }}']


def test_result_larger_than_a_message_reaches_the_next_task() -> None:
    _, result = run(chain(total.s("x" * 1_000_000), total.s()))
    assert result["total"]["total"] == "x" * 1_000_000


def test_default_name_of_the_plan_lists_its_tasks() -> None:
    assert Plan.from_canvas(chain(add.s(1, 2), add.s(3), total.s())).name == "add-add-2-total"
    assert Plan.from_canvas(add.s(1, 2), name="sum").name == "sum"


def test_serialized_signature_is_converted() -> None:
    signature = chain(add.s(1, 1), group(add.s(1), add.s(2)), total.s())
    assert Plan.from_canvas(Signature.from_dict(dict(signature), app=app)) == Plan.from_canvas(signature)

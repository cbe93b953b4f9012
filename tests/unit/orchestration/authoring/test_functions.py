"""Functions as operations: validation at registration, and arguments of calls."""

from __future__ import annotations

import asyncio
import logging
import re
import sys
import threading
import time
from typing import Any

import pytest

from longshore.orchestration import Context, Plan, PlanError, Prediction, Result, operation, validate
from longshore.orchestration.authoring.context import current_step
from longshore.orchestration.errors import (
    ConfigError,
    InDoubt,
    OperationError,
    Permanent,
    Preflight,
    StepTimeout,
    Transient,
)
from longshore.orchestration.monitoring.output import _Copy
from longshore.orchestration.operations import Kind, find
from longshore.orchestration.testing import Sandbox
from longshore.tasks.implementation import implementation

pytestmark = pytest.mark.usefixtures("own_registry")


def test_function_signature_defines_parameters() -> None:
    @operation("unit.greet", read_only=True)
    def greet(name: str, times: int = 1, *, loud: bool = False) -> str:
        """Say hello."""
        return f"hello {name}" * times + "!" * loud

    found = find("unit.greet")
    assert (found.kind, found.summary, found.queue) == (Kind.READ_ONLY, "Say hello.", "functions")
    assert list(found.params.model_fields) == ["name", "times", "loud"]
    assert greet("ann") == "hello ann", "the decorator changed the function"

    plan = Plan("p")
    plan.step("a", "unit.greet", name="ann", time=2)
    with pytest.raises(PlanError, match=r"unit.greet has no parameter 'time'; it has name, times, loud"):
        validate(plan)


def test_unnamed_parameters_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"declare each parameter by name"):

        @operation("unit.many")
        def many(*names: str) -> None: ...


def test_function_name_is_unique() -> None:
    @operation("unit.once")
    def once() -> None: ...

    with pytest.raises(ValueError, match="registered twice"):
        operation("unit.once")(lambda: None)


def test_context_is_injected_by_type_or_name() -> None:
    seen: list[tuple[Any, ...]] = []

    @operation("unit.look")
    def look(where: Context, n: int) -> Result:
        seen.append(
            (where.idempotency_key, where.attempt, where.item, where.host.name, where.cancelled, list(where.results))
        )
        return Result(data={"n": n}, changed=False)

    plan = Plan("p")
    plan.step("first", "noop.execute", data={"x": 1})
    plan.step("look", "unit.look", n="{{ item }}").after("first").foreach([7, 8])

    report = Sandbox(hosts=["web1"]).run(plan, run_id="r")

    assert seen == [("r.look@0", 1, 7, "web1", False, ["first"]), ("r.look@1", 1, 8, "web1", False, ["first"])]
    assert report.step("look").status == "unchanged"
    assert [data["n"] for data in report.step("look").data["results"]] == [7, 8]


def test_completed_function_is_not_called_again() -> None:
    acts: list[int] = []

    @operation("unit.act")
    def act(n: int) -> None:
        acts.append(n)

    @act.done
    def done(n: int) -> Result | None:
        return Result(data={"found": n}) if acts else None

    plan = Plan("p")
    plan.step("a", "unit.act", n=1)
    sandbox = Sandbox()
    sandbox.vanish("a")

    report = sandbox.run(plan)

    assert acts == [1]
    assert (report.step("a").status, report.step("a").attempts, report.step("a").data) == ("changed", 2, {"found": 1})


def test_non_repeatable_function_is_unknown_when_its_worker_is_lost() -> None:
    acts: list[int] = []

    @operation("unit.act")
    def act() -> None:
        acts.append(1)

    plan = Plan("p")
    plan.step("a", "unit.act")
    sandbox = Sandbox()
    sandbox.vanish("a")

    report = sandbox.run(plan)

    assert (acts, report.step("a").status, report.left_over) == ([1], "unknown", ["a"])


def test_named_undo_receives_data_before_and_parameters() -> None:
    undone: list[tuple[Any, ...]] = []

    @operation("unit.create", undo="unit.delete")
    def create(name: str) -> dict[str, str]:
        return {"id": f"id of {name}"}

    @create.before
    def before() -> dict[str, str]:
        return {"was": "nothing"}

    @operation("unit.delete")
    def delete(id: str, was: str, name: str, more: int = 3) -> None:  # noqa: A002
        undone.append((id, was, name, more))

    with pytest.raises(ConfigError, match="has an undo already"):
        create.undo(lambda: None)

    plan = Plan("p")
    plan.step("a", "unit.create", name="x")
    plan.step("b", "noop.execute", fail=True).after("a")
    assert Sandbox().run(plan).state == "undone"
    assert undone == [("id of x", "nothing", "x", 3)]


def test_undo_without_required_data_fails_with_the_reason() -> None:
    @operation("unit.create", undo="unit.delete")
    def create() -> None:
        raise RuntimeError("half-way")

    @operation("unit.delete")
    def delete(id: str) -> None: ...  # noqa: A002

    plan = Plan("p")
    plan.step("a", "unit.create")
    report = Sandbox().run(plan)

    assert report.state == "undo_failed"
    undo = report.step("a").undo
    assert undo is not None
    assert "the undo unit.delete needs id, which the step did not record" in (undo.error or "")


def test_only_declared_errors_are_retried() -> None:
    @operation("unit.away", retry_on=(ConnectionError,))
    def away(ctx: Context, how: str) -> None:
        if ctx.attempt < 3:
            raise ConnectionError("away") if how == "passes" else ValueError("wrong")

    plan = Plan("p", on_error="continue")
    plan.step("passes", "unit.away", how="passes")
    plan.step("stays", "unit.away", how="stays")
    report = Sandbox().run(plan)

    assert (report.step("passes").status, report.step("passes").attempts) == ("changed", 3)
    assert (report.step("stays").status, report.step("stays").attempts) == ("failed", 1)


def test_prediction_may_be_a_string() -> None:
    from longshore.tasks.implementation import implementation

    @operation("unit.act")
    def act(n: int) -> None: ...

    plain = implementation("unit.act").predict(Context("r", "s", "p"), find("unit.act").params(n=1))
    act.predict(lambda n: f"would act on {n}")
    prediction = implementation("unit.act").predict(Context("r", "s", "p"), find("unit.act").params(n=1))

    assert plain == Prediction("would call unit.act", changed=None)
    assert prediction.action == "would act on 1"


TOKEN = "{{ secret('env:LONGSHORE_SECRET_UNIT') }}"  # noqa: S105 - a reference


def test_function_secret_is_redacted_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGSHORE_SECRET_UNIT", "correct-horse")
    seen: list[str] = []

    @operation("unit.sign", secrets=["token"])
    def sign(ctx: Context, token: str, fails: bool = False) -> dict[str, str]:
        seen.append(token)
        ctx.log(f"signing with {token}")
        if fails:
            raise RuntimeError(f"{token} is wrong")
        return {"signed": f"by {token}"}

    plan = Plan("p", on_failure="keep")
    plan.step("good", "unit.sign", token=TOKEN).undo("none")
    plan.step("bad", "unit.sign", token=TOKEN, fails=True)

    report = Sandbox().run(plan)

    assert seen == ["correct-horse"] * 2
    assert report.step("good").data == {"signed": "by ***"}
    assert report.step("bad").error == "RuntimeError: *** is wrong"
    assert "correct-horse" not in report.model_dump_json()
    with pytest.raises(ConfigError, match="names 'tokn', which is not a parameter"):
        operation("unit.sing", secrets=["tokn"])(lambda _token: None)


def test_secret_of_one_step_is_redacted_in_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGSHORE_SECRET_UNIT", "correct-horse")

    @operation("unit.takes", secrets=["token"])
    def takes(token: str) -> None: ...

    @operation("unit.comes-across")
    def reads(ctx: Context, fails: bool = False) -> dict[str, str]:
        ctx.log("it is correct-horse")
        if fails:
            raise RuntimeError("correct-horse is wrong")
        return {"found": "the correct-horse"}

    plan = Plan("p", on_failure="keep")
    first = plan.step("before", "unit.comes-across").undo("none")
    given = plan.step("given", "unit.takes", token=TOKEN).undo("none").after(first)
    plan.step("after", "unit.comes-across", fails=True).after(given)
    plan.step("none", "unit.takes", token=TOKEN.replace("UNIT", "NONE")).after("after")

    report = Sandbox().run(plan)

    assert report.step("before").data == {"found": "the ***"}
    assert report.step("after").error == "RuntimeError: *** is wrong"
    assert "correct-horse" not in report.model_dump_json()


def test_unsupported_secret_is_refused() -> None:
    @operation("unit.plain")
    def plain(token: str) -> None: ...

    plan = Plan("p")
    plan.step("a", "unit.plain", token=TOKEN)
    with pytest.raises(PlanError, match="would be visible"):
        validate(plan)


@pytest.mark.parametrize(
    ("error", "attempts"),
    [
        (ValueError("no answer"), 3),
        (OperationError("no answer"), 3),
        (StepTimeout("too late"), 3),
        (Permanent("the card is stolen"), 1),
        (Preflight("no such account"), 1),
        (InDoubt("no answer after the call"), 1),
    ],
)
def test_retry_of_a_step_applies_to_all_errors_except_permanent_errors(error: Exception, attempts: int) -> None:
    @operation("unit.pays")
    def pays() -> None:
        raise error

    plan = Plan("p", on_failure="keep")
    plan.step("pay", "unit.pays").retry(2)
    unpolicied = Plan("q", on_failure="keep")
    unpolicied.step("pay", "unit.pays")

    assert Sandbox().run(plan).step("pay").attempts == attempts
    assert Sandbox().run(unpolicied).step("pay").attempts == 1


def test_output_of_a_function_has_prints_log_records_and_tracebacks() -> None:
    @operation("unit.talks")
    def talks(ctx: Context) -> None:
        print("a printed line")
        logging.getLogger("shop").warning("a logged line")
        current = current_step()
        assert current is not None
        current.log("a line of the context")
        threading.Thread(target=print, args=("a line of a thread",)).start()
        raise ValueError("no card")

    plan = Plan("p", on_failure="keep")
    plan.step("talk", "unit.talks")
    sandbox = Sandbox()
    report = sandbox.run(plan)

    lines = [(stream, line) for _, stream, line in sandbox.store.log(report.run_id, 0)]
    assert lines[:3] == [
        ("stdout", "a printed line"),
        ("", "WARNING shop: a logged line"),
        ("", "a line of the context"),
    ]
    assert ("stdout", "a line of a thread") in lines
    assert ("stderr", "ValueError: no card") in lines
    assert current_step() is None
    assert not isinstance(sys.stdout, _Copy)


def test_secret_that_a_function_prints_is_redacted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGSHORE_SECRET_UNIT", "correct-horse")

    @operation("unit.leaks", secrets=["token"])
    def leaks(token: str) -> None:
        print(f"signing with {token}")
        raise RuntimeError(f"{token} is wrong")

    plan = Plan("p", on_failure="keep")
    plan.step("leak", "unit.leaks", token=TOKEN)
    sandbox = Sandbox()
    report = sandbox.run(plan)

    lines = [line for _, _, line in sandbox.store.log(report.run_id, 0)]
    assert "signing with ***" in lines
    assert "correct-horse" not in "\n".join(lines)


def test_coroutine_functions_share_one_event_loop() -> None:
    loops = set()

    @operation("unit.fetch")
    async def fetch(n: int) -> dict[str, int]:
        await asyncio.sleep(0)
        loops.add(asyncio.get_running_loop())
        return {"n": n}

    @fetch.undo
    async def forget(n: int, data: dict[str, int] | None) -> None:
        loops.add(asyncio.get_running_loop())
        assert data == {"n": n}

    plan = Plan("p")
    plan.step("first", "unit.fetch", n=1)
    second = plan.step("second", "unit.fetch", n="{{ steps.first.data.n + 1 }}").after("first")
    plan.step("third", "noop.execute", fail=True).after(second)
    report = Sandbox().run(plan)

    assert report.step("second").data == {"n": 2}
    assert [report.step(name).undo.status for name in ("first", "second")] == ["undone", "undone"]
    assert len(loops) == 1


def test_coroutine_is_cancelled_at_the_deadline_and_cleans_up() -> None:
    ended = []

    @operation("unit.hang")
    async def hang() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.3)
            ended.append("cleaned up")

    ctx = Context("run", "step", "plan", deadline=time.monotonic() + 0.1)
    done = implementation("unit.hang")
    with pytest.raises(StepTimeout, match="exceeded its timeout"):
        done.act(ctx, find("unit.hang").params(), {})
    assert ended == ["cleaned up"]


def test_error_of_a_coroutine_is_retried_like_that_of_a_function() -> None:
    @operation("unit.flaky", retry_on=(ConnectionError,))
    async def flaky() -> None:
        raise ConnectionError("not yet")

    with pytest.raises(Transient, match="ConnectionError: not yet"):
        implementation("unit.flaky").act(Context("run", "step", "plan"), find("unit.flaky").params(), {})


def test_step_accepts_the_function_as_its_operation() -> None:
    @operation("unit.charge")
    def charge(ctx: Context, order: str, amount: int, *, note: str = "") -> None: ...

    by_name, by_function = Plan("p"), Plan("p")
    first = by_name.step("first", "unit.charge", order="o-7", amount=1)
    by_name.step("second", "unit.charge", order=first.data.order, amount=2, note="x").undo("unit.charge", order="a")
    again = by_function.step("first", charge, "o-7", 1)
    by_function.step("second", charge, again.data.order, amount=2, note="x").undo("unit.charge", order="a")

    assert by_function == by_name


@pytest.mark.parametrize(
    ("args", "params", "why"),
    [
        ((), {}, "unit.charge needs the parameters order and amount"),
        (("o-7",), {}, "unit.charge needs the parameter amount"),
        (("o-7",), {"amount": 1, "typo": 3}, "unit.charge has no parameter 'typo'; it has order, amount, note"),
        (("o-7",), {"order": "o-8", "amount": 1}, "unit.charge: the parameter 'order' is given twice"),
        (("o-7", 1, "x"), {}, "unit.charge takes 2 parameters by position, and 3 are given"),
    ],
)
def test_wrong_parameters_of_an_operation_are_one_error(
    args: tuple[Any, ...], params: dict[str, Any], why: str
) -> None:
    @operation("unit.charge")
    def charge(ctx: Context, order: str, amount: int, *, note: str = "") -> None: ...

    step: Any = Plan("p").step
    with pytest.raises(PlanError, match=re.escape(why)):
        step("x", charge, *args, **params)
    with pytest.raises(PlanError, match="is no operation: decorate the function with @operation"):
        step("x", print)

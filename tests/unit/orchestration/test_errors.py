"""Errors: exit codes through any wrapping, and messages."""

from __future__ import annotations

import pickle
from collections.abc import Callable

import pytest

from longshore.orchestration import errors
from longshore.orchestration.errors import (
    ConfigError,
    LongshoreError,
    OperationError,
    ParamsError,
    PlanError,
    Problem,
    RunConflict,
    RunFailed,
    StoreUnavailable,
    Transient,
    UnknownName,
    UsageError,
    WaitTimeout,
    chain,
    exit_code_of,
)
from longshore.tasks.host.engine import calls


def raised(function: Callable[[], object]) -> BaseException:
    try:
        function()
    except BaseException as error:  # noqa: BLE001 - tests compare any error
        return error
    raise AssertionError("no error was raised")


def wrap(error: BaseException, *, explicit: bool = True) -> BaseException:
    def explicitly() -> None:
        raise RuntimeError("wrapped") from error

    def implicitly() -> None:
        try:
            raise error
        finally:
            raise RuntimeError("wrapped")

    return raised(explicitly if explicit else implicitly)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (LongshoreError("x"), 1),
        (UsageError("x"), 2),
        (PlanError("x"), 2),
        (ParamsError("x"), 2),
        (UnknownName("x"), 2),
        (RunConflict("x"), 2),
        (ConfigError("x"), 2),
        (StoreUnavailable("x"), 1),
        (WaitTimeout("x"), 1),
        (RunFailed("x", report=None, exit_code=3), 3),
        (RunFailed("x", report=None, exit_code=1), 1),
        (OperationError("x"), 1),
    ],
    ids=lambda value: type(value).__name__,
)
def test_wrapped_error_keeps_its_exit_code(error: LongshoreError, code: int) -> None:
    once = wrap(error)
    twice = wrap(wrap(error, explicit=False))

    assert [exit_code_of(found) for found in (error, once, twice)] == [code, code, code]


def test_foreign_error_exits_1() -> None:
    assert exit_code_of(ValueError("x")) == 1
    assert exit_code_of(wrap(KeyError("x"))) == 1


def test_outermost_longshore_error_decides_the_exit_code() -> None:
    error = StoreUnavailable("x")
    error.__cause__ = PlanError("y")

    assert exit_code_of(wrap(error)) == 1


def test_circular_error_causes_terminate() -> None:
    one, two = ValueError("1"), ValueError("2")
    one.__cause__, two.__cause__ = two, one

    assert list(chain(one)) == [one, two]
    assert exit_code_of(one) == 1


def test_grouped_error_keeps_its_exit_code() -> None:
    assert exit_code_of(ExceptionGroup("several", [ValueError("x"), PlanError("y")])) == 2


@pytest.mark.parametrize(
    "error",
    [
        UsageError("a", remedy="b"),
        PlanError([Problem("p", step="s", line=3), Problem("q")], source="f"),
        OperationError("a", data={"x": 1}),
        Transient("a", remedy="b", data={"x": 1}),
        pytest.param(
            RunFailed("a", report={"state": "undone"}, exit_code=3),
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_error_is_picklable(error: LongshoreError) -> None:
    again = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own

    assert type(again) is type(error)
    assert (str(again), again.exit_code) == (str(error), error.exit_code)
    assert repr(again.__dict__) == repr(error.__dict__)


def test_error_text_ends_with_the_remedy() -> None:
    assert str(UsageError("it is so", remedy="do that")) == "it is so: do that"
    assert str(UsageError("it is so")) == "it is so"


@pytest.mark.parametrize(
    ("problem", "text"),
    [
        (Problem("bad"), "bad"),
        (Problem("bad", line=3), "line 3: bad"),
        (Problem("bad", step="a"), "step 'a': bad"),
        (Problem("bad", step="a", line=3), "line 3, step 'a': bad"),
    ],
)
def test_problem_has_a_location(problem: Problem, text: str) -> None:
    assert str(problem) == text
    assert str(PlanError([problem], source="plan.yaml")) == f"plan.yaml: {text}"


def test_first_problem_is_shown_and_others_are_counted() -> None:
    error = PlanError([Problem("one"), Problem("two"), Problem("three")])

    assert str(error) == "one; two; three"
    assert str(PlanError(error.problems, source="p.yaml")) == "p.yaml: one (and 2 more: longshore plan validate)"
    assert str(PlanError([Problem(str(n)) for n in range(7)])) == "0; 1; 2; 3; 4; and 2 more"
    assert [problem.message for problem in error.problems] == ["one", "two", "three"]


def test_module_docstring_lists_every_error_under_one_root() -> None:
    classes = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]

    assert all(issubclass(kind, LongshoreError) for kind in classes)
    assert all(kind.__name__ in str(errors.__doc__) for kind in classes)


@pytest.mark.parametrize(("installed", "remedy"), [(None, "longshore[ssh]"), (object(), "LONGSHORE_DOCKER_HOST")])
def test_ssh_engine_without_its_library_names_the_library(
    installed: object, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "find_spec", lambda name: installed if name == "paramiko" else None)

    error = calls.Calls("ssh://web1")._unreachable(Exception("whatever docker-py writes"))

    assert remedy in str(error.remedy)

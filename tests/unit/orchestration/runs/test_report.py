"""The report of a run: steps, outcomes, left-over effects, and the exit code."""

from __future__ import annotations

import json
from typing import Any

import pytest

from longshore.orchestration import Plan, Report, RunState, StepState, UndoState
from longshore.orchestration.plans.compiled import CompiledPlan
from longshore.orchestration.runs.report import build, summary
from longshore.orchestration.runs.step_report import UndoReport
from longshore.orchestration.states import TERMINAL
from tests.unit.plans import compiled

PLAN = {
    "name": "release",
    "steps": {
        "pull": {"op": "noop.execute"},
        "migrate": {"op": "command.exec.execute", "with": {"argv": ["migrate"]}, "after": ["pull"]},
        "tell": {"op": "noop.execute", "after": ["migrate"], "always": True},
    },
}


def plan(**changes: Any) -> CompiledPlan:
    return compiled(Plan.model_validate(PLAN | changes))


def steps(*rows: dict[str, Any]) -> dict[str, str]:
    """The steps' hash as in Redis, from one row of fields per step."""
    return {
        f"{name}:{i}": value if isinstance(value, str) else json.dumps(value)
        for i, row in enumerate(rows)
        for name, value in row.items()
    }


CHANGED = {"status": "changed", "attempts": "1"}
UNDONE = CHANGED | {"ustatus": "undone"}
FAILED = {"status": "failed", "attempts": "1", "outcome": {"error": "it broke", "host": "web1"}}


def report(state: str, *rows: dict[str, Any], run: dict[str, str] | None = None, **changes: Any) -> Report:
    fields = {"state": state, "started": "1000", "ended": "3500", **(run or {})}
    return build("r1", plan(**changes), fields, steps(*rows), now=9000)


@pytest.mark.parametrize(
    ("code", "state", "rows"),
    [
        # 0: success
        (0, "succeeded", [CHANGED, CHANGED, CHANGED]),
        (0, "succeeded", [{"status": "unchanged", "attempts": "1"}] * 3),
        (0, "succeeded", [CHANGED, {"status": "skipped", "reason": "when: false"}, CHANGED]),
        # 1: failed, and no effect remains or is in doubt
        (1, "undone", [UNDONE, FAILED | {"no_effect": "1"}, CHANGED]),
        (1, "undone", [UNDONE, {"status": "not_run"}, CHANGED]),
        (1, "failed", [FAILED | {"no_effect": "1"}, {"status": "not_run"}, CHANGED]),
        (1, "failed", [{"status": "not_run"}] * 3),
        # 3: an effect remains
        (3, "partial", [CHANGED, FAILED, CHANGED]),
        (3, "failed", [CHANGED, FAILED, CHANGED]),
        (3, "undo_failed", [CHANGED | {"ustatus": "undo_failed"}, FAILED, CHANGED]),
        (3, "undone", [UNDONE, CHANGED | {"ustatus": "not_undoable"}, CHANGED]),
        (3, "undone", [UNDONE, {"status": "unknown", "attempts": "1", "ustatus": "not_undoable"}, CHANGED]),
        # 3: an effect is in doubt
        (3, "undone", [UNDONE, FAILED | {"ustatus": "not_undoable"}, CHANGED]),
        (3, "failed", [FAILED, {"status": "not_run"}, CHANGED]),
        # 3: a failed always step, for each end of the run
        (3, "undone", [UNDONE, FAILED | {"ustatus": "not_undoable"}, FAILED]),
        (3, "failed", [FAILED, {"status": "not_run"}, FAILED]),
        (3, "failed", [FAILED, {"status": "not_run"}, {"status": "unknown", "attempts": "1"}]),
    ],
)
def test_exit_code_reflects_the_outcome(code: int, state: str, rows: list[dict[str, Any]]) -> None:
    assert report(state, *rows).exit_code == code


@pytest.mark.parametrize("state", sorted(set(RunState) - TERMINAL))
def test_live_run_has_no_exit_code(state: RunState) -> None:
    found = report(state, CHANGED)

    assert found.exit_code is None
    assert not found.ended
    assert found.left_over == []


def test_step_with_undo_none_is_not_left_over() -> None:
    migrate = PLAN["steps"]["migrate"] | {"undo": "none"}  # type: ignore[index]
    found = report("undone", UNDONE, CHANGED, CHANGED, steps=PLAN["steps"] | {"migrate": migrate})  # type: ignore[operator]

    assert (found.exit_code, found.left_over) == (1, [])


def test_left_over_steps_are_in_plan_order() -> None:
    found = report("undo_failed", CHANGED | {"ustatus": "undo_failed"}, CHANGED | {"ustatus": "not_undoable"}, CHANGED)

    assert found.left_over == ["pull", "migrate"]


def test_report_lists_every_step_of_a_pending_run() -> None:
    found = build("r1", plan(), {}, {}, now=5)

    assert found.state is RunState.PENDING
    assert [(step.name, step.level, step.status) for step in found.steps] == [
        ("pull", 0, StepState.PENDING),
        ("migrate", 1, StepState.PENDING),
        ("tell", 2, StepState.PENDING),
    ]
    assert (found.started_at, found.duration_s, found.error, found.exit_code) == (None, None, None, None)
    assert found.summary == "3 steps, 3 pending"


def test_report_shows_a_steps_attempts_times_tasks_host_and_data() -> None:
    row = {
        "status": "changed",
        "attempts": "3",
        "started": "1000",
        "ended": "2500",
        "task_ids": "id1 id2 id3",
        "outcome": {"host": "web1", "data": {"id": "sha256:1"}, "status": 0.5},
    }

    step = report("running", row).step("pull")

    assert (step.op, step.status, step.changed, step.attempts) == ("noop.execute", StepState.CHANGED, True, 3)
    assert (step.duration_s, step.task_ids, step.data) == (1.5, ["id1", "id2", "id3"], {"id": "sha256:1"})
    (host,) = step.hosts
    assert (host.host, host.status, host.changed, host.data) == ("web1", "changed", True, {"id": "sha256:1"})


def test_report_shows_undo_with_its_step() -> None:
    row = CHANGED | {
        "ustatus": "undo_failed",
        "uattempts": "2",
        "ustarted": "4000",
        "uended": "4250",
        "utask_ids": "u1 u2",
        "uoutcome": {"error": "no"},
    }

    undo = report("undo_failed", row, FAILED, CHANGED).step("pull").undo

    assert undo == UndoReport(
        status=UndoState.UNDO_FAILED, error="no", attempts=2, duration_s=0.25, task_ids=["u1", "u2"]
    )


def test_report_shows_reasons_of_skips_and_missing_undos() -> None:
    not_undoable = CHANGED | {"ustatus": "not_undoable", "ureason": "the step has no undo"}

    found = report("undone", not_undoable, {"status": "skipped", "reason": "why"}, CHANGED)

    assert found.step("migrate").reason == "why"
    undo = found.step("pull").undo
    assert undo is not None
    assert undo.error == "the step has no undo"


def test_report_shows_the_runs_times_cause_actor_and_error() -> None:
    run = {"cause": "failure", "actor": "ops", "err_step": "1", "err": "it broke"}

    found = report("undone", UNDONE, FAILED, CHANGED, run=run)

    assert (found.run_id, found.plan, found.cause, found.actor) == ("r1", "release", "failure", "ops")
    assert found.started_at == "1970-01-01T00:00:01.000+00:00"
    assert found.duration_s == 2.5
    assert found.error is not None
    assert (found.error.step, found.error.message) == ("migrate", "it broke")


def test_duration_of_a_live_run_lasts_until_now() -> None:
    assert build("r1", plan(), {"state": "running", "started": "1000"}, {}, now=9000).duration_s == 8.0


def test_run_error_defaults_to_the_first_steps() -> None:
    error = report("partial", CHANGED, FAILED, CHANGED).error

    assert error is not None
    assert (error.step, error.message) == ("migrate", "it broke")


def test_summary_counts_states_in_order_and_omits_zeros() -> None:
    found = report("undone", UNDONE, FAILED | {"ustatus": "not_undoable"}, {"status": "unchanged", "attempts": "1"})

    assert found.summary == "3 steps, 1 changed, 1 unchanged, 1 failed; 1 undone, 1 not undoable"
    assert summary(found.steps[:1]) == "1 step, 1 changed; 1 undone"
    assert summary([]) == "0 steps"


def test_summary_of_a_failure_without_a_change_begins_with_that() -> None:
    nothing = report(
        "failed", FAILED | {"no_effect": "1"}, {"status": "not_run"}, {"status": "unchanged", "attempts": "1"}
    )
    lost = report("failed", FAILED | {"no_effect": "1"}, run={"doubts": "host web1 could not be asked"})
    cleaned = report("failed", FAILED | {"no_effect": "1"}, {"status": "not_run"}, CHANGED)

    assert nothing.summary == "nothing was changed; 3 steps, 1 unchanged, 1 failed, 1 not run"
    assert lost.summary == "3 steps, 2 pending, 1 failed"
    assert cleaned.summary == "3 steps, 1 changed, 1 failed, 1 not run"


def test_report_shows_parameters() -> None:
    found = report("undone", UNDONE, run={"params": '{"version": "1.2", "password": "***"}'})

    assert found.params == {"version": "1.2", "password": "***"}
    assert report("undone", UNDONE).params == {}


def test_report_names_steps_held_back_with_the_reason() -> None:
    held = CHANGED | {"ustatus": "held_back", "ureason": "migrate depends on it, and its undo failed"}
    found = report("undo_failed", held, CHANGED | {"ustatus": "undo_failed"}, CHANGED)

    undo = found.step("pull").undo
    assert undo is not None
    assert (undo.status, undo.error) == (UndoState.HELD_BACK, "migrate depends on it, and its undo failed")
    assert (found.left_over, found.exit_code) == (["pull", "migrate"], 3)


def test_report_round_trips_through_json() -> None:
    found = report("undone", UNDONE, FAILED, CHANGED, run={"cause": "failure"})

    again = Report.model_validate_json(found.model_dump_json())

    assert again == found
    assert list(json.loads(found.model_dump_json())) == [
        *(
            "run_id",
            "plan",
            "params",
            "state",
            "cause",
            "exit_code",
            "summary",
            "started_at",
            "duration_s",
            "actor",
            "error",
        ),
        *("steps", "left_over", "in_doubt"),
    ]


def test_stopped_steps_without_compensation_are_named_in_doubt() -> None:
    found = report(
        "undone", UNDONE, FAILED | {"ustatus": "not_undoable"}, run={"doubts": "host web1 could not be asked"}
    )

    assert (found.exit_code, found.left_over) == (3, [])
    assert found.in_doubt == ["migrate", "host web1 could not be asked"]


def test_unfenced_steps_are_in_doubt() -> None:
    found = report("undone", UNDONE, run={"doubts": "host web1 did not answer\nhost web2 did not answer"})

    assert (found.exit_code, found.left_over) == (3, [])
    assert found.in_doubt == ["host web1 did not answer", "host web2 did not answer"]


def test_unknown_step_is_not_in_the_report() -> None:
    with pytest.raises(KeyError, match="nope"):
        report("succeeded").step("nope")


def standings(text: str, at: float, *, healthy: bool, project: str = "shop") -> list[dict[str, Any]]:
    return [{"project": project, "text": text, "at": at, "healthy": healthy}]


def test_report_has_one_standing_for_each_project_and_down_projects_first() -> None:
    failed = FAILED | {"bulk": {"data": {"standing": standings("SHOP IS DOWN", 2.0, healthy=False)}}}
    blog = CHANGED | {
        "ustatus": "undone",
        "uoutcome": {"standing": standings("blog is back", 1.0, healthy=True, project="blog")},
    }
    undone = failed | {"ustatus": "undone", "uoutcome": {"standing": standings("shop is back", 3.0, healthy=True)}}

    assert report("undone", blog, failed, CHANGED).production == ["SHOP IS DOWN", "blog is back"]
    assert report("undone", blog, undone, CHANGED).production == ["blog is back", "shop is back"]
    assert report("running", blog, undone, CHANGED).production == []

"""Starts with the same run id are one run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.processes import Installation, lines, result_of


@pytest.fixture
def counter(tmp_path: Path) -> Path:
    return tmp_path / "count"


@pytest.fixture
def plan(tmp_path: Path, counter: Path) -> Path:
    """A plan of three steps; each execution writes a line into a file."""
    file = tmp_path / "plan.yaml"
    steps = [
        f'  {name}: {{op: command.shell.execute, with: {{command: "echo {name} >> {counter}"}}, after: [{after}]}}'
        for name, after in (("first", ""), ("left", "first"), ("right", "first"))
    ]
    file.write_text("name: counted\nparams: {tag: {default: one}}\nsteps:\n" + "\n".join(steps) + "\n")
    return file


def test_eight_concurrent_starts_with_one_id_are_one_run(workers: Installation, plan: Path, counter: Path) -> None:
    # when
    started = [workers.popen("run", str(plan), "--run-id", "at-once", "-o", "json") for _ in range(8)]
    ended = [result_of(process) for process in started]

    # then
    assert [one.code for one in ended] == [0] * 8, [one.err for one in ended]
    assert {one.json["run_id"] for one in ended} == {"at-once"}
    assert len({one.json["started_at"] for one in ended}) == 1
    assert sum("nothing was started" in one.err for one in ended) == 7
    assert sorted(lines(counter)) == ["first", "left", "right"]
    events = workers.longshore("runs", "events", "at-once", "-o", "json").json
    assert [event["event"] for event in events].count("run_created") == 1
    assert [event["event"] for event in events].count("step_started") == 3


def test_start_with_a_used_run_id_is_the_same_run_or_is_refused(
    workers: Installation, plan: Path, counter: Path
) -> None:
    # given
    run_id = "twice-2.1@web"
    first = workers.longshore("run", str(plan), "--run-id", run_id, "-p", "tag=one")
    assert first.code == 0, first.err

    # when
    same = workers.longshore("run", str(plan), "--run-id", run_id)  # the default equals the value of the first start
    other_parameters = workers.longshore("run", str(plan), "--run-id", run_id, "-p", "tag=two")
    plan.write_text(plan.read_text().replace("echo first", "echo another"))
    other_plan = workers.longshore("run", str(plan), "--run-id", run_id)

    # then
    assert same.code == 0
    assert f"{run_id} exists already; nothing was started" in same.out + same.err
    assert "nothing was started" not in first.out + first.err
    for refused in (other_parameters, other_plan):
        assert (refused.code, refused.out) == (2, "")
        assert len(refused.err.splitlines()) == 1
        assert f"'{run_id}'" in refused.err
        assert f"longshore runs show {run_id}" in refused.err
    assert sorted(lines(counter)) == ["first", "left", "right"]

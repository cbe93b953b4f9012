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


def test_second_start_with_a_run_id_is_the_same_run(workers: Installation, plan: Path, counter: Path) -> None:
    # given
    first = workers.longshore("run", str(plan), "--run-id", "twice-2.1@web")
    assert first.code == 0, first.err

    # when
    second = workers.longshore("run", str(plan), "--run-id", "twice-2.1@web")

    # then
    assert second.code == 0
    assert "twice-2.1@web exists already; nothing was started" in second.out + second.err
    assert "nothing was started" not in first.out + first.err
    assert sorted(lines(counter)) == ["first", "left", "right"]


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


def test_another_plan_with_a_used_run_id_is_refused(workers: Installation, plan: Path, counter: Path) -> None:
    # given
    assert workers.longshore("run", str(plan), "--run-id", "taken").code == 0
    plan.write_text(plan.read_text().replace("echo first", "echo another"))

    # when
    refused = workers.longshore("run", str(plan), "--run-id", "taken")

    # then
    assert refused.code == 2
    assert refused.out == ""
    assert len(refused.err.splitlines()) == 1
    assert "'taken'" in refused.err
    assert "longshore runs show taken" in refused.err
    assert "another" not in lines(counter)


def test_other_parameters_with_a_used_run_id_are_refused(workers: Installation, plan: Path, counter: Path) -> None:
    # given
    assert workers.longshore("run", str(plan), "--run-id", "taken-too", "-p", "tag=one").code == 0

    # when
    refused = workers.longshore("run", str(plan), "--run-id", "taken-too", "-p", "tag=two")
    same = workers.longshore("run", str(plan), "--run-id", "taken-too")

    # then the default equals the value of the first start
    assert refused.code == 2
    assert same.code == 0
    assert len(lines(counter)) == 3

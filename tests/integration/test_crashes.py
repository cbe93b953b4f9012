"""A process is killed once at each crash point, and the run ends as without the crash.

Each case has its own name space and worker. The cases run at the same time, because a case mostly
waits for leases.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from longshore.orchestration import E, Plan, Run
from longshore.tasks.crash_points import POINTS
from tests.integration.conftest import MakeInstallation
from tests.integration.processes import PATIENCE, Installation, Worker, lines, names, tree, wait_for

#: Crash points of a run that succeeds, after the start of its first step.
FORWARD = [point for point in POINTS if not point.startswith("undo.")]
#: Crash points of a run that fails and is undone, from its last step on.
BACKWARD = [point for point in POINTS if point not in {"advance.created", "advance.admitted"}]
#: The number of cases that run at the same time.
AT_ONCE = 4
CASES = [*((point, "forward") for point in FORWARD), *((point, "backward") for point in BACKWARD)]


def arm_command(marker: Path) -> str:
    """A command that arms the crash point: the next process that reaches the point dies, once."""
    return f"if [ ! -e {marker}.armed ]; then touch {marker}.armed; rm {marker}; fi"


def forward(home: Path, marker: Path) -> Plan:
    """A chain of two links, a chord, and a tail; the first link arms the crash."""
    plan = Plan("forward")
    arm = plan.step("arm", "command.shell.execute", command=arm_command(marker), changes=False)
    link = plan.step("link", "file.deploy.execute", path=f"{home}/link.conf", content="new").after(arm)
    left = plan.step("left", "file.deploy.execute", path=f"{home}/left.conf", content="new").after(link)
    once = f"echo once >> {home}/once"
    right = plan.step("right", "command.shell.execute", command=once, creates=f"{home}/once").after(link)
    # Items that wait for other items, and an approval: steps that no worker holds.
    each = plan.step("each", "file.deploy.execute", path=f"{home}/made/{E.item}.conf", content="new")
    each.after(left, right).foreach(["a", "b"]).max_parallel(1)
    ask = plan.approval("ask", timeout="100ms", on_timeout="approve").after(each)
    plan.step("tail", "file.deploy.execute", path=f"{home}/made/tail.conf", content="new").after(ask)
    return plan


def backward(home: Path, marker: Path) -> Plan:
    """Two levels with effects, a step that arms the crash and fails, and an always step."""
    plan = Plan("backward")
    first = plan.step("first", "file.deploy.execute", path=f"{home}/made/first.conf", content="new")
    left = plan.step("left", "file.deploy.execute", path=f"{home}/{E.item}.conf", content="new").after(first)
    left.foreach(["left", "made/other"])
    right = plan.step("right", "file.deploy.execute", path=f"{home}/right.conf", content="as it was", mode="0600")
    right.after(first)
    fail = plan.step("fail", "command.shell.execute", command=f"{arm_command(marker)}; exit 1", changes=False)
    fail.after(left, right)
    bye = plan.approval("bye", timeout="100ms", on_timeout="approve").after(fail).always()
    plan.step("always", "file.deploy.execute", path=f"{home}/always.conf", content="new").after(bye).always()
    return plan


@dataclass
class Case:
    home: Path
    marker: Path
    before: dict[str, tuple[Any, ...]]
    worker: Worker
    run: Run


class Cases:
    """The cases, of which a few run at the same time, in order."""

    def __init__(self, make: MakeInstallation, folders: pytest.TempPathFactory) -> None:
        self._make, self._folders = make, folders
        self._begun: dict[tuple[str, str], Case] = {}

    def __call__(self, point: str, way: str) -> Case:
        first = CASES.index((point, way))
        for each in CASES[first : first + AT_ONCE]:
            if each not in self._begun:
                self._begun[each] = self._begin(*each)
        return self._begun[point, way]

    def _begin(self, point: str, way: str) -> Case:
        folder = self._folders.mktemp("case")
        home, marker = folder / "home", folder / "crashed"
        home.mkdir()
        for name in ("link", "left", "right"):
            (home / f"{name}.conf").write_text("as it was")
        # The points of the first message are armed before the run, because no step can arm them.
        (Path(f"{marker}.armed") if point in {"advance.created", "advance.admitted"} else marker).touch()
        where = self._make()
        worker = where.worker(f"{way}-{point}", "--concurrency", "1", LONGSHORE_CRASH_AT=f"{point}:{marker}")
        worker.start(wait=False)
        plan = forward if way == "forward" else backward
        before = tree(home)
        return Case(home, marker, before, worker, where.run(plan(home, marker)))


@pytest.fixture(scope="module")
def cases(module_installation: MakeInstallation, tmp_path_factory: pytest.TempPathFactory) -> Cases:
    return Cases(module_installation, tmp_path_factory)


def end_of(case: Case) -> None:
    """Wait for the run, and restart its worker after each crash."""

    def ended() -> bool:
        case.worker.keep_alive()
        return case.run.report().ended

    wait_for(f"the end of {case.run}", ended, 2 * PATIENCE)
    assert case.marker.exists(), "no process reached the crash point"


def installation_of(case: Case) -> Installation:
    return case.worker.installation


@pytest.mark.parametrize("point", FORWARD)
def test_succeeding_run_survives_a_crash_at(point: str, cases: Cases) -> None:
    # given
    case = cases(point, "forward")

    # when
    end_of(case)

    # then
    report = case.run.report()
    assert (report.state, report.exit_code, report.left_over) == ("succeeded", 0, [])
    assert {s.name: s.status for s in report.steps} == {
        "arm": "unchanged",
        "link": "changed",
        "left": "changed",
        "right": "changed",
        "each": "changed",
        "ask": "unchanged",
        "tail": "changed",
    }
    attempts = [part.attempts for step in report.steps for part in step.items or [step]]
    assert all(1 <= number <= 2 for number in attempts)
    assert sum(number - 1 for number in attempts) == len(names(case.run, "lease_lost"))
    assert lines(case.home / "once") == ["once"]
    assert sorted(names(case.run, "step_ended")) == ["arm", "ask", "each", "left", "link", "right", "tail"]
    for file in ("link.conf", "left.conf", "made/a.conf", "made/b.conf", "made/tail.conf"):
        assert (case.home / file).read_text() == "new"
    assert_no_index_entry(case)


@pytest.mark.parametrize("point", BACKWARD)
def test_undone_run_survives_a_crash_at(point: str, cases: Cases) -> None:
    # given
    case = cases(point, "backward")

    # when
    end_of(case)

    # then
    report = case.run.report()
    assert (report.state, report.exit_code, report.left_over) == ("undone", 1, []), report
    undone = {step.name: step.undo.status for step in report.steps if step.undo}
    assert undone == {"first": "undone", "left": "undone", "right": "undone"}
    assert report.step("fail").status in {"failed", "unknown"}
    assert report.step("always").status == "changed"
    now = tree(case.home)
    assert now.pop("always.conf")[3] == b"new"
    assert now == case.before
    assert sorted(names(case.run, "undo_ended")) == ["first", "left[0]", "left[1]", "right"]
    assert names(case.run, "undo_ended")[-1] == "first"
    assert_no_index_entry(case)


def assert_no_index_entry(case: Case) -> None:
    """Check that no index of the sweepers names the run."""
    installation = installation_of(case)
    keys = case.run.store.keys
    settled: Callable[[], bool] = lambda: (  # noqa: E731 - a sentence about one thing
        installation.redis.zscore(keys.live, case.run.id) is None
        and installation.redis.zscore(keys.inbox, case.run.id) is None
        and installation.redis.zcard(keys.of(case.run.id).leases) == 0
    )
    wait_for("the indices to be empty", settled)
    case.worker.kill()


def test_every_crash_point_has_a_case() -> None:
    assert {point for point, _ in CASES} == set(POINTS)

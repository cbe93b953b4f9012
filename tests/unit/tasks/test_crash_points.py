"""Crash points: complete in the list, and inactive by default."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from longshore.tasks import crash_points

ROOT = Path(__file__).resolve().parents[3]


def points_in_code() -> list[str]:
    sources = [path for folder in ("orchestration", "tasks", "workers") for path in (ROOT / folder).rglob("*.py")]
    calls = [call for path in sources for call in re.findall(r'\bpoint\(("[^)]*)\)', path.read_text())]
    return [name for call in calls for name in re.findall(r'"([\w.]+)"', call)]


def test_crash_points_in_code_match_the_list() -> None:
    assert set(points_in_code()) == {
        *crash_points.POINTS,
        *crash_points.HELD_POINTS,
        *crash_points.JOB_POINTS,
        *crash_points.STACK_POINTS,
    }
    assert len(set(crash_points.POINTS)) == len(crash_points.POINTS)


@pytest.mark.parametrize("asked", [None, "", "nothing.of.that.name", "step.acted:", "undo.claimed", "step"])
def test_crash_point_is_inactive_by_default(asked: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    def kill(pid: int, number: int) -> None:
        raise AssertionError(f"kill {pid} {number}")

    monkeypatch.setattr(os, "kill", kill)
    if asked is not None:
        monkeypatch.setenv("LONGSHORE_CRASH_AT", asked)

    for name in (*crash_points.POINTS, *crash_points.HELD_POINTS):
        if asked is None or name != asked.partition(":")[0]:
            crash_points.point(name)


def at(asked: str) -> int:
    code = "from longshore.tasks.crash_points import point\npoint('step.claimed')\npoint('step.acted')\n"
    env = dict(os.environ) | {"LONGSHORE_CRASH_AT": asked}
    return subprocess.run([sys.executable, "-c", code], env=env, check=False).returncode


def test_crash_point_kills_the_process() -> None:
    assert at("step.acted") == -signal.SIGKILL
    assert at("step.recorded") == 0


def test_crash_point_with_a_marker_file_kills_once(tmp_path: Path) -> None:
    marker = tmp_path / "died"

    assert at(f"step.acted:{marker}") == -signal.SIGKILL
    assert marker.exists()
    assert at(f"step.acted:{marker}") == 0

"""`longshore completion`, and the names that a shell completes without a server."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from click.shell_completion import BashComplete

from longshore.orchestration.cli.main import call, cli

Captured = pytest.CaptureFixture[str]

PLAN = "name: shop\nsteps: {a: {op: noop.execute}}\n"


def completed(line: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The completions, with their types, of the last argument of a command line."""
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", str(len(f"{line}.".split()) - 1))
    return BashComplete(cli, {}, "longshore", "_LONGSHORE_COMPLETE").complete().splitlines()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_script_calls_longshore_for_the_completion(shell: str, capsys: Captured) -> None:
    assert call(["completion", shell]) == 0
    script = capsys.readouterr().out

    assert f"_LONGSHORE_COMPLETE={shell}_complete" in script
    if (program := shutil.which(shell)) is not None:
        subprocess.run([program, "-n"], input=script, text=True, check=True)

    assert call(["completion", shell, "-o", "json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"shell": shell, "script": script.removesuffix("\n")}


def test_unknown_shell_exits_2(capsys: Captured) -> None:
    assert call(["completion", "tcsh"]) == 2


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("longshore ops show noop", ["plain,noop.execute"]),
        ("longshore ops run timer.", ["plain,timer.wait.execute"]),
        ("longshore explain run-", ["plain,run-conflict", "plain,run-lost", "plain,run-failed"]),
        ("longshore completion z", ["plain,zsh"]),
        ("longshore init pl", ["dir,pl", "plain,plan"]),
        ("longshore init plan --ki", ["plain,--kind"]),
        ("longshore init plan --kind b", ["plain,backup"]),
        ("longshore run sh", ["plain,shop"]),
        ("longshore plan graph sh", ["plain,shop"]),
        ("longshore run ./sh", ["file,./sh"]),
    ],
)
def test_names_are_completed(line: str, expected: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shop.yaml").write_text(PLAN)
    monkeypatch.setenv("LONGSHORE_PLANS", str(tmp_path))

    assert completed(line, monkeypatch) == expected


@pytest.mark.parametrize("url", ["redis://127.0.0.1:1/0", "nonsense", None], ids=str)
@pytest.mark.parametrize("line", ["longshore runs show x", "longshore runs logs r x", "longshore runs prune x"])
def test_completion_without_redis_yields_nothing(
    line: str, url: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setenv("LONGSHORE_STATE_DIR", str(tmp_path / "state"))
    if url is None:
        monkeypatch.delenv("LONGSHORE_REDIS_URL")
    else:
        monkeypatch.setenv("LONGSHORE_REDIS_URL", url)

    assert completed(line, monkeypatch) == []
    assert capsys.readouterr().err == ""
    assert not (tmp_path / "state").exists()  # no embedded Redis was started

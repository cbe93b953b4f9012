"""`longshore doctor`: which findings are printed."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from longshore.orchestration.cli import doctor as command
from longshore.orchestration.cli.main import call
from longshore.orchestration.installation.doctor import Finding


@pytest.mark.parametrize(
    ("arguments", "printed"), [([], ["fine", "odd", "broken"]), (["-q"], ["broken"])], ids=["all", "quiet"]
)
def test_quiet_prints_errors_only(
    arguments: list[str], printed: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    findings = [Finding("fine", "ok"), Finding("odd", "warning"), Finding("broken", "error")]
    monkeypatch.setattr(command, "client", lambda: SimpleNamespace(store=None))
    monkeypatch.setattr(command.checks, "examine", lambda _store: findings)

    assert call(["doctor", *arguments]) == 1

    assert [line.split()[-1] for line in capsys.readouterr().out.splitlines()] == printed

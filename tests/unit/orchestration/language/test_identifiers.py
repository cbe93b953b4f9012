"""Validation of identifiers that become parts of keys and paths."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from longshore.orchestration.errors import BadIdentifier
from longshore.orchestration.language import identifiers
from longshore.orchestration.settings import get_settings
from longshore.tasks.attempts.receipts import Ledger
from longshore.tasks.host.backups import Backups
from longshore.tasks.implementation import Context
from longshore.tasks.operations.compose import revisions
from longshore.tasks.operations.compose.config_hashes import aliases

BAD = [
    "x/../../outside",
    "..",
    ".",
    "../x",
    "/etc",
    "a/b",
    "a\\b",
    "a\0b",
    "a\n",
    "a}:run",
    "a{b",
    "a b",
    "ä",
    "x" * 300,
]


@pytest.mark.parametrize("text", [*BAD, None, 7, ["a"]])
def test_path_like_text_is_no_identifier(text: Any) -> None:
    for kind in (identifiers.run_id, identifiers.instance, identifiers.part, identifiers.project):
        with pytest.raises(BadIdentifier, match="must match"):
            kind(text)


def test_valid_identifier_is_returned() -> None:
    assert identifiers.run_id("release-1.2@shop") == "release-1.2@shop"
    assert identifiers.instance("") == ""
    assert identifiers.instance("0123456789abcdef.3.12") == "0123456789abcdef.3.12"
    assert identifiers.part("step.one@12") == "step.one@12"


@pytest.mark.parametrize("text", BAD)
def test_invalid_identifier_creates_no_path(text: str, tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "state", "longshore")
    with pytest.raises(BadIdentifier):
        ledger.seen("run", text, 7)
    with pytest.raises(BadIdentifier):
        ledger.version(text, "instance_id")
    with pytest.raises(BadIdentifier):
        ledger.receipt("run", text, "step", 1, "", alone=True)
    with pytest.raises(BadIdentifier):
        ledger.receipt("run", "instance_id", text, 1, "", alone=True)
    for ctx in (Context(text, "step", "p"), Context("run", text, "p")):
        with pytest.raises(BadIdentifier):
            Backups(ctx)
    with pytest.raises(BadIdentifier):
        revisions.folder(text)
    with pytest.raises(BadIdentifier):
        aliases(text)
    assert not (tmp_path / "state").exists()
    assert not get_settings().state_dir.exists()

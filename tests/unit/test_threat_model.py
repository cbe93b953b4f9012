"""The threat model: each line names existing tests."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "concepts" / "security.md").read_text()
#: The tables about the rights and the attacks of each role.
TABLES = ("## Rights of each role", "## Attacks and responses")


def names_of_tests() -> set[str]:
    found = (re.findall(r"^def (test_\w+)\(", path.read_text(), re.M) for path in (ROOT / "tests").rglob("test_*.py"))
    return {name for names in found for name in names}


def test_tests_named_in_the_threat_model_exist() -> None:
    named = set(re.findall(r"`(test_\w+)`", PAGE))
    assert len(named) > 30
    assert named - names_of_tests() == set()


def test_every_threat_model_line_names_a_test() -> None:
    for title in TABLES:
        section = PAGE.partition(f"{title}\n")[2].partition("\n## ")[0]
        rows = [line for line in section.splitlines() if line.startswith("| ")][1:]
        assert len(rows) > 10, title
        assert [row for row in rows if not re.search(r"`test_\w+`[^|]*\|$", row)] == []

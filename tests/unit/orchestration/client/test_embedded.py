"""The imports that a client passes to the embedded worker."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from longshore.orchestration.client import embedded
from longshore.orchestration.settings import Settings


def test_embedded_worker_finds_modules_like_its_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mods").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f"mods{os.pathsep}/elsewhere")
    settings = Settings(state_dir=tmp_path / "state", imports="shop")

    text = embedded._send_imports(settings)

    assert json.loads(text)["shop"]["path"].split(os.pathsep) == [f"{tmp_path}/mods", "/elsewhere", str(tmp_path)]
    assert (tmp_path / "state" / embedded.IMPORTS).read_text() == text
    assert embedded._send_imports(settings) == text

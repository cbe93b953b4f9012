"""The search for a secret, in every form that a program may write, in all data of a run."""

from __future__ import annotations

import base64
import binascii
import html
import json
import re
from collections.abc import Iterator
from urllib.parse import quote, quote_plus

from longshore.orchestration import Report
from tests.integration.flower import Flower
from tests.integration.processes import Installation, stored_text
from tests.servers import RedisServer

_BASE64 = re.compile(r"[A-Za-z0-9+/]{40,}={0,2}")


def forms(value: str) -> set[str]:
    """The value unchanged, escaped, and in Base64, alone or with other text before it."""
    found = {value, repr(value)[1:-1], repr(value.encode())[2:-1], json.dumps(json.dumps(value))[3:-3]}
    found |= {json.dumps(value, ensure_ascii=is_ascii)[1:-1] for is_ascii in (True, False)}
    found |= {quote(value), quote(value, safe=""), quote_plus(value), html.escape(value)}
    for before in range(3):
        # Drop the characters that depend on the surrounding text.
        part = base64.b64encode(bytes(before) + value.encode() + b"\0\0\0")[4 if before else 0 :]
        part = part[: len(value.encode()) * 4 // 3 - 4]
        found |= {part.decode(), part.decode().replace("+", "-").replace("/", "_")}
    return found


def _decoded(text: str) -> Iterator[str]:
    """The text, and each decoded Base64 part of the text, such as the body of a message."""
    yield text
    for coded in set(_BASE64.findall(text)):
        try:
            yield base64.b64decode(coded, validate=True).decode(errors="replace")
        except binascii.Error:
            yield ""


def everything(place: Installation, server: RedisServer, report: Report, flower: Flower) -> dict[str, str]:
    """The texts about a run by place: Redis, append-only files, logs, commands and pages."""
    run = report.run_id
    found = {"keys and files": stored_text(place), "report": report.model_dump_json()}
    files = [path for path in server.folder.rglob("*") if path.is_file()]
    assert any(path.name.endswith(".incr.aof") for path in files), files
    found |= {f"Redis's {path.name}": path.read_bytes().decode(errors="replace") for path in files}
    assert any("run_ended" in text for where, text in found.items() if where.endswith(".aof")), (
        "the append-only file has no event of the run"
    )
    for arguments in (
        ["runs", "show", run], ["runs", "show", run, "-o", "json"], ["runs", "ls"], ["runs", "ls", "--text", run],
        ["runs", "events", run], ["runs", "events", run, "-o", "json"], ["runs", "watch", run], ["audit"], ["doctor"],
        ["runs", "logs", run, report.steps[-1].name],
    ):  # fmt: skip
        result = place.longshore(*arguments)
        found[" ".join(arguments)] = result.out + result.err
    logs = [f"/runs/{run}/log?step={step.name}" for step in report.steps]
    for path in (*logs, f"/runs/{run}", "/runs", f"/runs?q={run}", "/runs?part=1&state=undone", "/tasks"):
        code, found[f"page {path}"] = flower.get(path)
        assert code == 200, path
    code, found["page of Celery's tasks"] = flower.get("/api/tasks?limit=1000")
    assert code == 200
    found["log of Flower"] = flower.log.read_text()
    return found


def assert_nowhere(found: dict[str, str], *values: str) -> None:
    """Check that no text has one of the values in any form."""
    for where, text in found.items():
        for part in _decoded(text):
            for value in values:
                for form in forms(value):
                    if form in part:
                        at = part.index(form)
                        raise AssertionError(f"{where}: …{part[max(0, at - 200) : at + 40]}")

"""An application with its own Celery app, whose canvases become plans."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from celery import Celery

app = Celery("sums", broker=os.environ["SUMS_BROKER"], backend=os.environ["SUMS_BROKER"])
app.conf.result_expires = 60
LEDGER = Path(os.environ["SUMS_LEDGER"])


def note(text: str) -> None:
    with LEDGER.open("a") as file:
        file.write(f"{text}\n")


@app.task(name="sums.add")
def add(x: int, y: int = 0) -> int:
    if y == 666:
        raise ValueError("an unlucky number")
    note(f"add {x} {y}")
    return x + y


@app.task(name="sums.subtract")
def subtract(x: int, y: int = 0) -> None:
    note(f"subtract {x} {y}")


@app.task(name="sums.total")
def total(values: list[int]) -> dict[str, Any]:
    note(f"total {values}")
    return {"total": sum(values)}


@app.task(name="sums.text")
def text(size: int) -> str:
    return "x" * size


@app.task(name="sums.length")
def length(of: str) -> int:
    return len(of)


@app.task(name="sums.headers", bind=True)
def headers(self: Any) -> dict[str, Any]:
    request = self.request
    return {
        "tenant": (request.headers or {}).get("tenant") or getattr(request, "tenant", None),
        "timelimit": request.timelimit,
        "priority": request.delivery_info.get("priority"),
        "queue": request.delivery_info.get("routing_key"),
    }

"""An application with its own Celery app, which does not import Longshore."""

from __future__ import annotations

import os
from pathlib import Path

from celery import Celery

app = Celery("bank", broker=os.environ["BANK_BROKER"])
if os.environ.get("BANK_RESULTS"):
    app.conf.result_backend = os.environ["BANK_BROKER"]
app.conf.broker_transport_options = {"global_keyprefix": os.environ.get("BANK_PREFIX", "")}
app.conf.task_routes = {"bank.ship": {"queue": "shipping"}}

LEDGER = Path(os.environ["BANK_LEDGER"])


def note(text: str) -> None:
    with LEDGER.open("a") as file:
        file.write(f"{text}\n")


@app.task(name="bank.charge")
def charge(amount: int) -> dict[str, int]:
    note(f"charge {amount}")
    return {"charged": amount}


@app.task(name="bank.refund")
def refund(amount: int) -> None:
    note(f"refund {amount}")


@app.task(name="bank.ship")
def ship(order: str, fails: bool = False) -> str:
    note(f"ship {order}")
    if fails:
        raise RuntimeError("no lorry")
    return order


@app.task(name="bank.fetch_back")
def fetch_back(order: str) -> None:
    note(f"fetch back {order}")

"""A Celery application without Longshore: celery -A bank worker."""

import os
from pathlib import Path

from celery import Celery

app = Celery("bank", broker=os.environ["BANK_BROKER"])


def note(text: str) -> None:
    with Path(os.environ["BANK_LEDGER"]).open("a") as file:
        file.write(f"{text}\n")


@app.task
def charge(amount: int) -> dict[str, int]:
    note(f"charge {amount}")
    return {"charged": amount}


@app.task
def refund(amount: int) -> None:
    note(f"refund {amount}")


@app.task
def ship(order: str) -> None:
    note(f"ship {order}")
    raise RuntimeError("no lorry")


@app.task
def fetch_back(order: str) -> None:
    note(f"fetch back {order}")

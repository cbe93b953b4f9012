"""An application with its own Celery app; TILL_FENCED makes its tasks fenced."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path
from typing import Any

from celery import Celery, Task

from longshore.orchestration import Permanent
from longshore.orchestration.celery import current_step, install

app = Celery("till", broker=os.environ["TILL_BROKER"])
app.conf.broker_transport_options = {"global_keyprefix": os.environ["TILL_PREFIX"]}
# With TILL_PATIENT, Celery's defaults: the broker delivers a message of a killed worker again an hour later.
if not os.environ.get("TILL_PATIENT"):
    app.conf.broker_transport_options |= {"visibility_timeout": 2, "unacked_restore_interval": 1}
    app.conf.task_acks_late = True
if os.environ.get("TILL_FENCED"):
    install(app)

LEDGER = Path(os.environ["TILL_LEDGER"])


def note(text: str) -> None:
    with LEDGER.open("a") as file:
        file.write(f"{text}\n")


@app.task(name="till.charge", shared=False)
def charge(amount: int, seconds: float = 0.0) -> dict[str, int]:
    LEDGER.with_name("pid").write_text(str(os.getpid()))
    note("charge begins")
    time.sleep(seconds)
    note(f"charge {amount}")
    return {"charged": amount}


@app.task(name="till.refund", shared=False)
def refund(amount: int, seconds: float = 0.0) -> None:
    note("refund begins") if seconds else None
    time.sleep(seconds)
    note(f"refund {amount}")


@app.task(name="till.charge_later", shared=False, bind=True, max_retries=3)
def charge_later(self: Task, amount: int, countdown: float) -> None:  # type: ignore[type-arg]
    """Charge at the second attempt."""
    if self.request.retries == 0:
        note("no charge yet")
        raise self.retry(countdown=countdown)
    note(f"charge {amount}")


@app.task(name="till.talk", shared=False)
def talk(fails: str = "") -> dict[str, Any]:
    step = current_step()
    print("a printed line")
    logging.getLogger("till").warning("a logged line")
    if step is not None:
        step.log("a line of the context")
    if fails == "permanent":
        raise Permanent("the card is stolen")
    if fails:
        note(f"talk fails: {fails}")
        raise ValueError(fails)
    return {} if step is None else {"key": step.idempotency_key, "attempt": step.attempt, "plan": step.plan}


@app.task(name="till.patient", shared=False)
def patient(seconds: float) -> None:
    """Work until the run is cancelled."""
    note("patient begins")
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        time.sleep(0.1)
        if (step := current_step()) is not None and step.cancelled:
            note("patient stops")
            return
    note("patient ends")

"""Function operations of an application, which its workers import."""

from __future__ import annotations

import base64
import dataclasses
import html
import json
import logging
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

from pydantic import BaseModel

from longshore.orchestration import Blocked, Context, Delayed, HostResult, Prediction, Result, operation


class Bill(BaseModel):
    customer: str
    amount: int


@dataclasses.dataclass
class Count:
    number: int


@operation("own.echo", read_only=True, secrets=["text"])
def echo(text: str) -> dict[str, str]:
    """Return the text, even if the text is a secret."""
    return {"text": text}


@operation("own.hosts", read_only=True)
def hosts(answers: dict[str, str]) -> Result:
    """Return one answer for each host: changed, unchanged, skipped, or an error."""

    def answer(item: tuple[str, str]) -> HostResult:
        host, status = item
        if status == "skipped":
            return HostResult(host, status="skipped")
        if status in {"changed", "unchanged"}:
            return HostResult(host, changed=status == "changed", data={"host": host})
        return HostResult(host, error=status)

    return Result.from_hosts(answers.items(), answer)


@operation("own.touch", undo="own.untouch", idempotent=True)
def touch(ctx: Context, path: Path, text: str = "") -> dict[str, Any]:
    path.write_text(text or ctx.idempotency_key)
    return {"path": str(path), "key": ctx.idempotency_key}


@operation("own.late")
def late(path: Path, go: Path) -> None:
    """Hang like a call of a file system that does not answer, and have the effect later."""
    path.with_name(f"{path.name}.began").touch()
    while not go.exists():
        time.sleep(0.1)
    with path.open("a") as log:
        log.write("late\n")


@operation("own.untouch")
def untouch(path: Path) -> None:
    path.unlink(missing_ok=True)


@operation("own.charge", queue="billing", retry_on=(ConnectionError,))
def charge(ctx: Context, bill: Bill, ledger: Path, away: int = 0) -> Bill:
    """Charge the bill; the first `away` attempts fail."""
    with ledger.open("a") as file:
        file.write(f"try {ctx.attempt}\n")
    if ctx.attempt <= away:
        raise ConnectionError("the bank is away")
    with ledger.open("a") as file:
        file.write(f"charge {bill.amount}\n")
    return bill


@charge.before
def balance(ledger: Path) -> dict[str, Any]:
    return {"lines": len(ledger.read_text().splitlines()) if ledger.exists() else 0}


@charge.undo
def refund(ctx: Context, ledger: Path, before: dict[str, Any], data: dict[str, Any] | None) -> None:
    with ledger.open("a") as file:
        file.write(f"refund {(data or {}).get('amount')} since line {before['lines']}\n")


@charge.predict
def predict_charge(bill: Bill) -> Prediction:
    return Prediction(f"would charge {bill.amount}")


@operation("own.sum", read_only=True)
def total(ctx: Context, steps: list[str]) -> Count:
    """Add the charges of earlier steps."""
    return Count(sum(ctx.results[name].decode(Bill).amount for name in steps))


@operation("own.large", read_only=True)
def large(size: int) -> dict[str, Any]:
    return {"text": "x" * size}


@operation("own.returns")
def returns(what: str) -> Any:
    """Return a value of the given kind."""
    if what == "raise":
        raise ZeroDivisionError("by a mistake")
    return {"nothing": None, "false": False, "list": [1, 2], "model": Bill(customer="ann", amount=1)}.get(
        what, object()
    )


@operation("own.patient")
def patient(ctx: Context, seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        ctx.heartbeat("still here")
        time.sleep(0.05)


@operation("own.bill", service="billing", idempotent=True)
def bill(ctx: Context, folder: Path) -> dict[str, Any]:
    """Charge a bill; the service is down while the file `down` exists."""
    with (folder / "calls").open("a") as calls:
        calls.write(f"{time.time():.3f} {ctx.run_id}\n")
    if (folder / "down").exists():
        raise Blocked("connection refused")
    return {"attempt": ctx.attempt}


@operation("own.unbill", service="billing", idempotent=True)
def unbill(folder: Path) -> None:
    if (folder / "down").exists():
        raise Blocked("connection refused")
    (folder / "unbilled").touch()


@operation("own.undeclared", idempotent=True)
def undeclared(folder: Path) -> None:
    """Name the needed service only in the error."""
    if (folder / "down").exists():
        raise Blocked("connection refused", service="paging")


@operation("own.slow_order", idempotent=True)
def slow_order(ctx: Context, folder: Path) -> dict[str, Any]:
    """Order something; the outcome is unknown until the file `known` exists."""
    with (folder / "asked").open("a") as asked:
        asked.write(f"{ctx.idempotency_key}\n")
    if not (folder / "known").exists():
        raise Delayed("accepted, not known yet", after=0.3)
    return {"order": 7}


@operation("own.leak", idempotent=True)
def leak(ctx: Context, path: Path, fail: bool = False) -> dict[str, str]:
    """Print, log, return and raise the content of a file."""
    text = path.read_text()
    print(f"printed {text}")
    print(f"printed as an error {text}", file=sys.stderr)
    logging.getLogger("own").warning("logged %s", text)
    ctx.log(f"noted {text}")
    if fail:
        raise RuntimeError(f"no connection to postgres://app:{text}@db/shop")
    return {"text": text, f"key {text}": "value"}


@leak.before
def leak_before(path: Path) -> dict[str, str]:
    return {"was": path.read_text()}


@leak.undo
def leak_undo(path: Path) -> None:
    print(f"undone {path.read_text()}")
    raise RuntimeError(f"cannot undo {path.read_text()}")


@operation("own.leak-forms", read_only=True)
def leak_forms(ctx: Context, path: Path) -> dict[str, list[str]]:
    """Print and return the content of a file, in the forms that programs write."""
    text = path.read_text()
    login = f"app:{text}".encode()
    texts = [repr(text), json.dumps({"password": text}), quote(text), quote_plus(text), html.escape(text)]
    texts += [base64.b64encode(text.encode()).decode(), base64.b64encode(login).decode()]
    texts += [base64.urlsafe_b64encode(b"x" + login).decode(), json.dumps(json.dumps(text))]
    for one in texts:
        print(f"printed {one}")
        ctx.log(f"noted {one}")
    return {"texts": texts}


@operation("own.leak-and-hang", idempotent=True)
def leak_and_hang(ctx: Context, path: Path, began: Path) -> dict[str, str]:
    """Print the content of a file, and end when the file `go` exists."""
    print(f"printed {path.read_text()}")
    ctx.log(f"noted {path.read_text()}")
    began.write_text("began\n")
    while not began.with_name("go").exists():
        ctx.sleep(0.1)
    return {"text": path.read_text()}

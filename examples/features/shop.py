"""Operations of an application. The worker imports this module: LONGSHORE_IMPORTS=shop."""

from pathlib import Path

from pydantic import BaseModel

from longshore.orchestration import Context, HostResult, Prediction, Result, operation


class Order(BaseModel):
    number: str
    amount: int


class Bank(Exception):
    """The bank does not answer."""


@operation("shop.charge", idempotent=True, retry_on=(Bank,))
def charge(ctx: Context, order: Order, ledger: Path) -> Result:
    """Charge an order only once, because the idempotency key is the same at each attempt."""
    if ctx.idempotency_key not in (ledger.read_text() if ledger.exists() else ""):
        with ledger.open("a") as file:
            file.write(f"charge {order.number} {order.amount} {ctx.idempotency_key}\n")
    return Result(data={"number": order.number, "amount": order.amount})


@charge.undo
def refund(order: Order, ledger: Path) -> None:
    with ledger.open("a") as file:
        file.write(f"refund {order.number}\n")


@charge.predict
def would_charge(order: Order) -> Prediction:
    return Prediction(f"would charge {order.amount}", undo="refund it")


@operation("shop.total", read_only=True)
def total(ctx: Context) -> dict[str, int]:
    """Sum of the charges of the earlier steps."""
    return {"total": sum(step.decode(Order).amount for step in ctx.results.values() if step.data)}


@operation("shop.health", read_only=True)
def health(hosts: list[str]) -> Result:
    """Return a result for each host. The step fails if more hosts fail than `tolerate` allows."""
    return Result.from_hosts(hosts, lambda host: HostResult(host, error="no answer" if host == "db1" else None))


@operation("shop.catalog", read_only=True)
def catalog() -> dict[str, list[str]]:
    """The items for sale. This operation is the builder of the cache in `catalog.yaml`."""
    return {"items": ["anchor", "compass"]}

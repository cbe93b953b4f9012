"""Operations that change the row of an order. Longshore workers import this module without a setting."""

from longshore.orchestration import Preflight, operation
from orders.models import Order


def _set(order: int, state: str) -> dict[str, str]:
    Order.objects.filter(pk=order).update(state=state)
    return {"state": state}


@operation("orders.charge", undo="orders.refund", idempotent=True)
def charge(order: int) -> dict[str, str]:
    """Charge the customer of an order."""
    return _set(order, "charged")


@operation("orders.refund", idempotent=True)
def refund(order: int) -> dict[str, str]:
    """Refund an order."""
    return _set(order, "refunded")


@operation("orders.ship", idempotent=True)
def ship(order: int) -> dict[str, str]:
    """Ship an order of at most a hundred pieces."""
    if Order.objects.get(pk=order).amount > 100:
        raise Preflight("the order is too large for a lorry")
    return _set(order, "shipped")

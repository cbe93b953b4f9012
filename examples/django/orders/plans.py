"""The plan of an order."""

from longshore.orchestration import Plan
from orders.models import Order
from orders.operations import charge, ship


def order_plan(order: Order, *, approve: bool) -> Plan:
    """Charge an order, wait for an approval if `approve` is set, and ship the order."""
    plan = Plan("order", sequential=True)
    plan.step("charge", charge, order=order.pk)
    if approve:
        plan.approval("approval", f"ship order {order.pk} to {order.customer}?")
    plan.step("ship", ship, order=order.pk)
    return plan

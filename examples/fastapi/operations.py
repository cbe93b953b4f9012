"""Operations of an order, as coroutines. Workers import this module with LONGSHORE_IMPORTS=operations."""

import asyncio

from longshore.orchestration import Context, operation


@operation("shop.charge", undo="shop.refund", idempotent=True)
async def charge(ctx: Context, order: str, amount: int) -> dict[str, str]:
    """Charge an order."""
    await asyncio.sleep(0.1)
    ctx.log(f"charged {amount}")
    return {"receipt": ctx.idempotency_key}


@operation("shop.refund", idempotent=True)
async def refund(ctx: Context, order: str, amount: int) -> None:
    """Refund an order."""
    ctx.log(f"refunded {amount}")

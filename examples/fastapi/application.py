"""Orders over HTTP: start a run, follow its events as server-sent events, approve the order, cancel the order.

LONGSHORE_IMPORTS=operations longshore worker
uvicorn application:app
"""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.responses import StreamingResponse
from operations import charge

from longshore.orchestration import AsyncClient, AsyncRun, Plan, UnknownName


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Open one client for the process. All requests that follow runs share its connection."""
    async with AsyncClient() as client:
        app.state.longshore = client
        yield


app = FastAPI(lifespan=lifespan)


def longshore(request: Request) -> AsyncClient:
    client: AsyncClient = request.app.state.longshore
    return client


Longshore = Annotated[AsyncClient, Depends(longshore)]


async def known_run(order: str, client: Longshore) -> AsyncRun:
    """The run of the order in the path."""
    try:
        return await client.get(f"order-{order}")
    except UnknownName as error:
        raise HTTPException(404, f"no order {order}") from error


KnownRun = Annotated[AsyncRun, Depends(known_run)]


def order_plan(order: str, amount: int) -> Plan:
    plan = Plan("order")
    charged = plan.step("charge", charge, order=order, amount=amount)
    plan.approval("approval", f"ship order {order}?").after(charged)
    return plan


@app.put("/orders/{order}", status_code=202)
async def place(order: str, amount: int, client: Longshore) -> dict[str, object]:
    """Start the run of an order. A repeated request starts nothing."""
    run = await client.start(order_plan(order, amount), run_id=f"order-{order}")
    return {"run": run.id, "attached": run.attached}


@app.get("/orders/{order}")
async def show(run: KnownRun) -> dict[str, object]:
    report = await run.report()
    return {"state": report.state, "summary": report.summary}


@app.get("/orders/{order}/events")
async def events(run: KnownRun, request: Request) -> StreamingResponse:
    """Send the events of a run as they occur. A browser that reconnects continues after its last event."""

    async def stream() -> AsyncIterator[str]:
        async for event in run.events(after=request.headers.get("last-event-id", "0-0")):
            data = json.dumps({"event": event.name, **event.fields})
            yield f"id: {event.id}\nevent: {event.name}\ndata: {data}\n\n"

    return StreamingResponse(stream(), media_type="text/event-stream")


@app.post("/orders/{order}/approve", status_code=202)
async def approve(run: KnownRun) -> dict[str, str]:
    return {"answer": await run.answer(await run.approve("approval"))}


@app.post("/orders/{order}/cancel", status_code=202)
async def cancel(run: KnownRun) -> dict[str, str]:
    """Cancel an order. A completed charge is refunded."""
    return {"answer": await run.answer(await run.cancel("by the customer"))}

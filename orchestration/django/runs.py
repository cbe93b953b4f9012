"""Starts of runs from a project: the client of the process, and starts that belong to a transaction."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache, partial
from typing import Any

from longshore.orchestration.client.client import Client, new_run_id
from longshore.orchestration.client.request import request_body
from longshore.orchestration.language import identifiers
from longshore.orchestration.plans.loading import load
from longshore.orchestration.plans.model import Plan
from longshore.orchestration.store.run_store import actor


@cache
def client() -> Client:
    """Return the client of this process, with the settings of the project. The first call creates the client."""
    return Client()


def start_on_commit(
    plan: Plan | str,
    params: Mapping[str, Any] | None = None,
    *,
    run_id: str | None = None,
    using: str | None = None,
) -> str:
    """Start a run after the commit of the current transaction, and return the id of the run at once.

    If the transaction is rolled back, no run is started. Without a transaction, the run is started at once. `using` is
    the alias of the database.

    Raises PlanError, ParamsError and BadIdentifier at once, so that they roll the transaction back. After the commit,
    raises as `Client.start` does. Another start with the same `run_id` does not start the run twice.
    """
    from django.db import transaction  # noqa: PLC0415 - an optional package

    given = load(plan) if isinstance(plan, str) else plan
    run_id = run_id if run_id is not None else new_run_id(given.name)
    identifiers.run_id(run_id)
    request_body(given, params or {}, actor(client().settings))
    transaction.on_commit(partial(client().start, given, params, run_id=run_id), using=using)
    return run_id

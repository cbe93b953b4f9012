"""Preconditions of a start: each function returns when its condition holds, and raises otherwise.

The client checks them before it stores a request, so that a run that could not succeed is rejected at once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from longshore.orchestration.client.request import request_body
from longshore.orchestration.errors import ConfigError, PlanDenied, ServiceDown, UnknownName
from longshore.orchestration.language import templates
from longshore.orchestration.language.targets import ANY
from longshore.orchestration.messaging import signing
from longshore.orchestration.plans.checked import checked
from longshore.orchestration.plans.compiled import CompiledPlan
from longshore.orchestration.plans.model import Plan
from longshore.orchestration.store import audit
from longshore.orchestration.store.breakers import Breakers, services
from longshore.orchestration.store.hosts import Hosts
from longshore.orchestration.store.placement import hosts_of
from longshore.orchestration.store.run_store import Store, actor


def permitted_request(
    store: Store, plan: Plan, params: Mapping[str, Any], run_id: str
) -> tuple[dict[str, Any], CompiledPlan]:
    """The request of a run, checked against what plans may hold, and its compiled plan.

    Raises PlanDenied for a plan that the policy forbids or that exceeds `max_plan` bytes, and adds each such refusal
    to the audit trail. Raises PlanError and ParamsError as `request_body` does.
    """
    settings = store.settings
    who, where = actor(settings), signing.origin(settings)
    try:
        valid = checked(plan, settings)
        body = request_body(plan, params, who, where, valid=valid)
        require_size(body, settings.max_plan)
    except PlanDenied as error:
        audit.report_refusal(store, str(error), run=run_id, plan=plan.name, actor=who, origin=where)
        raise
    return body, valid.compiled


def require_size(body: Mapping[str, Any], limit: int) -> None:
    """Raise PlanDenied for a request of more than `limit` bytes."""
    size = len(json.dumps(body, ensure_ascii=False).encode())
    if size > limit:
        raise PlanDenied(f"the plan with its parameters and files has {size} bytes, and {limit} are allowed")


def require_signing_key(store: Store) -> None:
    """Raise ConfigError where the workers check signatures and this client has no key that they know.

    Such workers would reject the request in silence, and the run would never begin.
    """
    known = store.call(store.client.get, store.keys.signing_keys)
    keys = signing.ring(store.settings)
    if not known:
        return
    if keys is None:
        raise ConfigError(
            "the workers accept signed requests only, and this client has no key",
            remedy="set LONGSHORE_KEYS to client/keys.json of the folder that longshore init made",
        )
    # One shared id suffices: workers read their key file again when it changes, and so learn a key that is new.
    if not {key.id for key in keys.keys} & set(known.split(",")):
        raise ConfigError(
            f"the workers do not know the keys in {store.settings.keys}",
            remedy="use client/keys.json from the same longshore init as the workers' keys",
        )


def require_services(store: Store, plan: CompiledPlan) -> None:
    """Raise ServiceDown for a plan that needs a service whose breaker is open, where `on_blocked` is `refuse`."""
    if store.settings.on_blocked != "refuse":
        return
    down = {breaker.service: breaker.why for breaker in Breakers(store).open()}
    for service in services(plan):
        if service in down:
            raise ServiceDown(
                f"the run was not started: it needs service {service}, which is down: {down[service]}",
                remedy="list open breakers: longshore breaker ls",
            )


def require_hosts(store: Store, plan: CompiledPlan, params: Mapping[str, Any], run_id: str) -> None:
    """Raise UnknownName for a step whose target matches no host, unless the run exists already.

    Only targets that the parameters determine are checked; a target that depends on results is checked in its turn.
    """
    named = [step for step in plan.steps if step.target != ANY and step.step.on_no_host == "fail"]
    hosts = Hosts(store).all() if named else {}
    for step in named if hosts else ():
        try:
            target = str(templates.render(step.target, {"params": dict(params)}))
            if target != ANY:
                hosts_of(hosts, target, always=True)
        except templates.TemplateProblem:
            continue
        except UnknownName as error:
            if store.body(run_id) is not None:
                return  # an attach, which dispatches nothing
            raise UnknownName(f"step {step.name}: target: {error.message}", remedy=error.remedy) from None

"""How an application starts runs and looks after them.

The client writes a request and sends one message by name; everything else is the workers'.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, overload
from urllib.parse import urlsplit
from uuid import uuid4

from celery import Celery
from kombu.exceptions import OperationalError
from pydantic import ValidationError

from longshore.orchestration.client import dry_run, embedded, replay
from longshore.orchestration.client.replay import Replay
from longshore.orchestration.client.request import request_body
from longshore.orchestration.client.run import Run, stored_plan
from longshore.orchestration.errors import (
    ConfigError,
    Damaged,
    PlanDenied,
    RunConflict,
    ServiceDown,
    StoreUnavailable,
    UnknownName,
    UsageError,
    WrongType,
)
from longshore.orchestration.language import identifiers, templates
from longshore.orchestration.language.targets import ANY, HostFilter
from longshore.orchestration.messaging import signing
from longshore.orchestration.messaging.canvas import Canvas, producer
from longshore.orchestration.plans.compiled import CompiledPlan
from longshore.orchestration.plans.loading import load
from longshore.orchestration.plans.model import Plan, single
from longshore.orchestration.plans.policy import reject_forbidden
from longshore.orchestration.settings import Settings, get_settings
from longshore.orchestration.store import audit
from longshore.orchestration.store.admission import Admission
from longshore.orchestration.store.breakers import Breakers, services
from longshore.orchestration.store.caches import Caches
from longshore.orchestration.store.hosts import Host, Hosts, HostState, grouped, matching, meant
from longshore.orchestration.store.run_store import Store, actor


class Client:
    """Starts and finds runs.

    Without a Redis URL in the settings an embedded server with a worker is started for this user, once,
    and outlives the process. An application's Celery app may lend its connection (`app=`); its broker
    must be the Redis of the settings.
    """

    def __init__(self, settings: Settings | None = None, *, app: Celery | None = None) -> None:
        self.settings = settings or get_settings()
        if (
            app is not None
            and app.conf.broker_url
            and not _same_server(app.conf.broker_url, self.settings.broker_url())
        ):
            raise ConfigError(
                "the application's broker is another one than Longshore's",
                remedy="set LONGSHORE_REDIS_URL to the same Redis",
            )
        self.ensure_server()
        self.store = Store(self.settings)

    def ensure_server(self) -> None:
        """Start the embedded server where the settings name none; it ends after a time without runs."""
        if self.settings.redis_url is None:
            embedded.ensure(self.settings)

    @cached_property
    def _producer(self) -> Celery:
        return producer(self.settings)

    def close(self) -> None:
        """Close its connections; a command that comes after opens new ones."""
        self.store.client.close()
        if "_producer" in self.__dict__:  # it is made when it is first sent with
            self._producer.close()

    # --- starting ---------------------------------------------------------------------------------

    def start(
        self,
        plan: Plan | str,
        params: Mapping[str, Any] | None = None,
        *,
        run_id: str | None = None,
    ) -> Run:
        """Have a plan run; returns at once.

        The same `run_id` with the same plan and parameters gives the run that is there
        (`Run.attached`); with others it raises RunConflict. Raises PlanError, ParamsError, UnknownName (also
        for a host, or a label, that there is none of) before anything is stored, QueueFull where as many wait as
        may, ServiceDown where a service is and new runs are refused, StoreUnavailable where Redis does not answer
        in time.
        """
        self.ensure_server()
        run_id = run_id if run_id is not None else _new_run_id(plan if isinstance(plan, str) else plan.name)
        identifiers.run_id(run_id)
        body = self._body(load(plan) if isinstance(plan, str) else plan, params or {}, run_id)
        compiled = CompiledPlan(Plan.model_validate(body["plan"]))
        self._refuse_without_a_key()
        self._refuse_where_a_service_is_down(compiled)
        if (unknown := self._unknown_host(compiled, body["params"])) is not None and self.store.body(run_id) is None:
            raise unknown
        there = Admission(self.store).submit(run_id, body)
        if there is not None:
            if there["digest"] != body["digest"]:
                raise RunConflict(
                    f"run {run_id!r} is there already, of another plan or with other parameters",
                    remedy=f"choose another run id, or look at it: longshore runs show {run_id}",
                )
            return self._run(run_id, compiled, attached=True, digest=body["digest"])
        try:
            digest = body["digest"] if self.settings.keys else ""
            with signing.sending(self.settings):
                Canvas(self._producer, run_id, digest=digest).send_start(compiled.plan.name)
        except OperationalError as error:
            # The request is stored: the first sweep begins the run.
            raise StoreUnavailable(
                f"run {run_id} is stored, but its first message could not be sent: {error}",
                remedy=f"it begins when a worker sweeps: longshore runs watch {run_id}",
            ) from error
        return self._run(run_id, compiled, digest=body["digest"])

    def _run(self, run_id: str, plan: CompiledPlan, *, digest: str, attached: bool = False) -> Run:
        return Run(self.store, lambda: self._producer, run_id, plan, attached=attached, digest=digest)

    def _body(self, plan: Plan, params: Mapping[str, Any], run_id: str) -> dict[str, Any]:
        """The request of a run. What is refused for the harm that it could do is put into the audit trail."""
        who, where = actor(self.settings), signing.origin(self.settings)
        try:
            reject_forbidden(plan, self.settings)
            body = request_body(plan, params, who, where)
            if (size := len(json.dumps(body, ensure_ascii=False).encode())) > self.settings.max_plan:
                raise PlanDenied(
                    f"the plan with its parameters and files has {size} bytes, and {self.settings.max_plan} are allowed"
                )
        except PlanDenied as error:
            audit.report_refusal(self.store, str(error), run=run_id, plan=plan.name, actor=who, origin=where)
            raise
        return body

    def _refuse_without_a_key(self) -> None:
        """Workers that check signatures would leave the run alone, and nobody would hear of it here."""
        known = self.store.call(self.store.client.get, self.store.keys.signing_keys)
        keys = signing.ring(self.settings)
        if not known:
            return
        if keys is None:
            raise ConfigError(
                "the workers take signed requests only, and there is no key here",
                remedy="LONGSHORE_KEYS=…/client/keys.json, of the folder that longshore init made",
            )
        # One that was added just now they will know: they read their files anew.
        if not {key.id for key in keys.keys} & set(known.split(",")):
            raise ConfigError(
                f"the workers do not know the keys in {self.settings.keys}",
                remedy="take client/keys.json of the same longshore init as theirs",
            )

    def _refuse_where_a_service_is_down(self, plan: CompiledPlan) -> None:
        if self.settings.on_blocked != "refuse":
            return
        down = {breaker.service: breaker.why for breaker in Breakers(self.store).open()}
        for service in services(plan):
            if service in down:
                raise ServiceDown(
                    f"the run was not started: it needs service {service}, which is down: {down[service]}",
                    remedy="longshore breaker ls shows since when",
                )

    def _unknown_host(self, plan: CompiledPlan, params: Mapping[str, Any]) -> UnknownName | None:
        """A target that is known now and means no host: better now than after the steps before it."""
        named = [step for step in plan.steps if step.target != ANY and step.step.on_no_host == "fail"]
        hosts = Hosts(self.store).all() if named else {}
        for step in named if hosts else ():
            try:
                target = str(templates.render(step.target, {"params": dict(params)}))
                if target != ANY:
                    meant(hosts, target, always=True)
            except templates.TemplateProblem:
                continue  # known when its turn comes
            except UnknownName as error:
                return UnknownName(f"step {step.name}: target: {error.message}", remedy=error.remedy)
        return None

    def run_operation(
        self,
        operation: str,
        /,
        *,
        run_id: str | None = None,
        target: str = "_any",
        inside: str | None = None,
        timeout: float | str | None = None,
        **params: Any,
    ) -> Run:
        """Have one operation run, as a run of one step; returns at once. Keywords are its parameters.

        `inside` is a container's name. Raises as `start` does.
        """
        return self.start(single(operation, params, target=target, inside=inside, timeout=timeout), run_id=run_id)

    # --- finding ----------------------------------------------------------------------------------

    def cached(self, name: str) -> Any | None:
        """What a `cache.rebuild.execute` step has kept under that name; None where nothing valid is there."""
        self.ensure_server()
        caches = Caches(self.store)
        found = caches.get(name)
        return None if found.entry is None or found.wrong(caches.now()) else found.entry.value

    def get(self, run_id: str) -> Run:
        """A run by its id; UnknownName if there is none."""
        self.ensure_server()
        plan, digest = stored_plan(self.store, run_id)
        return self._run(run_id, plan, digest=digest, attached=True)

    def runs(self, limit: int = 50) -> list[Run]:
        """The latest runs, newest first."""
        found = []
        for run_id in self.store.runs(limit):
            try:
                found.append(self.get(run_id))
            except (UnknownName, Damaged, WrongType, ValidationError):  # doctor names a damaged one
                continue
        return found

    # --- doing again ------------------------------------------------------------------------------

    def replay(
        self, *, host: str = "", service: str = "", since: datetime | None = None, run_id: str | None = None
    ) -> tuple[Run | None, Replay]:
        """Do again, in a run of its own, what runs had done on a host or at a service that has lost its data.

        `since`: only runs created from then on. Returns that run, None where there was nothing, and what it is
        made of: `Replay.left_out` names what cannot be done again. UsageError as `replay.collect`.
        """
        self.ensure_server()
        found = self.find_effects(host=host, service=service, since=since)
        try:
            run = self.start(found.plan, found.params, run_id=run_id) if found.plan.steps else None
        finally:
            found.close()
        return run, found

    def find_effects(self, *, host: str = "", service: str = "", since: datetime | None = None) -> Replay:
        """What `replay` would do; nothing is changed. Has to be closed."""
        return replay.collect(
            self.store, host=host, service=service, since=round(since.timestamp() * 1000) if since else 0
        )

    # --- rehearsing -------------------------------------------------------------------------------

    def dry_run(self, plan: Plan | str, params: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
        """What each step would do, in the order of the levels; nothing is changed.

        Each entry: `step, op, level, host, action, changed, undo, impossible`. The workers of each step's
        queue are asked; what they need lies in Redis under a name of its own, and is taken away again.
        Raises WaitTimeout where nobody answers for a queue.
        """
        self.ensure_server()
        checked = load(plan) if isinstance(plan, str) else plan
        reject_forbidden(checked, self.settings)
        body = request_body(checked, params or {}, actor(self.settings))
        self._refuse_without_a_key()
        with signing.sending(self.settings):
            return dry_run.dry_run(self.store, self._producer, CompiledPlan(checked), body)

    # --- hosts --------------------------------------------------------------------------------------

    @overload
    def hosts(
        self, condition: HostFilter | None = None, /, *, group_by: None = None, **conditions: Any
    ) -> list[Host]: ...

    @overload
    def hosts(
        self, condition: HostFilter | None = None, /, *, group_by: str, **conditions: Any
    ) -> dict[str, list[Host]]: ...

    def hosts(
        self, condition: HostFilter | None = None, /, *, group_by: str | None = None, **conditions: Any
    ) -> list[Host] | dict[str, list[Host]]:
        """The hosts that are like that, in the order of their names; without a condition, all that have workers.

        Keywords are those of `HostFilter`: `os="debian", arch=…, min_cpu=…, min_memory="2GiB", label="role:web",
        fact={"rack": "12"}, healthy=True`. `group_by` is a fact's name, or `label:KEY`; the hosts that have no
        such value are in no group. Raises UsageError for a condition that is none.
        """
        self.ensure_server()
        try:
            wanted = condition or HostFilter.model_validate(conditions)
        except ValidationError as error:
            item = error.errors()[0]
            where = ".".join(map(str, item["loc"])) or "condition"
            raise UsageError(f"hosts: {where}: {item['msg'].removeprefix('Value error, ')}") from None
        there = [host for host in Hosts(self.store).all().values() if host.state is not HostState.STOPPED]
        if group_by is not None and not isinstance(group_by, str):
            raise UsageError(f"hosts: group_by: {group_by!r} is no name of a fact, nor label:KEY")
        found = matching(there, wanted)
        return found if group_by is None else grouped(found, group_by)

    def drain(self, host: str, *, stop: bool = False) -> Host:
        """Have a host take no new work; what runs there ends, and undo and what always runs are still done.

        `stop`: its workers end after that. UnknownName for a host that is not known.
        """
        self.ensure_server()
        return Hosts(self.store).drain(host, actor(self.settings), stop=stop)

    def undrain(self, host: str) -> Host:
        """Have a host take work again. UnknownName for a host that is not known."""
        self.ensure_server()
        return Hosts(self.store).undrain(host)


def _same_server(one: str, other: str) -> bool:
    """Whether two URLs are of the same database, however they are written."""

    def parts(url: str) -> tuple[str, int, str]:
        found = urlsplit(url)
        host = {"localhost": "127.0.0.1"}.get(found.hostname or "", found.hostname or "")
        path = found.path.strip("/")
        return f"{found.scheme} {host}", found.port or 6379, path or ("" if "socket" in found.scheme else "0")

    return one == other or parts(one) == parts(other)


def _new_run_id(name: str) -> str:
    stem = re.sub(r"[^A-Za-z0-9._@-]", "-", Path(name).stem if "/" in name else name)[:80] or "run"
    return f"{stem}-{time.strftime('%Y%m%d-%H%M%S')}-{uuid4().hex[:6]}"

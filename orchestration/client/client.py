"""The client of an application: start, find, replay and dry-run runs, and list and drain hosts.

A start writes the request of a run and sends one message by name; the workers do everything else.
"""

from __future__ import annotations

import math
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

from longshore.orchestration.client import dry_run, embedded, preconditions, replay
from longshore.orchestration.client.replay import Replay
from longshore.orchestration.client.request import request_body
from longshore.orchestration.client.run import Run, stored_plan
from longshore.orchestration.errors import (
    ConfigError,
    Damaged,
    RunConflict,
    UnknownName,
    UsageError,
    WrongType,
)
from longshore.orchestration.language import identifiers
from longshore.orchestration.language.targets import HostFilter
from longshore.orchestration.messaging import signing
from longshore.orchestration.messaging.canvas import Canvas, producer
from longshore.orchestration.plans.compiled import CompiledPlan
from longshore.orchestration.plans.loading import load
from longshore.orchestration.plans.model import Plan, single
from longshore.orchestration.plans.policy import reject_forbidden
from longshore.orchestration.settings import Settings, get_settings
from longshore.orchestration.store.admission import Admission
from longshore.orchestration.store.caches import Caches
from longshore.orchestration.store.hosts import Host, Hosts, HostState
from longshore.orchestration.store.placement import grouped, matching
from longshore.orchestration.store.run_store import Store, actor

#: Seconds for which a client does not ask again which keys the workers know: a start has few other round trips.
_KEYS_KNOWN = 1.0


class Client:
    """The entry point of an application: starts and finds runs, and drains hosts.

    If the settings name no Redis URL, the client starts an embedded server with a worker for this user. Both outlive
    the process. Raises ConfigError if `app`, the Celery app of the application, uses another broker than the Redis of
    the settings.
    """

    def __init__(self, settings: Settings | None = None, *, app: Celery | None = None) -> None:
        self.settings = settings or get_settings()
        if (
            app is not None
            and app.conf.broker_url
            and not _same_server(app.conf.broker_url, self.settings.broker_url())
        ):
            raise ConfigError(
                "the broker of the application is not Longshore's Redis",
                remedy="set LONGSHORE_REDIS_URL to the broker of the application",
            )
        self.ensure_server()
        self.store = Store(self.settings)
        self._keys_asked = -math.inf

    def ensure_server(self) -> None:
        """Start the embedded server, if the settings name no Redis. An idle server ends by itself."""
        if self.settings.redis_url is None:
            embedded.ensure(self.settings)

    @cached_property
    def _producer(self) -> Celery:
        return producer(self.settings)

    def close(self) -> None:
        """Close the connections. A later call opens new ones."""
        self.store.client.close()
        if "_producer" in self.__dict__:  # created by the first send
            self._producer.close()

    # --- starting ---------------------------------------------------------------------------------

    def start(
        self,
        plan: Plan | str,
        params: Mapping[str, Any] | None = None,
        *,
        run_id: str | None = None,
    ) -> Run:
        """Start a run of a plan and return at once.

        A start is idempotent by `run_id`: with the same plan and parameters, the method returns the existing run
        (`Run.attached`). Raises StoreUnavailable if Redis does not answer in time. Raises these errors before the run
        is stored:

        * RunConflict – the run id exists, with another plan or other parameters
        * PlanError, ParamsError – the plan or the parameters are invalid
        * UnknownName – a plan, operation, host or label does not exist
        * ConfigError – the signing key is missing
        * ServiceDown – the breaker of a service is open, and the setting `on_blocked` is `refuse`
        * QueueFull – `max_queued` runs wait
        """
        self.ensure_server()
        is_new, name = run_id is None, plan if isinstance(plan, str) else plan.name
        run_id = run_id if run_id is not None else new_run_id(name)
        identifiers.run_id(run_id)
        given = load(plan) if isinstance(plan, str) else plan
        body, compiled = preconditions.permitted_request(self.store, given, params or {}, run_id)
        self._require_signing_key()
        preconditions.require_services(self.store, compiled)
        preconditions.require_hosts(self.store, compiled, body["params"], run_id)
        existing = self._submit(run_id, body, compiled.plan.name)
        while is_new and existing is not None:  # another start has chosen the same id
            run_id = new_run_id(name)
            existing = self._submit(run_id, body, compiled.plan.name)
        if existing is not None and existing["digest"] != body["digest"]:
            raise RunConflict(
                f"run {run_id!r} exists already, with another plan or other parameters",
                remedy=f"choose another run id, or read that run: longshore runs show {run_id}",
            )
        return self._run(run_id, compiled, attached=existing is not None, digest=body["digest"])

    def _submit(self, run_id: str, body: Mapping[str, Any], name: str) -> dict[str, Any] | None:
        """Store a request, and send the first message; return the request of another start with this id, if any."""
        try:
            with signing.sending(self.settings):
                canvas = Canvas(self._producer, run_id, digest=body["digest"] if self.settings.keys else "")
                message = canvas.start_message(name)
        except OperationalError as error:  # a channel to the broker is opened for its first message
            raise self.store.translated(error) from error
        existing = Admission(self.store).submit(run_id, body, message=message)
        # The client of Redis repeats a command whose answer was lost, and then finds its own request.
        is_own = existing is not None and existing.get("instance_id") == body["instance_id"]
        return None if is_own else existing

    def _require_signing_key(self) -> None:
        asked = time.monotonic()
        if asked >= self._keys_asked + _KEYS_KNOWN:
            preconditions.require_signing_key(self.store)
            self._keys_asked = asked

    def _run(self, run_id: str, plan: CompiledPlan, *, digest: str, attached: bool = False) -> Run:
        return Run(self.store, lambda: self._producer, run_id, plan, attached=attached, digest=digest)

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
        """Start a run of one step and return at once. The other keywords are the parameters of the operation.

        `inside` names a container in which the step runs. Raises as `start` does.
        """
        return self.start(single(operation, params, target=target, inside=inside, timeout=timeout), run_id=run_id)

    # --- finding ----------------------------------------------------------------------------------

    def cached(self, name: str) -> Any | None:
        """The value of a cache, as stored by `cache.rebuild.execute`; None if the cache is not valid."""
        self.ensure_server()
        caches = Caches(self.store)
        found = caches.get(name)
        return None if found.entry is None or found.problem(caches.now()) else found.entry.value

    def get(self, run_id: str) -> Run:
        """The run with this id. Raises UnknownName if no such run exists."""
        self.ensure_server()
        plan, digest = stored_plan(self.store, run_id)
        return self._run(run_id, plan, digest=digest, attached=True)

    def runs(self, limit: int = 50) -> list[Run]:
        """The latest runs, newest first, without damaged records. `longshore doctor` names damaged records."""
        found = []
        for run_id in self.store.runs(limit):
            try:
                found.append(self.get(run_id))
            except (UnknownName, Damaged, WrongType, ValidationError):
                continue
        return found

    # --- replay -----------------------------------------------------------------------------------

    def replay(
        self, *, host: str = "", service: str = "", since: datetime | None = None, run_id: str | None = None
    ) -> tuple[Run | None, Replay]:
        """Start a run that repeats the recorded effects on a host or service that has lost its data.

        Give either `host` or `service`. `since` leaves out runs that were created earlier. Returns a pair: the run, or
        None if there is no effect to repeat; and the replay, whose `left_out` lists the effects that cannot be
        repeated. Raises UsageError for both or neither of `host` and `service`, and for more steps than a plan may
        have.
        """
        self.ensure_server()
        found = self.find_effects(host=host, service=service, since=since)
        try:
            run = self.start(found.plan, found.params, run_id=run_id) if found.plan.steps else None
        finally:
            found.close()
        return run, found

    def find_effects(self, *, host: str = "", service: str = "", since: datetime | None = None) -> Replay:
        """The replay that `replay` would start. Starts nothing. `close()` of the result deletes its temporary files."""
        return replay.collect(
            self.store, host=host, service=service, since=round(since.timestamp() * 1000) if since else 0
        )

    # --- dry run ----------------------------------------------------------------------------------

    def dry_run(self, plan: Plan | str, params: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
        """Ask the workers what each step would do, in the order of the levels. Changes nothing.

        Each entry describes one step: `step`, `op`, `level`, `host`, `action`, `changed`, `undo`, `impossible`. Redis
        stores the plan during the call only. Raises WaitTimeout if no worker of a queue answers.
        """
        self.ensure_server()
        checked = load(plan) if isinstance(plan, str) else plan
        reject_forbidden(checked, self.settings)
        body = request_body(checked, params or {}, actor(self.settings))
        preconditions.require_signing_key(self.store)
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
        """The hosts that match a condition, by name. Without a condition, all hosts that have workers.

        A condition is a `HostFilter` or its keywords: `os="debian"`, `arch`, `min_cpu`, `min_memory="2GiB"`,
        `label="role:web"`, `fact={"rack": "12"}`, `healthy=True`. With `group_by`, the name of a fact or `label:KEY`,
        the method returns the hosts by that value; hosts without the value are left out. Raises UsageError for an
        invalid condition or `group_by`.
        """
        self.ensure_server()
        try:
            wanted = condition or HostFilter.model_validate(conditions)
        except ValidationError as error:
            item = error.errors()[0]
            where = ".".join(map(str, item["loc"])) or "condition"
            raise UsageError(f"hosts: {where}: {item['msg'].removeprefix('Value error, ')}") from None
        present = [host for host in Hosts(self.store).all().values() if host.state is not HostState.STOPPED]
        if group_by is not None and not isinstance(group_by, str):
            raise UsageError(
                f"hosts: group_by: {group_by!r} is not text", remedy="give the name of a fact, or label:KEY"
            )
        found = matching(present, wanted)
        return found if group_by is None else grouped(found, group_by)

    def drain(self, host: str, *, stop: bool = False) -> Host:
        """Drain a host: its workers claim no new steps, except undo and always steps. Running attempts finish.

        With `stop`, the workers exit once they are idle. Raises UnknownName for an unknown host.
        """
        self.ensure_server()
        return Hosts(self.store).drain(host, actor(self.settings), stop=stop)

    def undrain(self, host: str) -> Host:
        """End the drain of a host. Raises UnknownName for an unknown host."""
        self.ensure_server()
        return Hosts(self.store).undrain(host)


def _same_server(one: str, other: str) -> bool:
    """Report whether two URLs name the same database, whatever their spelling."""

    def parts(url: str) -> tuple[str, int, str]:
        found = urlsplit(url)
        host = {"localhost": "127.0.0.1"}.get(found.hostname or "", found.hostname or "")
        path = found.path.strip("/")
        return f"{found.scheme} {host}", found.port or 6379, path or ("" if "socket" in found.scheme else "0")

    return one == other or parts(one) == parts(other)


def new_run_id(name: str) -> str:
    """A new id for a run of a plan of that name."""
    stem = re.sub(r"[^A-Za-z0-9._@-]", "-", Path(name).stem if "/" in name else name)[:80] or "run"
    return f"{stem}-{time.strftime('%Y%m%d-%H%M%S')}-{uuid4().hex[:8]}"

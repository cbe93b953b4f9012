"""`docker.list`, `inspect`, `logs` and `wait`: read-only queries of containers."""

from __future__ import annotations

import re
import time
from dataclasses import replace
from typing import Any

from longshore.orchestration.errors import OperationError
from longshore.orchestration.operations.docker.queries import (
    INSPECT,
    LIST,
    LOGS,
    WAIT,
    InspectParams,
    ListParams,
    LogsParams,
    WaitParams,
)
from longshore.tasks.host.engine.factory import engine
from longshore.tasks.host.engine.port import Container, Engine
from longshore.tasks.implementation import Change, Context, NoUndo, Prediction, ReadOnly, implements
from longshore.tasks.operations.docker.containers import COMPOSE_HASH, there
from longshore.tasks.operations.docker.evidence import collect, reason_of
from longshore.tasks.operations.docker.levels import HealthCheck

_PROJECT = "com.docker.compose.project"
_POLL = 0.2
#: States of containers that do not run; `dead`: the removal failed.
_STOPPED = ["created", "exited", "dead"]


@implements(LIST)
class List(ReadOnly[Any]):
    """Lists containers by label, project, name and state."""

    reads = "list containers"

    def read(self, ctx: Context, params: ListParams) -> dict[str, Any]:
        labels = params.label | ({_PROJECT: params.project} if params.project else {})
        filters = {"label": [key if value is None else f"{key}={value}" for key, value in labels.items()]}
        if params.name:
            # The engine's filter is a pattern that matches parts of names.
            filters["name"] = [f"^/{re.escape(params.name.removeprefix('/'))}$"]
        if params.state == "stopped":
            filters["status"] = _STOPPED
        if params.state == "running":
            filters["status"] = ["running", "paused", "restarting"]
        rows = engine().rows(filters, all_of_them=params.state != "running")
        found = [
            {
                "id": row["Id"],
                "name": row["Names"][0].removeprefix("/") if row.get("Names") else "",
                "image": row["Image"],
                "image_id": row["ImageID"],
                "state": row["State"],
                "status": row["Status"],
                "labels": row.get("Labels") or {},
                "created": row["Created"],
            }
            for row in rows
        ]
        return {"containers": found[: params.limit], "count": len(found)}


@implements(INSPECT)
class Inspect(ReadOnly[Any]):
    """Reads a container in a normalized form and, as `full`, in the engine's form without the environment."""

    reads = "inspect container {container}"

    def read(self, ctx: Context, params: InspectParams) -> dict[str, Any]:
        raw = engine().raw(params.container)
        if raw is None:
            return {"exists": False}
        container = Container.of(raw)
        full = raw | {"Config": {key: value for key, value in raw["Config"].items() if key != "Env"}}
        data = {
            "exists": True,
            "id": container.id,
            "name": container.name,
            "status": container.status,
            "running": container.running,
            "health": container.health,
            "exit_code": container.exit_code,
            "oom_killed": container.oom_killed,
            "started_at": container.started_at,
            "finished_at": container.finished_at,
            "restart_count": container.restart_count,
            "image": container.image,
            "image_id": container.image_id,
            "config_hash": container.labels.get(COMPOSE_HASH),
            "labels": container.labels,
            "networks": list(container.networks),
        }
        return data | {"full": full}


@implements(LOGS)
class Logs(NoUndo[LogsParams]):
    """Reads the end of a container's output."""

    def change(self, ctx: Context, params: LogsParams, before: dict[str, Any]) -> Change:
        docker = engine()
        container = there(docker, params.container, "read the output of")
        yield Prediction(f"would read the output of container {params.container}", changed=False)
        since = None if params.since is None else time.time() - params.since
        output = docker.logs(container.id, params.max_bytes, tail=params.tail, since=since)
        return {"stdout": output.stdout, "stderr": output.stderr, "truncated": output.truncated}


@implements(WAIT)
class Wait(NoUndo[WaitParams]):
    """Polls a container until it runs, is healthy or has exited. The engine's `Running` is true during a restart."""

    def change(self, ctx: Context, params: WaitParams, before: dict[str, Any]) -> Change:
        docker, began = engine(), time.monotonic()
        container = there(docker, params.container, "wait for")
        health = f", {container.health}" if container.health else ""
        action = f"would wait until {container.name} is {params.until}; it is {container.status}{health}"
        yield Prediction(action, changed=False)
        check = HealthCheck(params.min_healthy_time)
        while True:
            now = time.monotonic()
            why = self._not_yet(ctx, docker, params, container, check)
            if not why:
                return _data(container, now - began)
            if now - began >= params.healthy_deadline:
                late = f"{why} after {params.healthy_deadline:g} s"
                raise _failure(ctx, docker, container, late, waited=now - began)
            ctx.sleep(min(_POLL, max(0.01, params.healthy_deadline - (now - began))))
            found = docker.inspect(container.id)
            if found is None:
                raise OperationError(f"container {container.name} was removed during the wait")
            container = found

    @staticmethod
    def _not_yet(ctx: Context, docker: Engine, params: WaitParams, container: Container, check: HealthCheck) -> str:
        """The reason to wait longer; '' if the condition holds. Raises if it cannot hold any more."""
        if params.until == "exited":
            if container.running or container.started_at is None:
                return "still runs" if container.running else "has not been started"
            if container.exit_code not in params.ok_codes:
                raise _failure(ctx, docker, container, f"exited with code {container.exit_code}")
            return ""
        if container.started_at is None:
            return "has not been started"
        seen = container if params.until == "healthy" else replace(container, health=None)
        why = check.problem(seen)
        if not seen.restarting and (not seen.running or seen.health == "unhealthy"):
            raise _failure(ctx, docker, container, why)
        return why


def _data(container: Container, waited: float) -> dict[str, Any]:
    kept = ("id", "name", "status", "health", "exit_code", "restart_count")
    return {name: getattr(container, name) for name in kept} | {"waited_s": round(waited, 1)}


def _failure(ctx: Context, docker: Engine, container: Container, how: str, waited: float = 0.0) -> OperationError:
    evidence = collect(ctx, docker, [container.id])
    reason = reason_of(evidence[0]) if evidence else ""
    what = f"container {container.name} {how}" + (f": {reason}" if reason else "")
    return OperationError(what, data=_data(container, waited) | {"evidence": evidence})

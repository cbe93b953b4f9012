"""The specification, name and labels of containers that Longshore creates, and their look-up and removal."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Mapping
from typing import Any

from longshore.orchestration.errors import OperationError, Preflight, Transient
from longshore.orchestration.operations.docker.containers import CreateParams, Health, Mount
from longshore.orchestration.operations.docker.fields import parse_size
from longshore.tasks.host import policy
from longshore.tasks.host.engine.factory import engine, own_project
from longshore.tasks.host.engine.port import Conflict, Container, Engine, Image, NotThere
from longshore.tasks.implementation import Context, absent

OP = "longshore.op"
RUN = "longshore.run"
STEP = "longshore.step"
KIND = "longshore.kind"
SPEC = "longshore.spec"
ATTEMPT = "longshore.attempt"
#: The label of a one-off container that stays after its run if it has failed; and the suffix of the name of one whose
#: failure was reported, so that a retry may create a new one.
KEEP_FAILED, FAILED = "longshore.keep-failed", "--failed-"
#: The repository prefix of tags that keep an image for an undo or a revision.
KEEP = "longshore-keep"

#: Network modes, which allow neither aliases nor a second network.
_MODES = {"host", "none"}
#: Seconds until a container that another call creates or removes becomes visible.
_NAME_TAKEN = 3.0
_LIMITED_LOGS = {"json-file", "local"}


def safe(op_id: str) -> str:
    """The op_id as part of a container's name or an image's tag; unique."""
    clean = re.sub(r"[^A-Za-z0-9_.-]", "_", op_id)
    if clean == op_id and len(clean) <= 100:
        return clean
    return f"{clean[:80]}-{hashlib.sha256(op_id.encode()).hexdigest()[:12]}"


def short(text: str) -> str:
    """A short digest that makes a name unique."""
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def name_of(ctx: Context, params: CreateParams) -> str:
    return params.name or f"longshore-{safe(ctx.op_id)}"


def spec_of(ctx: Context, params: CreateParams, image_id: str) -> str:
    """A digest of a container's parameters and image, without the values of secrets."""
    dumped = params.model_dump(mode="json", include=set(CreateParams.model_fields))
    text = json.dumps({"params": dumped, "image": image_id}, sort_keys=True)
    return hashlib.sha256(ctx.redact(text).encode()).hexdigest()


def need(engine: Engine, ref: str, verb: str = "run") -> Image:
    """The image of that name on the Docker host, which the step would `verb`. Raises Preflight; never pulls."""
    found = engine.image(ref)
    if found is None:
        raise absent(
            f"image {ref!r} is not on the Docker host",
            later=f"would {verb} {ref}, which an earlier step would have to provide",
            remedy="pull or build it in an earlier step",
        )
    return found


def own(engine: Engine, ctx: Context) -> list[Container]:
    """The containers that this step has created, in the order of its attempts."""
    found = engine.containers({OP: ctx.op_id})
    return sorted(found, key=lambda container: int(container.labels.get(ATTEMPT, "0")))


def find(engine: Engine, ctx: Context, name: str, spec: str) -> Container | None:
    """The container that an attempt of this step has created under that name."""
    for container in own(engine, ctx):
        if container.name == name:
            if container.labels.get(SPEC) != spec:
                what = f"container {name} was created by this step with other parameters"
                raise OperationError(what, remedy="undo the run, or start it under another run id")
            return container
    return None


def make(
    engine: Engine,
    ctx: Context,
    params: CreateParams,
    image_id: str,
    *,
    kind: str,
    marks: Mapping[str, str] | None = None,
) -> tuple[Container, list[str]]:
    """The container, created by this or another delivery, connected to all its networks; and the engine's warnings.

    `marks`: additional labels of Longshore.
    """
    name, spec = name_of(ctx, params), spec_of(ctx, params, image_id)
    warnings: list[str] = []
    container = find(engine, ctx, name, spec)
    if container is None:
        # The name is more readable in a listing, as long as it refers to the journalled image.
        image = params.image if engine.image_id(params.image) == image_id else image_id
        labels = {OP: ctx.op_id, RUN: ctx.run_id, STEP: ctx.step, KIND: kind, SPEC: spec}
        labels |= {ATTEMPT: str(ctx.attempt)} | dict(marks or {})
        try:
            allow(ctx, params)
            _, warnings = engine.create(name, body(params, image, labels))
        except Conflict as error:
            return _of_that_name(engine, ctx, name, spec, kind=kind, error=error), []
        except NotThere as error:
            raise Preflight(f"container {name} cannot be created: {error.message}") from error
        container = engine.inspect(name)
        if container is None:
            raise Transient(f"container {name} was removed right after its creation")
    for network in params.networks[1:]:
        if network.name not in container.networks:
            engine.connect(network.name, container.id, network.aliases)
    return container, warnings


def allow(ctx: Context, params: CreateParams) -> None:
    """Raise NotAllowed for a container that this worker may not create."""
    policy.check_container(body(params, params.image, {OP: ctx.op_id}))
    for mount in params.volumes:
        if mount.type == "volume" and mount.source is not None:
            policy.check_existing_volume(engine().volume(mount.source), own_project())


def _of_that_name(engine: Engine, ctx: Context, name: str, spec: str, *, kind: str, error: Conflict) -> Container:
    end = time.monotonic() + _NAME_TAKEN
    while (container := engine.inspect(name)) is None:
        if time.monotonic() >= end:
            raise Transient(
                f"the name {name} is reserved by a container that is not visible: {error.message}"
            ) from error
        ctx.sleep(0.05)  # the engine reserves the name before the container is visible
    labels = container.labels
    if labels.get(SPEC) == spec and labels.get(KIND) == kind and (kind == "create" or labels[OP] == ctx.op_id):
        return container
    raise Preflight(
        f"the name {name} belongs to another container ({container.id[:12]}, {container.image})",
        remedy="choose another name, or remove that container in an earlier step",
    ) from error


def body(params: CreateParams, image: str, labels: dict[str, str]) -> dict[str, Any]:
    """The parameters in the engine's format."""
    host: dict[str, Any] = {
        "Init": params.init,
        "RestartPolicy": restart_policy(params.restart),
        "LogConfig": _log(params),
        "Mounts": [_mount(mount, labels[OP]) for mount in params.volumes],
    }
    if params.memory is not None:
        host["Memory"] = parse_size(params.memory)
    if params.cpus is not None:
        host["NanoCpus"] = round(params.cpus * 1e9)
    if params.dns:
        host["Dns"] = params.dns
    ports = [_port(text) for text in params.ports]
    host["PortBindings"] = {}
    for inner, binding in ports:
        host["PortBindings"].setdefault(inner, []).append(binding)
    made: dict[str, Any] = {
        "Image": image,
        "Env": [f"{key}={value}" for key, value in params.env.items()],
        "Labels": params.labels | labels,
        "ExposedPorts": {inner: {} for inner, _ in ports},
        "HostConfig": host,
    }
    if params.networks:
        first = params.networks[0]
        host["NetworkMode"] = first.name
        if first.name not in _MODES:
            made["NetworkingConfig"] = {"EndpointsConfig": {first.name: {"Aliases": first.aliases}}}
    plain = {"Cmd": params.command, "Entrypoint": params.entrypoint, "User": params.user}
    plain |= {"WorkingDir": params.workdir, "Hostname": params.hostname}
    if params.health is not None:
        made["Healthcheck"] = _health(params.health)
    return made | {key: value for key, value in plain.items() if value is not None}


def restart_policy(text: str) -> dict[str, Any]:
    name, _, times = text.partition(":")
    return {"Name": name, "MaximumRetryCount": int(times or 0)}


def _health(health: Health) -> dict[str, Any]:
    """The health check in the engine's format, in nanoseconds."""
    times = {"Interval": health.interval, "Timeout": health.timeout, "StartPeriod": health.start_period}
    return {"Test": ["CMD", *health.test], "Retries": health.retries} | {
        key: round(value * 1e9) for key, value in times.items()
    }


def _log(params: CreateParams) -> dict[str, Any]:
    log, config = params.log, {}
    if log.driver in _LIMITED_LOGS:
        limits = {"max-size": log.max_size, "max-file": log.max_file}
        config = {key: str(value) for key, value in limits.items() if value is not None}
    return {"Type": log.driver, "Config": config}


def _mount(mount: Mount, op_id: str) -> dict[str, Any]:
    made: dict[str, Any] = {"Type": mount.type, "Target": mount.target, "ReadOnly": mount.read_only}
    if mount.source is not None:
        made["Source"] = mount.source
    if mount.type == "volume":
        made["VolumeOptions"] = {"Labels": {OP: op_id}}  # the engine labels new volumes only
    return made


def _port(text: str) -> tuple[str, dict[str, str]]:
    """The container's port, such as `80/tcp`, and its host binding; without a host port the engine chooses one."""
    ports, _, protocol = text.partition("/")
    outside, _, inner = ports.rpartition(":")
    host, _, outer = outside.rpartition(":")
    return f"{inner}/{protocol or 'tcp'}", {"HostIp": host.strip("[]"), "HostPort": outer}


def remove_own(engine: Engine, ctx: Context, *, grace: float | None) -> tuple[bool, list[str]]:
    """Remove the containers and unused volumes of this step. Returns whether any existed, and the volumes that stay.

    A volume of a started container stays, since its data cannot be restored.
    """
    containers = own(engine, ctx)
    for container in containers:
        if container.running:
            engine.stop(container.id, grace)
        engine.remove(container.id)
    volumes = engine.volumes({OP: ctx.op_id})
    if containers and not any(container.started_at for container in containers):
        volumes = [name for name in volumes if not engine.remove_volume(name)]
    return bool(containers), volumes


def one_offs(engine: Engine, run_id: str | None = None) -> list[dict[str, Any]]:
    """The rows of ended one-off containers, of all runs or of one, without failed ones that are to be kept."""
    filters = {"label": [f"{KIND}=run", *([f"{RUN}={run_id}"] if run_id else [])], "status": ["exited", "dead"]}
    return [
        row
        for row in engine.rows(filters, all_of_them=True)
        if not (KEEP_FAILED in row["Labels"] and any(FAILED in name for name in row["Names"]))
    ]

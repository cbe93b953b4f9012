"""`file.*`: atomic writes of a file's bytes, mode and owner, with exact undos; and the object store."""

from __future__ import annotations

import json
from typing import Any

import jinja2
from jinja2.sandbox import SandboxedEnvironment

from longshore.orchestration.errors import OperationError, Preflight, Transient
from longshore.orchestration.operations.file import (
    CHANGED,
    DEPLOY,
    STATUS,
    UNDEPLOY,
    UPLOAD,
    ChangedParams,
    DeployParams,
    StatusParams,
    UndeployParams,
    UploadParams,
)
from longshore.orchestration.settings import get_settings
from longshore.orchestration.store.objects import Entry
from longshore.tasks.host import downloads
from longshore.tasks.host.backups import Backups, write_private
from longshore.tasks.host.machine.factory import machine_of
from longshore.tasks.host.machine.port import Machine, State, sha
from longshore.tasks.implementation import (
    Change,
    Context,
    Implementation,
    Outcome,
    Prediction,
    ReadOnly,
    implements,
    unchanged,
)

_DEFAULT_MODE = 0o644
#: The maximum bytes of a file in a plan; larger files belong in the object store.
_CONTENT_LIMIT = 1024 * 1024
#: The longest assumed duration of a run in seconds, added to the retention of the object that its undo needs.
_LONGEST_RUN = 30 * 86_400.0


def _carried(ctx: Context, source: str) -> bytes:
    try:
        return ctx.files(source)
    except (KeyError, FileNotFoundError):
        raise Preflight(
            f"the plan contains no file {source!r}", remedy="correct source, or submit the plan with that file"
        ) from None


def _content(ctx: Context, params: DeployParams) -> bytes:
    template = bool(params.template)
    if params.content is not None:
        data = params.content.encode()
    elif params.source is not None:
        data = _carried(ctx, params.source)
    elif "://" in str(params.object):
        data = downloads.fetch(str(params.object))
    else:
        entry = ctx.objects().need(str(params.object))
        data = entry.data
        template = entry.content_type == "template" if params.template is None else template
    if params.object is None and len(data) > _CONTENT_LIMIT:
        what = f"{params.path}: {len(data)} bytes exceed the {_CONTENT_LIMIT} bytes of a file in a plan"
        raise Preflight(what, remedy="upload the file to the object store, and set object to its name")
    return _rendered(ctx, params, data) if template else data


def _rendered(ctx: Context, params: DeployParams, data: bytes) -> bytes:
    environment = SandboxedEnvironment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    host = {"name": ctx.host.name, "labels": dict(ctx.host.labels), "facts": dict(ctx.host.facts)}
    known = {"host": host, "run": {"id": ctx.run_id, "name": ctx.plan}} | params.vars
    try:
        return environment.from_string(data.decode()).render(**known).encode()
    except (jinja2.TemplateError, ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise Preflight(f"the template of {params.path} does not render: {error}") from error


def _wanted(machine: Machine, params: DeployParams, data: bytes, now: State | None) -> State:
    mode = int(params.mode, 8) if params.mode else (now.mode if now else _DEFAULT_MODE)
    uid, gid = machine.owner(params.owner, params.group)
    own_uid, own_gid = (now.uid, now.gid) if now else machine.me()
    return State(sha(data), len(data), mode, own_uid if uid is None else uid, own_gid if gid is None else gid)


def _state_of(before: dict[str, Any]) -> State | None:
    return State(**before["file"]) if before.get("file") else None


class _Deployed:
    """The record of the last deployment to a path of this host, or of a container on it."""

    def __init__(self, ctx: Context, path: str) -> None:
        name = sha(f"{ctx.container}\0{path}".encode())
        self._path = get_settings().state_dir / "deployed" / f"{name}.json"

    def note(self, ctx: Context, path: str, state: State) -> None:
        body = {"path": path, "container": ctx.container, "run": ctx.run_id, "step": ctx.step, "file": state.as_json()}
        write_private(self._path, json.dumps(body).encode())

    def state(self) -> State | None:
        try:
            return State(**json.loads(self._path.read_text())["file"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def restore(self, was: dict[str, Any] | None) -> None:
        if was is None:
            self._path.unlink(missing_ok=True)
        else:
            write_private(self._path, json.dumps(was).encode())

    def record(self) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = json.loads(self._path.read_text())
        except (OSError, ValueError):
            return None
        return found


@implements(DEPLOY)
class Deploy(Implementation[DeployParams]):
    """Writes a file if the one on disk differs, so that drift is repaired."""

    def before(self, ctx: Context, params: DeployParams) -> dict[str, Any]:
        machine = machine_of(ctx)
        found = machine.read(params.path)
        record = {"deployed": _Deployed(ctx, params.path).record()}
        if found is None:
            machine.require_removal()
            return {"file": None, "made": machine.missing_folders(params.path)} | record
        state, data = found
        Backups(ctx).keep(data)
        return {"file": state.as_json(), "made": []} | record

    def change(self, ctx: Context, params: DeployParams, before: dict[str, Any]) -> Change:
        machine, path = machine_of(ctx), params.path
        was = _state_of(before)
        data = _content(ctx, params)
        wanted = _wanted(machine, params, data, was)
        if was is None:
            yield Prediction(f"would create {path} ({wanted.size} bytes)", undo=f"remove {path}")
        elif wanted == was:
            yield Prediction(f"{path} is up to date", changed=False)
        else:
            what = ", ".join(_differences(was, wanted))
            yield Prediction(f"would change {path}: {what}", undo=f"restore {was.sha256[:12]}")
        found = machine.read(path)
        if found is None or found[0] != wanted:
            machine.make_folders(path)
            try:
                machine.write(path, data, wanted)
            except Preflight:
                machine.remove_folders(before["made"])  # nothing was changed
                raise
        _Deployed(ctx, path).note(ctx, path, wanted)
        return wanted.as_json() | {"path": path, "mode": f"{wanted.mode:04o}"}

    def undo(self, ctx: Context, params: DeployParams, before: dict[str, Any], data: dict[str, Any] | None) -> Outcome:
        machine, path, kept = machine_of(ctx), params.path, Backups(ctx)
        was = _state_of(before)
        found = machine.read(path)
        now = found[0] if found else None
        changed = now != was
        if changed:
            ours = data.get("sha256") if data else sha(_content(ctx, params))
            foreign = now is not None and now.sha256 not in {ours, was.sha256 if was else None}
            if now is not None and data and now.sha256 == ours and now != was:
                made = (int(data["mode"], 8), data["uid"], data["gid"])
                foreign = (now.mode, now.uid, now.gid) != made
            if foreign:
                raise OperationError(
                    f"{path} was changed outside of this run",
                    remedy="check the file, then run: longshore runs resolve --undone",
                )
            _restore(machine, path, was, kept)
        machine.remove_folders(before.get("made", []))
        kept.forget()
        _Deployed(ctx, path).restore(before.get("deployed"))
        return Outcome(changed=changed)


def _restore(machine: Machine, path: str, was: State | None, kept: Backups) -> None:
    if was is None:
        machine.remove(path)
        return
    data = kept.bytes_of(was.sha256, path)
    machine.make_folders(path)
    machine.write(path, data, was)


def _differences(now: State, wanted: State) -> list[str]:
    found = []
    if now.sha256 != wanted.sha256:
        found.append(f"content {now.sha256[:12]} → {wanted.sha256[:12]}")
    if now.mode != wanted.mode:
        found.append(f"mode {now.mode:04o} → {wanted.mode:04o}")
    if (now.uid, now.gid) != (wanted.uid, wanted.gid):
        found.append(f"owner {now.uid}:{now.gid} → {wanted.uid}:{wanted.gid}")
    return found


@implements(UNDEPLOY)
class Undeploy(Implementation[UndeployParams]):
    """Removes a file; the undo restores it."""

    def before(self, ctx: Context, params: UndeployParams) -> dict[str, Any]:
        found = machine_of(ctx).read(params.path)
        if found is None:
            return {"file": None}
        Backups(ctx).keep(found[1])
        return {"file": found[0].as_json()}

    def change(self, ctx: Context, params: UndeployParams, before: dict[str, Any]) -> Change:
        machine, was = machine_of(ctx), _state_of(before)
        if was is None:
            yield unchanged(ctx, f"{params.path} does not exist")
        else:
            yield Prediction(f"would remove {params.path}", undo="restore the file")
        if machine.read(params.path) is not None:
            machine.remove(params.path)
        return {"path": params.path, "sha256": was.sha256 if was else None}

    def undo(
        self, ctx: Context, params: UndeployParams, before: dict[str, Any], data: dict[str, Any] | None
    ) -> Outcome:
        machine, kept, was = machine_of(ctx), Backups(ctx), _state_of(before)
        found = machine.read(params.path)
        if was is None or (found is not None and found[0] == was):
            kept.forget()
            return Outcome(changed=False)
        if found is not None:
            raise OperationError(
                f"{params.path} was created outside of this run",
                remedy="check the file, then run: longshore runs resolve --undone",
            )
        _restore(machine, params.path, was, kept)
        kept.forget()
        return Outcome(changed=True)


@implements(STATUS)
class Status(ReadOnly[StatusParams]):
    """Compares a file with its last deployment."""

    reads = "read the state of {path}"

    def read(self, ctx: Context, params: StatusParams) -> dict[str, Any]:
        found = machine_of(ctx).read(params.path)
        known = _Deployed(ctx, params.path).state()
        data: dict[str, Any] = {"path": params.path, "status": "missing", "differs": []}
        data |= {"sha256": found[0].sha256 if found else None, "deployed_sha256": known.sha256 if known else None}
        if found is not None and known is not None:
            data["differs"] = [text.split()[0] for text in _differences(known, found[0])]
            data["status"] = "drifted" if data["differs"] else "in-sync"
        return data


def _given(ctx: Context, params: UploadParams | ChangedParams) -> bytes:
    return params.content.encode() if params.content is not None else _carried(ctx, str(params.source))


@implements(UPLOAD)
class Upload(Implementation[UploadParams]):
    """Stores an object; the undo restores the former one."""

    def before(self, ctx: Context, params: UploadParams) -> dict[str, Any]:
        found = ctx.objects().get(params.name)
        if found is None:
            return {"sha256": None}
        if not params.force and found.sha256 != sha(_given(ctx, params)):
            raise _taken(params.name)
        if not ctx.dry_run:
            ctx.objects().keep(ctx.op_id, found, get_settings().retention + _LONGEST_RUN)
        return {"sha256": found.sha256, "content_type": found.content_type}

    def change(self, ctx: Context, params: UploadParams, before: dict[str, Any]) -> Change:
        objects, entry = ctx.objects(), Entry(_given(ctx, params), params.content_type, ctx.run_id)
        if before["sha256"] is None:
            yield Prediction(f"would store {params.name}", undo=f"remove {params.name}")
        elif (before["sha256"], before["content_type"]) == (entry.sha256, entry.content_type):
            yield Prediction(f"the object store has this {params.name}", changed=False)
        else:
            yield Prediction(f"would replace {params.name}", undo=f"restore {before['sha256'][:12]}")
        found = objects.get(params.name)
        if found is None or (found.sha256, found.content_type) != (entry.sha256, entry.content_type):
            if found is not None and found.sha256 != before["sha256"] and not params.force:
                raise _taken(params.name)
            if not objects.put(params.name, entry, was=found.sha256 if found else None):
                raise Transient(f"object {params.name!r} was replaced by another run at the same moment")
        return {"name": params.name, "sha256": entry.sha256, "size": entry.size, "content_type": entry.content_type}

    def undo(self, ctx: Context, params: UploadParams, before: dict[str, Any], data: dict[str, Any] | None) -> Outcome:
        objects, digest = ctx.objects(), sha(_given(ctx, params))
        found = objects.get(params.name)
        now = found.sha256 if found else None
        was = (before["sha256"], before.get("content_type"))
        if (now, found.content_type if found else None) == was:
            objects.forget(ctx.op_id)
            return Outcome(changed=False)
        if now not in {digest, None}:
            raise OperationError(
                f"object {params.name!r} was replaced outside of this run",
                remedy="check the object, then run: longshore runs resolve --undone",
            )
        former = objects.kept(ctx.op_id) if before["sha256"] else None
        if not objects.put(params.name, former, was=now):
            raise Transient(f"object {params.name!r} was replaced by another run at the same moment")
        objects.forget(ctx.op_id)
        return Outcome(changed=True)


def _taken(name: str) -> Preflight:
    return Preflight(f"object {name!r} exists with different bytes", remedy="choose another name, or set force: true")


@implements(CHANGED)
class Changed(ReadOnly[ChangedParams]):
    """Compares content with an object of the store."""

    reads = "compare the content with object {name}"

    def read(self, ctx: Context, params: ChangedParams) -> dict[str, Any]:
        digest = sha(_given(ctx, params))
        found = ctx.objects().get(params.name)
        differs = found is None or found.sha256 != digest
        return {"name": params.name, "differs": differs, "sha256": digest}

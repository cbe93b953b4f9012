"""`file.deploy.execute`: a file's bytes, mode and owner, put in place at once and taken back exactly."""

from __future__ import annotations

import contextlib
import grp
import hashlib
import os
import pwd
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from jinja2.sandbox import SandboxedEnvironment

from longshore.orchestration.errors import OperationError, Preflight, Transient
from longshore.orchestration.operations.file import DEPLOY, DeployParams
from longshore.orchestration.settings import get_settings
from longshore.tasks.operation import Context, Implementation, Outcome, Prediction, implements

_DEFAULT_MODE = 0o644
#: A larger file belongs in an object store, not in a plan.
_CONTENT_LIMIT = 1024 * 1024


@dataclass(frozen=True)
class _State:
    """A file as it is: None for absent."""

    sha256: str
    size: int
    mode: int
    uid: int
    gid: int

    def as_json(self) -> dict[str, Any]:
        return {"sha256": self.sha256, "size": self.size, "mode": self.mode, "uid": self.uid, "gid": self.gid}


def _read(path: Path) -> tuple[_State, bytes] | None:
    """The regular file at `path`, or None. Anything else there is refused."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except NotADirectoryError as error:
        raise Preflight(f"{path}: a part of the path is a file") from error
    except PermissionError as error:
        raise Preflight(f"{path}: permission denied", remedy="run the worker as a user that may") from error
    except OSError as error:
        raise Preflight(f"{path} is a link or cannot be read: {error.strerror}") from error
    info = os.fstat(fd)
    if not stat.S_ISREG(info.st_mode):
        os.close(fd)
        raise Preflight(f"{path} is there and is not a regular file")
    with os.fdopen(fd, "rb") as file:
        data = file.read()
    state = _State(_sha(data), len(data), stat.S_IMODE(info.st_mode), info.st_uid, info.st_gid)
    return state, data


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _id_of(name: str | int | None, kind: str) -> int | None:
    """A user's or group's number."""
    if name is None:
        return None
    text = str(name)
    if text.isdigit():
        return int(text)
    try:
        return pwd.getpwnam(text).pw_uid if kind == "user" else grp.getgrnam(text).gr_gid
    except KeyError:
        raise Preflight(f"no such {kind} on this host: {text}") from None


def _content(ctx: Context, params: DeployParams) -> bytes:
    if params.content is not None:
        data = params.content.encode()
    else:
        try:
            data = ctx.files(str(params.source))
        except (KeyError, FileNotFoundError):
            raise Preflight(f"the plan carries no file {params.source!r}") from None
    if params.template:
        env = SandboxedEnvironment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
        try:
            data = env.from_string(data.decode()).render(**params.vars).encode()
        except (jinja2.TemplateError, ArithmeticError, LookupError, TypeError, ValueError) as error:
            raise Preflight(f"the template of {params.path} does not render: {error}") from error
    if len(data) > _CONTENT_LIMIT:
        raise Preflight(f"{params.path}: {len(data)} bytes are more than the {_CONTENT_LIMIT} that a plan carries")
    return data


def _wanted(params: DeployParams, data: bytes, now: _State | None) -> _State:
    mode = int(params.mode, 8) if params.mode else (now.mode if now else _DEFAULT_MODE)
    uid, gid = _id_of(params.owner, "user"), _id_of(params.group, "group")
    return _State(
        sha256=_sha(data),
        size=len(data),
        mode=mode,
        uid=uid if uid is not None else (now.uid if now else os.geteuid()),
        gid=gid if gid is not None else (now.gid if now else os.getegid()),
    )


def _write(ctx: Context, path: Path, data: bytes, state: _State) -> None:
    """Put the file in place: whole or not at all, also if the power fails in the middle."""
    # The name is the attempt's own operation: a dead attempt's rest is overwritten, not left.
    temporary = path.with_name(f".{path.name[:100]}.longshore-{_sha(ctx.op_id.encode())[:12]}")
    try:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            if (state.uid, state.gid) != (os.geteuid(), os.getegid()):
                os.fchown(file.fileno(), state.uid, state.gid)
            os.fchmod(file.fileno(), state.mode)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_directory(path.parent)
    except PermissionError as error:
        raise Preflight(f"{path}: permission denied", remedy="run the worker as a user that may") from error
    except OSError as error:
        raise (Transient if error.errno in {5, 28} else OperationError)(f"{path}: {error.strerror}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _backup_path(ctx: Context) -> Path:
    """Bytes that were there before stay on the host, readable by the worker only."""
    return get_settings().state_dir / "backups" / ctx.run_id / f"{ctx.part}.bytes"


def _keep(ctx: Context, data: bytes) -> None:
    path = _backup_path(ctx)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = path.with_suffix(".new")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _made_directories(path: Path) -> list[str]:
    """The parents that are missing, outermost first: undo removes exactly these."""
    missing: list[str] = []
    parent = path.parent
    while not parent.exists():
        missing.insert(0, str(parent))
        parent = parent.parent
    return missing


def _remove_empty(made: list[str]) -> None:
    """Innermost first, as long as nothing else is in them."""
    for directory in reversed(made):
        try:
            Path(directory).rmdir()
        except OSError:
            break


@implements(DEPLOY)
class Deploy(Implementation[DeployParams]):
    """Compares what is on disk, not what was deployed last, so that drift is repaired."""

    def before(self, ctx: Context, params: DeployParams) -> dict[str, Any]:
        path = Path(params.path)
        found = _read(path)
        if found is None:
            return {"file": None, "made": _made_directories(path)}
        state, data = found
        _keep(ctx, data)
        return {"file": state.as_json(), "made": []}

    def act(self, ctx: Context, params: DeployParams, before: dict[str, Any]) -> Outcome:
        path = Path(params.path)
        was = _State(**before["file"]) if before["file"] else None
        data = _content(ctx, params)
        wanted = _wanted(params, data, was)
        found = _read(path)
        if found is None or found[0] != wanted:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise Preflight(f"{path.parent}: {error.strerror}") from error
            try:
                _write(ctx, path, data, wanted)
            except Preflight:
                _remove_empty(before["made"])  # so that nothing was touched indeed
                raise
        result = {
            "path": str(path),
            "sha256": wanted.sha256,
            "size": wanted.size,
            "mode": f"{wanted.mode:04o}",
        }
        return Outcome(changed=wanted != was, data=result | {"uid": wanted.uid, "gid": wanted.gid})

    def predict(self, ctx: Context, params: DeployParams) -> Prediction:
        path = Path(params.path)
        found = _read(path)
        data = _content(ctx, params)
        now = found[0] if found else None
        wanted = _wanted(params, data, now)
        if wanted == now:
            return Prediction(f"{path} is as it should be", changed=False)
        if now is None:
            return Prediction(f"would create {path} ({wanted.size} bytes)", undo=f"remove {path}")
        parts = [
            what
            for what, differs in (
                (f"content {now.sha256[:12]} → {wanted.sha256[:12]}", now.sha256 != wanted.sha256),
                (f"mode {now.mode:04o} → {wanted.mode:04o}", now.mode != wanted.mode),
                (
                    f"owner {now.uid}:{now.gid} → {wanted.uid}:{wanted.gid}",
                    (now.uid, now.gid) != (wanted.uid, wanted.gid),
                ),
            )
            if differs
        ]
        return Prediction(f"would change {path}: {', '.join(parts)}", undo=f"restore {now.sha256[:12]}")

    def undo(self, ctx: Context, params: DeployParams, before: dict[str, Any], data: dict[str, Any] | None) -> Outcome:
        path = Path(params.path)
        was = _State(**before["file"]) if before.get("file") else None
        found = _read(path)
        now = found[0] if found else None
        if now == was:
            self._tidy(ctx, before)
            return Outcome(changed=False)
        ours = data.get("sha256") if data else _wanted_sha(ctx, params)
        if now is not None and now.sha256 not in {ours, was.sha256 if was else None}:
            raise OperationError(
                f"{path} was changed by somebody else since",
                remedy="look at it, then longshore runs resolve --undone",
            )
        if was is None:
            path.unlink(missing_ok=True)
        else:
            try:
                kept = _backup_path(ctx).read_bytes()
            except FileNotFoundError as error:
                raise OperationError(f"the bytes that {path} had are not on this host any more") from error
            if _sha(kept) != was.sha256:
                raise OperationError(f"the kept bytes of {path} are damaged")
            path.parent.mkdir(parents=True, exist_ok=True)
            _write(ctx, path, kept, was)
        self._tidy(ctx, before)
        return Outcome(changed=True)

    @staticmethod
    def _tidy(ctx: Context, before: dict[str, Any]) -> None:
        """Remove the directories made for the file, unless something else is in them now."""
        _remove_empty(before.get("made", []))
        backup = _backup_path(ctx)
        with contextlib.suppress(OSError):
            backup.unlink()
            backup.parent.rmdir()


def _wanted_sha(ctx: Context, params: DeployParams) -> str:
    """What `act` would have written, where nothing was recorded."""
    return _sha(_content(ctx, params))

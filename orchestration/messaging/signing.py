"""Signed messages, requests and commands: who can write to Redis cannot have anything done by that alone.

An HMAC-SHA256 of our own over what a message would have done: the task's name and id, which try, the plan's digest,
when it was signed, and a digest of the body's bytes. Nothing of a body or a request is read until its signature holds.
(Celery's `auth` serializer signs the body alone: the task's name stays open to be changed.)
Roles: a client's key signs requests, commands and the words
that move a run on; only a worker's key signs steps and undo. That a message is carried out once is seen to where it
is (`longshore.tasks.control.celery_tasks`).
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
import secrets
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from celery.signals import before_task_publish
from kombu.utils import json as kombu_json

from longshore.orchestration.errors import ConfigError
from longshore.orchestration.settings import Settings, get_settings

Role = Literal["client", "worker"]
#: The header of a message, and the field of a request, that holds the signature.
FIELD = "longshore_signature"
#: What a client's key may sign, of messages.
OF_CLIENTS = frozenset({"longshore.advance", "longshore.dry_run", "longshore.scheduled"})
#: What bears its signature in its arguments.
SEALED = frozenset({"longshore.task_ended"})
#: What a worker sends when a message was carried out, by its own signature.
_FOLLOW_UPS = ("callbacks", "errbacks", "chain", "chord")
#: What carries a signature, of tasks.
OURS = "longshore."
#: Seconds that a clock may be ahead of ours.
AHEAD = 300.0
#: Seconds for which a signature counts: longer than any message waits.
LASTS = 2 * 86_400.0
#: Seconds for which it is remembered what was carried out: as long as its signature counts, wherever it was made.
REMEMBERED = round(LASTS + AHEAD)
#: Seconds for which a key that has been replaced still counts.
KEPT = LASTS + 86_400.0
#: Headers of a message that are not signed: by them a trace goes on, and no worker acts upon them. All others are, also
#: those that nobody knows: Celery gives a task whatever header there is as an attribute of its request.
_UNSIGNED = frozenset({FIELD, "traceparent", "tracestate", "baggage", "sentry-trace"})


class Forged(Exception):
    """A signature that is missing, or does not fit."""


@dataclass(frozen=True)
class Key:
    """One key: from when it signs (seconds since 1970), and until when it counts (0: no end)."""

    id: str
    role: Role
    secret: str
    since: float = 0.0
    until: float = 0.0


@dataclass(frozen=True)
class Ring:
    """The keys that a process has. With none of a worker's, it is a client."""

    keys: tuple[Key, ...]

    @property
    def role(self) -> Role:
        return "worker" if any(key.role == "worker" for key in self.keys) else "client"

    def signing(self, now: float) -> Key:
        """The newest of its role that signs already."""
        mine = [key for key in self.keys if key.role == self.role and key.since <= now and not _past(key, now)]
        if not mine:
            raise ConfigError(f"there is no {self.role}'s key that may sign now", remedy="longshore init --rotate")
        return max(mine, key=lambda key: key.since)

    def find(self, key_id: str, now: float) -> Key | None:
        return next((key for key in self.keys if key.id == key_id and not _past(key, now)), None)


def _past(key: Key, now: float) -> bool:
    return bool(key.until) and key.until < now


# --- the file -------------------------------------------------------------------------------------


def new_key(role: Role, since: float = 0.0) -> Key:
    return Key(f"{role[0]}{secrets.token_hex(4)}", role, secrets.token_hex(32), since)


def rotated(keys: Iterable[Key], now: float, after: float) -> list[Key]:
    """Those with a new one of each role, which signs from `after` seconds on: time to bring the file everywhere. The
    ones before count as long as what they have signed may still be under way; what is older is left out.
    """
    since = now + after
    kept = [Key(k.id, k.role, k.secret, k.since, k.until or since + KEPT) for k in keys if not _past(k, now)]
    return [*kept, *(new_key(role, since) for role in sorted({key.role for key in kept}))]


def written(keys: Iterable[Key]) -> str:
    return json.dumps({"keys": [asdict(key) for key in keys]}, indent=1) + "\n"


def read(path: Path) -> Ring:
    """The ring in a file; ConfigError where it is none, or others may read it."""
    try:
        if path.stat().st_mode & 0o077 & ~0o040:
            raise ConfigError(f"the keys in {path} can be read by others", remedy=f"chmod 600 {path}")
        return Ring(tuple(Key(**key) for key in json.loads(path.read_text())["keys"]))
    except OSError as error:
        raise ConfigError(f"the keys in {path} cannot be read: {error.strerror}", remedy="longshore init") from None
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"{path} is no file of keys: {error}", remedy="longshore init makes one") from None


@lru_cache(maxsize=8)
def _ring(path: str, changed: int) -> Ring:  # noqa: ARG001 - part of what it is remembered by
    return read(Path(path))


#: The keys of the client that sends just now, where they are not those of the process's settings.
_sending: ContextVar[str | None] = ContextVar("longshore_keys", default=None)


@contextlib.contextmanager
def sending(settings: Settings) -> Iterator[None]:
    """What is sent meanwhile is signed with the keys of these settings."""
    token = _sending.set(settings.keys)
    try:
        yield
    finally:
        _sending.reset(token)


def ring(settings: Settings | None = None) -> Ring | None:
    """The keys of the settings, read anew when the file has changed; None where nothing is signed."""
    path = settings.keys if settings is not None else get_settings().keys if _sending.get() is None else _sending.get()
    if not path:
        return None
    try:
        return _ring(path, os.stat(path).st_mtime_ns)
    except OSError as error:
        raise ConfigError(f"the keys in {path} cannot be read: {error.strerror}", remedy="longshore init") from None


# --- signing and checking -------------------------------------------------------------------------


def _text(what: str, parts: Mapping[str, Any]) -> bytes:
    text = json.dumps([what, parts], sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode("utf-8", "surrogateescape")


def _mac(key: Key, what: str, parts: Mapping[str, Any]) -> str:
    return hmac.new(bytes.fromhex(key.secret), _text(what, parts), hashlib.sha256).hexdigest()


def sign(keys: Ring, what: str, parts: Mapping[str, Any]) -> dict[str, Any]:
    """The signature over `parts` for one use (`what`)."""
    now = time.time()
    key = keys.signing(now)
    made = {"key": key.id, "at": round(now, 3)}
    return made | {"mac": _mac(key, what, {**parts, **made})}


def check(keys: Ring, what: str, parts: Mapping[str, Any], signature: Any) -> Key:
    """The key that has signed it. Raises Forged."""
    if not isinstance(signature, dict):
        raise Forged("it is not signed")
    now = time.time()
    at, key_id = signature.get("at"), signature.get("key")
    key = keys.find(key_id, now) if isinstance(key_id, str) else None
    if key is None:
        raise Forged("it is signed with a key that is not known here, or not any more")
    if not isinstance(at, int | float) or isinstance(at, bool) or not now - LASTS < at < now + AHEAD:
        raise Forged("its signature is too old, or of a time that has not come")
    mac = str(signature.get("mac")).encode("utf-8", "replace")  # text that is not ASCII cannot be compared
    if not hmac.compare_digest(_mac(key, what, {**parts, "key": key_id, "at": at}).encode(), mac):
        raise Forged("its signature does not fit: it was changed")
    return key


# --- messages -------------------------------------------------------------------------------------


def _parts(headers: Mapping[str, Any], body: bytes, digest: str) -> dict[str, Any]:
    """What is signed: every header that a worker acts upon, and the body as the bytes that it is."""
    named = {name: value for name, value in headers.items() if name not in _UNSIGNED and value is not None}
    return {"headers": named, "plan": digest, "body": hashlib.sha256(body).hexdigest()}


def check_message(keys: Ring, headers: Mapping[str, Any], body: bytes) -> None:
    """Raises Forged for a message of ours that nobody who may has signed. The body is read once its signature holds."""
    task = str(headers.get("task"))
    if not task.startswith(OURS):
        # Celery's own tasks send whatever they are told to, and what a worker sends is signed.
        raise Forged("it is no task of Longshore's, and these workers take signed ones only")
    if task in SEALED:
        # Sent by an application's worker, which has no key: its arguments bear a seal, looked at by the task. Whatever
        # else is in it anybody may have written.
        if _follows(body) or any(headers.get("timelimit") or ()):
            raise Forged("nothing may be sent after it, and it has no time limit of its own")
        return
    signature = headers.get(FIELD)
    digest = signature.get("plan", "") if isinstance(signature, dict) else ""
    key = check(keys, "message", _parts(headers, body, digest), signature)
    if key.role == "client" and task not in OF_CLIENTS:
        raise Forged(f"a client may not send {task}")
    if key.role == "client" and _follows(body):
        raise Forged("a client may not have something sent after it")


def _follows(body: bytes) -> bool:
    """Reports whether a worker would send anything after the message. Raises Forged for a body that is no JSON."""
    try:
        parts = json.loads(body)
    except (ValueError, RecursionError):
        raise Forged("its body is no JSON") from None
    follow_ups = parts[2] if isinstance(parts, list) and len(parts) > 2 and isinstance(parts[2], dict) else {}
    return any(follow_ups.get(name) for name in _FOLLOW_UPS)


@before_task_publish.connect
def _sign_message(sender: Any = None, body: Any = None, headers: Any = None, **_: Any) -> None:
    """Whatever this process sends of ours is signed as it leaves: chord bodies and the rest of chains, too."""
    if not str(sender).startswith(OURS) or (keys := ring()) is None or headers is None:
        return
    # What stood there is of the message that this one came of: a retry, the next of a chain.
    before = headers.pop(FIELD, None)
    digest = str(before.get("plan", "")) if isinstance(before, dict) else ""
    sent = kombu_json.dumps(body).encode()  # the bytes that kombu makes of it once more when it is sent
    seen = json.loads(kombu_json.dumps(dict(headers)))
    headers[FIELD] = sign(keys, "message", _parts(seen, sent, digest)) | {"plan": digest}


def plan_header(digest: str) -> dict[str, Any]:
    """What a message says of the plan that it is of, until it is signed."""
    return {FIELD: {"plan": digest}} if digest else {}


# --- requests and commands ------------------------------------------------------------------------

#: Characters of a signature before a text, and of a command with all its fields.
_LONGEST, _LONGEST_COMMAND = 500, 64 * 1024


def sealed(settings: Settings, what: str, name: str, text: str) -> str:
    """The text of a request, or of a dry run, behind a line with its signature, where there are keys."""
    keys = ring(settings)
    return text if keys is None else f"{json.dumps(sign(keys, what, _of_text(name, text)))}\n{text}"


def opened(sealed_text: str) -> tuple[str, str]:
    """The text as it is, and the line of its signature; '' where there is none."""
    line, newline, text = sealed_text.partition("\n")
    return (text, line) if newline else (sealed_text, "")


def check_text(keys: Ring, what: str, name: str, sealed_text: str) -> Key:
    """The key that has signed a text, which nobody has read until then. Raises Forged."""
    text, line = opened(sealed_text)
    try:
        signature = json.loads(line) if line and len(line) <= _LONGEST else None
    except (ValueError, RecursionError):
        signature = None
    return check(keys, what, _of_text(name, text), signature)


def digest_of(sealed_text: str) -> str:
    """Of a text without its signature."""
    return hashlib.sha256(opened(sealed_text)[0].encode("utf-8", "surrogateescape")).hexdigest()


def _of_text(name: str, text: str) -> dict[str, str]:
    return {"name": name, "text": hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()}


def sealed_command(settings: Settings, run_id: str, fields: Mapping[Any, Any]) -> dict[Any, Any]:
    """The command's fields with a signature, where there are keys."""
    keys = ring(settings)
    if keys is None:
        return dict(fields)
    fresh = dict(fields) | {"nonce": secrets.token_hex(8)}
    return fresh | {FIELD: json.dumps(sign(keys, "command", _of_command(run_id, fresh)))}


def check_command(keys: Ring, run_id: str, fields: Mapping[str, str]) -> None:
    """Raises Forged."""
    if sum(len(name) + len(value) for name, value in fields.items()) > _LONGEST_COMMAND:
        raise Forged(f"it has more than {_LONGEST_COMMAND} characters")
    try:
        signature = json.loads(fields.get(FIELD, "null"))
    except (ValueError, RecursionError):
        signature = None
    check(keys, "command", _of_command(run_id, fields), signature)


def _of_command(run_id: str, fields: Mapping[str, Any]) -> dict[str, str]:
    return {"run": run_id} | {name: str(value) for name, value in fields.items() if name != FIELD}


def seal(what: str, parts: Mapping[str, Any]) -> dict[str, Any]:
    """A signature to be carried along, where there are keys."""
    keys = ring()
    return {} if keys is None else {"seal": sign(keys, what, parts)}


def check_seal(what: str, parts: Mapping[str, Any], signature: Any) -> None:
    """Raises Forged, where there are keys."""
    if (keys := ring()) is not None and check(keys, what, parts, signature).role != "worker":
        raise Forged("it was sealed by a client")


def origin(settings: Settings) -> str:
    """From where something is asked."""
    return settings.origin or socket.gethostname()

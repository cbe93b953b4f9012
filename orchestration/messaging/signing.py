"""Signatures of messages, requests and commands: write access to Redis alone does not suffice to run anything.

A signature is an HMAC-SHA256 over everything that a worker acts upon: the name and id of the task, the number of the
try, the digest of the plan, the time of signing, and a digest of the bytes of the body. A worker verifies the signature
before it reads the body or request. (Celery's `auth` serializer signs the body alone, and leaves the task name open to
change.) There are two roles: a client's key signs requests, commands and the messages that move a run on; only a
worker's key signs steps and undos. The check that a message is carried out once is in
`longshore.tasks.control.celery_tasks`.
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
#: The tasks that a client's key may sign.
OF_CLIENTS = frozenset({"longshore.advance", "longshore.dry_run", "longshore.scheduled"})
#: The tasks that carry their signature in their arguments.
SEALED = frozenset({"longshore.task_ended"})
#: The follow-ups of a message, which a worker signs and sends after the task.
_FOLLOW_UPS = ("callbacks", "errbacks", "chain", "chord")
#: The prefix of the tasks whose messages are signed.
OURS = "longshore."
#: Seconds by which the clock of a signer may be ahead.
AHEAD = 300.0
#: Seconds for which a signature is valid; longer than any message waits.
LASTS = 2 * 86_400.0
#: Seconds for which an accepted signature is recorded: the validity, whatever the clock of the signer.
REMEMBERED = round(LASTS + AHEAD)
#: Seconds for which a replaced key remains valid.
KEPT = LASTS + 86_400.0
#: The headers that are not signed: trace propagation, which no worker acts upon. All other headers are signed, unknown
#: ones included, since Celery exposes every header as an attribute of the request.
_UNSIGNED = frozenset({FIELD, "traceparent", "tracestate", "baggage", "sentry-trace"})


class Forged(Exception):
    """Raised for a missing or invalid signature."""


@dataclass(frozen=True)
class Key:
    """One key. `since` is when it begins to sign, `until` when it expires (0: never); seconds since 1970."""

    id: str
    role: Role
    secret: str
    since: float = 0.0
    until: float = 0.0


@dataclass(frozen=True)
class Ring:
    """The keys of a process. A process without a worker's key is a client."""

    keys: tuple[Key, ...]

    @property
    def role(self) -> Role:
        """The role of the process."""
        return "worker" if any(key.role == "worker" for key in self.keys) else "client"

    def signing(self, now: float) -> Key:
        """The newest key of the role that may sign now. Raises ConfigError without one."""
        mine = [key for key in self.keys if key.role == self.role and key.since <= now and not _past(key, now)]
        if not mine:
            raise ConfigError(
                f"no key of role {self.role} may sign now: all have expired or begin later",
                remedy="make new keys: longshore init --rotate",
            )
        return max(mine, key=lambda key: key.since)

    def find(self, key_id: str, now: float) -> Key | None:
        """The key of an id, or None where it is unknown or has expired."""
        return next((key for key in self.keys if key.id == key_id and not _past(key, now)), None)


def _past(key: Key, now: float) -> bool:
    return bool(key.until) and key.until < now


# --- the file -------------------------------------------------------------------------------------


def new_key(role: Role, since: float = 0.0) -> Key:
    """A new random key."""
    return Key(f"{role[0]}{secrets.token_hex(4)}", role, secrets.token_hex(32), since)


def rotated(keys: Iterable[Key], now: float, after: float) -> list[Key]:
    """The keys after a rotation: a new key for each role, and the former keys that are still valid.

    The new keys sign from `after` seconds on, which leaves time to distribute the file. The former keys remain valid
    while messages that they signed may be under way; expired keys are dropped.
    """
    since = now + after
    kept = [Key(k.id, k.role, k.secret, k.since, k.until or since + KEPT) for k in keys if not _past(k, now)]
    return [*kept, *(new_key(role, since) for role in sorted({key.role for key in kept}))]


def written(keys: Iterable[Key]) -> str:
    """The text of a key file."""
    return json.dumps({"keys": [asdict(key) for key in keys]}, indent=1) + "\n"


def read(path: Path) -> Ring:
    """Read a key file. Raises ConfigError where it cannot be read, is malformed, or is readable by other users."""
    try:
        if path.stat().st_mode & 0o077 & ~0o040:
            raise ConfigError(
                f"the keys in {path} can be read by other users", remedy=f"restrict the file: chmod 600 {path}"
            )
        return Ring(tuple(Key(**key) for key in json.loads(path.read_text())["keys"]))
    except OSError as error:
        raise ConfigError(
            f"the keys in {path} cannot be read: {error.strerror}", remedy="make a key file: longshore init"
        ) from None
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"{path} is not a key file: {error}", remedy="make a key file: longshore init") from None


@lru_cache(maxsize=8)
def _ring(path: str, changed: int) -> Ring:  # noqa: ARG001 - part of the cache key
    return read(Path(path))


#: The key file of the client that is sending, where it differs from that of the process's settings.
_sending: ContextVar[str | None] = ContextVar("longshore_keys", default=None)


@contextlib.contextmanager
def sending(settings: Settings) -> Iterator[None]:
    """Sign the messages that the block sends with the keys of these settings."""
    token = _sending.set(settings.keys)
    try:
        yield
    finally:
        _sending.reset(token)


def ring(settings: Settings | None = None) -> Ring | None:
    """The keys of the settings, read again when the file changes; None where signing is off. Raises ConfigError."""
    path = settings.keys if settings is not None else get_settings().keys if _sending.get() is None else _sending.get()
    if not path:
        return None
    try:
        return _ring(path, os.stat(path).st_mtime_ns)
    except OSError as error:
        raise ConfigError(
            f"the keys in {path} cannot be read: {error.strerror}", remedy="make a key file: longshore init"
        ) from None


# --- signing and checking -------------------------------------------------------------------------


def _text(what: str, parts: Mapping[str, Any]) -> bytes:
    text = json.dumps([what, parts], sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode("utf-8", "surrogateescape")


def _mac(key: Key, what: str, parts: Mapping[str, Any]) -> str:
    return hmac.new(bytes.fromhex(key.secret), _text(what, parts), hashlib.sha256).hexdigest()


def sign(keys: Ring, what: str, parts: Mapping[str, Any]) -> dict[str, Any]:
    """Sign `parts` for one use (`what`), which keeps a signature from being valid for another use."""
    now = time.time()
    key = keys.signing(now)
    made = {"key": key.id, "at": round(now, 3)}
    return made | {"mac": _mac(key, what, {**parts, **made})}


def check(keys: Ring, what: str, parts: Mapping[str, Any], signature: Any) -> Key:
    """Verify a signature and return the key that made it. Raises Forged."""
    if not isinstance(signature, dict):
        raise Forged("the signature is missing")
    now = time.time()
    at, key_id = signature.get("at"), signature.get("key")
    key = keys.find(key_id, now) if isinstance(key_id, str) else None
    if key is None:
        raise Forged("its signing key is unknown here or has expired")
    if not isinstance(at, int | float) or isinstance(at, bool) or not now - LASTS < at < now + AHEAD:
        raise Forged("its signature is too old, or dated in the future")
    mac = str(signature.get("mac")).encode("utf-8", "replace")  # compare_digest accepts only ASCII text
    if not hmac.compare_digest(_mac(key, what, {**parts, "key": key_id, "at": at}).encode(), mac):
        raise Forged("its signature does not match: the content was changed")
    return key


# --- messages -------------------------------------------------------------------------------------


def _parts(headers: Mapping[str, Any], body: bytes, digest: str) -> dict[str, Any]:
    """The signed parts of a message: every header that a worker acts upon, and a digest of the bytes of the body."""
    named = {name: value for name, value in headers.items() if name not in _UNSIGNED and value is not None}
    return {"headers": named, "plan": digest, "body": hashlib.sha256(body).hexdigest()}


def check_message(keys: Ring, headers: Mapping[str, Any], body: bytes) -> None:
    """Verify a message before its body is read. Raises Forged unless a key that may sign its task has signed it."""
    task = str(headers.get("task"))
    if not task.startswith(OURS):
        # Celery's own tasks send arbitrary messages, which the worker would then sign.
        raise Forged("these workers accept signed tasks of Longshore only")
    if task in SEALED:
        # An application's worker sends this message without a key. The task verifies the seal in its arguments; the
        # rest of the message is untrusted.
        if _follows(body) or any(headers.get("timelimit") or ()):
            raise Forged("the message may have neither follow-up messages nor a time limit")
        return
    signature = headers.get(FIELD)
    digest = signature.get("plan", "") if isinstance(signature, dict) else ""
    key = check(keys, "message", _parts(headers, body, digest), signature)
    if key.role == "client" and task not in OF_CLIENTS:
        raise Forged(f"a client may not send {task}")
    if key.role == "client" and _follows(body):
        raise Forged("a client may not add follow-up messages")


def _follows(body: bytes) -> bool:
    """Report whether a message has follow-ups. Raises Forged for a body that is not JSON."""
    try:
        parts = json.loads(body)
    except (ValueError, RecursionError):
        raise Forged("its body is not JSON") from None
    follow_ups = parts[2] if isinstance(parts, list) and len(parts) > 2 and isinstance(parts[2], dict) else {}
    return any(follow_ups.get(name) for name in _FOLLOW_UPS)


@before_task_publish.connect
def _sign_message(sender: Any = None, body: Any = None, headers: Any = None, **_: Any) -> None:
    """Sign each message of Longshore that this process sends, chord bodies and later chain links included."""
    if not str(sender).startswith(OURS) or (keys := ring()) is None or headers is None:
        return
    # A former signature is that of the message that this one follows from: a retry, or an earlier link of the chain.
    before = headers.pop(FIELD, None)
    digest = str(before.get("plan", "")) if isinstance(before, dict) else ""
    sent = kombu_json.dumps(body).encode()  # the same bytes that kombu sends
    seen = json.loads(kombu_json.dumps(dict(headers)))
    headers[FIELD] = sign(keys, "message", _parts(seen, sent, digest)) | {"plan": digest}


def plan_header(digest: str) -> dict[str, Any]:
    """The header that carries the digest of the plan until the message is signed."""
    return {FIELD: {"plan": digest}} if digest else {}


# --- requests and commands ------------------------------------------------------------------------

#: The longest signature line of a text, and the longest command with all its fields, in characters.
_LONGEST, _LONGEST_COMMAND = 500, 64 * 1024


def sealed(settings: Settings, what: str, name: str, text: str) -> str:
    """The text of a request or dry run, preceded by a line with its signature; the bare text where signing is off."""
    keys = ring(settings)
    return text if keys is None else f"{json.dumps(sign(keys, what, _of_text(name, text)))}\n{text}"


def opened(sealed_text: str) -> tuple[str, str]:
    """Split a sealed text into the text and its signature line, '' for none."""
    line, newline, text = sealed_text.partition("\n")
    return (text, line) if newline else (sealed_text, "")


def check_text(keys: Ring, what: str, name: str, sealed_text: str) -> Key:
    """Verify a sealed text before it is parsed, and return the key that signed it. Raises Forged."""
    text, line = opened(sealed_text)
    try:
        signature = json.loads(line) if line and len(line) <= _LONGEST else None
    except (ValueError, RecursionError):
        signature = None
    return check(keys, what, _of_text(name, text), signature)


def digest_of(sealed_text: str) -> str:
    """The digest of a sealed text without its signature."""
    return hashlib.sha256(opened(sealed_text)[0].encode("utf-8", "surrogateescape")).hexdigest()


def _of_text(name: str, text: str) -> dict[str, str]:
    return {"name": name, "text": hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()}


def sealed_command(settings: Settings, run_id: str, fields: Mapping[Any, Any]) -> dict[Any, Any]:
    """The fields of a command, with a nonce and a signature unless signing is off."""
    keys = ring(settings)
    if keys is None:
        return dict(fields)
    fresh = dict(fields) | {"nonce": secrets.token_hex(8)}
    return fresh | {FIELD: json.dumps(sign(keys, "command", _of_command(run_id, fresh)))}


def check_command(keys: Ring, run_id: str, fields: Mapping[str, str]) -> None:
    """Verify the signature of a command. Raises Forged."""
    if sum(len(name) + len(value) for name, value in fields.items()) > _LONGEST_COMMAND:
        raise Forged(f"the text has more than {_LONGEST_COMMAND} characters")
    try:
        signature = json.loads(fields.get(FIELD, "null"))
    except (ValueError, RecursionError):
        signature = None
    check(keys, "command", _of_command(run_id, fields), signature)


def _of_command(run_id: str, fields: Mapping[str, Any]) -> dict[str, str]:
    return {"run": run_id} | {name: str(value) for name, value in fields.items() if name != FIELD}


def seal(what: str, parts: Mapping[str, Any]) -> dict[str, Any]:
    """A signature to pass as keyword arguments; empty where signing is off."""
    keys = ring()
    return {} if keys is None else {"seal": sign(keys, what, parts)}


def check_seal(what: str, parts: Mapping[str, Any], signature: Any) -> None:
    """Verify a seal that a worker made, unless signing is off. Raises Forged."""
    if (keys := ring()) is not None and check(keys, what, parts, signature).role != "worker":
        raise Forged("its seal was made by a client, not a worker")


def origin(settings: Settings) -> str:
    """The origin of a request: the setting `origin`, or the host name."""
    return settings.origin or socket.gethostname()

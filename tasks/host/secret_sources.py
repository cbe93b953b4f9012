"""The values of `secret()` on a worker: only from allowed sources, and never the worker's own credentials.

`LONGSHORE_ALLOWED_SECRETS` lists prefixes of environment variables, and folders. Whatever the list admits, the
worker's own credentials are rejected: by the name of the variable or file, by the identity of the file, and, as one
value may have several names, by content.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from urllib.parse import unquote, urlsplit

from longshore.orchestration.errors import ConfigError, NotAllowed, OperationError, Preflight
from longshore.orchestration.language.secrets import Redaction
from longshore.orchestration.messaging import signing
from longshore.orchestration.settings import SENTINEL, get_settings, sentinel
from longshore.tasks.host import paths
from longshore.tasks.host.allow_lists import patterns, within

#: Plans may read variables with this prefix by default; every other LONGSHORE_ variable is a setting.
OF_PLANS = "LONGSHORE_SECRET_"
#: Prefixes of the settings of the worker, Celery and Flower, and of the passwords that `longshore init` writes.
_OWN_NAMES = ("LONGSHORE_", "CELERY_", "BROKER_", "FLOWER_", "REDIS_ADMIN_PASSWORD")
#: Kernel file systems, which expose environments, memory and open files of processes under other names.
_KERNEL = ("/proc", "/sys", "/dev")
#: Characters; a shorter secret would match by chance in the output of a step.
_SHORTEST = 4
#: Characters; a shorter credential of the worker would match by chance inside another value, and is compared whole.
_SHORTEST_PART = 8
_LARGEST = 64 * 1024


def read(reference: str) -> str:
    """The value of `env:NAME` or `file:/path`.

    Raises NotAllowed if this worker may not read it, and Preflight if it is missing or unusable.
    """
    kind, _, name = reference.partition(":")
    entries = patterns(get_settings().allowed_secrets)
    if kind == "env":
        value = _variable(reference, name, [entry for entry in entries if not entry.startswith("/")])
    else:
        value = _file(reference, name, [os.path.realpath(entry) for entry in entries if entry.startswith("/")])
    if holds_own(value):
        raise _refused(reference, "the value is a credential of this worker")
    if len(value) < _SHORTEST:
        raise Preflight(
            f"secret {reference} has fewer than {_SHORTEST} characters, too few to redact it in records",
            remedy="choose a longer secret",
        )
    return value


def known(references: Iterable[str]) -> set[str]:
    """The values of the secrets that this worker can read."""
    found = set()
    for reference in references:
        with contextlib.suppress(OperationError):
            found.add(read(reference))
    return found


def _refused(reference: str, why: str) -> NotAllowed:
    return NotAllowed(
        f"this worker may not read secret {reference}: {why}",
        remedy=f"name it {OF_PLANS}…, put it in /run/secrets, or set LONGSHORE_ALLOWED_SECRETS of the worker",
    )


def _variable(reference: str, name: str, prefixes: list[str]) -> str:
    # The names of settings are case-insensitive.
    own = name.upper().startswith(_OWN_NAMES) and not name.startswith(OF_PLANS)
    if own or not any(name.startswith(prefix) for prefix in prefixes):
        raise _refused(reference, "the variable is a setting of Longshore" if own else "no entry of the list admits it")
    value = os.environ.get(name)
    if value is None:
        raise Preflight(
            f"secret {reference} is not set on this worker", remedy=f"start the worker with {name} in its environment"
        )
    return value


def _file(reference: str, path: str, folders: list[str]) -> str:
    real = os.path.realpath(path)
    closed = _closed(folders)
    admitted = any(within(real, folder) for folder in folders) and real not in paths.own_files()
    if not admitted or any(within(real, folder) for folder in closed):
        raise _refused(reference, "no folder of the list contains it")
    try:
        with paths.opened(os.path.dirname(real), closed) as folder:
            fd = paths.open_regular(os.path.basename(real), folder)
        if fd is None:
            raise Preflight(f"secret {reference} is not readable on this worker: not a regular file")
        with os.fdopen(fd, "rb") as file:
            data = file.read(_LARGEST + 1)
        value = data.decode().removesuffix("\n")
    except NotAllowed:
        raise _refused(reference, "the file belongs to this worker") from None
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "not UTF-8 text"
        raise Preflight(f"secret {reference} is not readable on this worker: {why}") from None
    if len(data) > _LARGEST:
        raise Preflight(f"secret {reference} is larger than {_LARGEST} bytes")
    return value


def _closed(folders: list[str]) -> list[str]:
    """Folders that are closed to plans. The folder of the keys stays open if the list names it."""
    of_keys = os.path.realpath(os.path.dirname(get_settings().keys)) if get_settings().keys else ""
    return [*_KERNEL, *(folder for folder in paths.own_folders() if folder != of_keys or folder not in folders)]


def holds_own(text: str) -> bool:
    """Reports whether a text contains the worker's keys, Redis URL or password, in any encoding."""
    return text in set(_own_values()) or own_access().text(text) != text


def own_access() -> Redaction:
    """A redaction of the worker's own credentials."""
    found = Redaction()
    found.values = {value for value in _own_values() if len(value) >= _SHORTEST_PART}
    return found


def _own_values() -> Iterator[str]:
    """The keys, the Redis URL and its password, and the secret that signs notifications."""
    settings = get_settings()
    yield from filter(None, (settings.notify_secret,))
    if settings.redis_url:
        yield settings.redis_url
        yield from filter(None, _passwords(settings.redis_url))
    try:
        ring = signing.ring()
    except ConfigError as error:
        raise Preflight(
            f"this worker's keys are unreadable, so that no secret can be checked against them: {error}"
        ) from None
    yield from (key.secret for key in ring.keys) if ring is not None else ()


def _passwords(url: str) -> Iterator[str | None]:
    password = sentinel(url).password if url.startswith(SENTINEL) else urlsplit(url).password
    yield password
    yield unquote(password) if password else None

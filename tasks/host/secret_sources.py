"""Reads the values of `secret()` on a worker: only from sources that its setting admits, and never its own access.

`LONGSHORE_ALLOWED_SECRETS` has beginnings of environment variables' names, and folders. Whatever stands there, a value
is refused that gives away the installation: by the name of its variable or file, by the identity of the file, and, as
the same value may have many names, by what it holds.
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

#: Plans may read variables with this prefix by default; every other variable of LONGSHORE_ is a setting.
OF_PLANS = "LONGSHORE_SECRET_"
#: Settings of the worker, of Celery and of Flower; the names that `longshore init` gives to passwords.
_OWN_NAMES = ("LONGSHORE_", "CELERY_", "BROKER_", "FLOWER_", "REDIS_ADMIN_PASSWORD")
#: The kernel's, through which environments, memory and open files of processes can be read under other names.
_KERNEL = ("/proc", "/sys", "/dev")
#: A shorter one would be found by chance in what a step says.
_SHORTEST = 4
#: A shorter one of the worker's own would be found by chance in another; it is compared as a whole.
_SHORTEST_PART = 8
_LARGEST = 64 * 1024


def read(reference: str) -> str:
    """The value of `env:NAME` or `file:/path`. NotAllowed where this worker may not read it; else Preflight."""
    kind, _, name = reference.partition(":")
    entries = patterns(get_settings().allowed_secrets)
    if kind == "env":
        value = _variable(reference, name, [entry for entry in entries if not entry.startswith("/")])
    else:
        value = _file(reference, name, [os.path.realpath(entry) for entry in entries if entry.startswith("/")])
    if holds_own(value):
        raise _refused(reference, "that is a part of this worker's own access")
    if len(value) < _SHORTEST:
        raise Preflight(
            f"secret {reference} has fewer than {_SHORTEST} characters, and could not be kept out of records"
        )
    return value


def known(references: Iterable[str]) -> set[str]:
    """The values of those that this worker can read."""
    found = set()
    for reference in references:
        with contextlib.suppress(OperationError):
            found.add(read(reference))
    return found


def _refused(reference: str, why: str) -> NotAllowed:
    return NotAllowed(
        f"this worker may not read secret {reference}: {why}",
        remedy=f"name it {OF_PLANS}…, put it in /run/secrets, or set the worker's LONGSHORE_ALLOWED_SECRETS",
    )


def _variable(reference: str, name: str, beginnings: list[str]) -> str:
    # Settings are read whatever the case of their names is.
    own = name.upper().startswith(_OWN_NAMES) and not name.startswith(OF_PLANS)
    if own or not any(name.startswith(beginning) for beginning in beginnings):
        raise _refused(reference, "it is a setting of Longshore's" if own else "no entry of the list admits it")
    value = os.environ.get(name)
    if value is None:
        raise Preflight(f"secret {reference} is not set for this worker", remedy=f"start it with {name} set")
    return value


def _file(reference: str, path: str, folders: list[str]) -> str:
    real = os.path.realpath(path)
    closed = _closed(folders)
    admitted = any(within(real, folder) for folder in folders) and real not in paths.own_files()
    if not admitted or any(within(real, folder) for folder in closed):
        raise _refused(reference, "it lies in no folder of the list")
    try:
        with paths.opened(os.path.dirname(real), closed) as folder:
            fd = paths.open_regular(os.path.basename(real), folder)
        if fd is None:
            raise Preflight(f"secret {reference} cannot be read by this worker: it is no regular file")
        with os.fdopen(fd, "rb") as file:
            data = file.read(_LARGEST + 1)
        value = data.decode().removesuffix("\n")
    except NotAllowed:
        raise _refused(reference, "it is this worker's own") from None
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "it is no text"
        raise Preflight(f"secret {reference} cannot be read by this worker: {why}") from None
    if len(data) > _LARGEST:
        raise Preflight(f"secret {reference} is larger than {_LARGEST} bytes")
    return value


def _closed(folders: list[str]) -> list[str]:
    """Folders with nothing for plans in them. The keys may lie in a folder of the list, as a file among others."""
    of_keys = os.path.realpath(os.path.dirname(get_settings().keys)) if get_settings().keys else ""
    return [*_KERNEL, *(folder for folder in paths.own_folders() if folder != of_keys or folder not in folders)]


def holds_own(text: str) -> bool:
    """Reports whether a text holds the worker's own keys, Redis URL or password, in any spelling."""
    return text in set(_own_values()) or own_access().text(text) != text


def own_access() -> Redaction:
    """Redacts the worker's own access in a text."""
    found = Redaction()
    found.values = {value for value in _own_values() if len(value) >= _SHORTEST_PART}
    return found


def _own_values() -> Iterator[str]:
    """The keys, the Redis URL and the password in it, and the secret that notifications are signed with."""
    settings = get_settings()
    yield from filter(None, (settings.notify_secret,))
    if settings.redis_url:
        yield settings.redis_url
        yield from filter(None, _passwords(settings.redis_url))
    try:
        ring = signing.ring()
    except ConfigError as error:
        raise Preflight(f"no secret can be told from this worker's own keys: {error}") from None
    yield from (key.secret for key in ring.keys) if ring is not None else ()


def _passwords(url: str) -> Iterator[str | None]:
    password = sentinel(url).password if url.startswith(SENTINEL) else urlsplit(url).password
    yield password
    yield unquote(password) if password else None

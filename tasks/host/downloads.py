"""Downloads of the files that a plan deploys: from this host, a web server or an object store."""

from __future__ import annotations

import re
import time

import requests

from longshore.orchestration.errors import OperationError, Preflight, Transient
from longshore.orchestration.settings import get_settings
from longshore.tasks.host import addresses, paths
from longshore.tasks.host.http_session import session

_SCHEME = re.compile(r"([a-z0-9+]+)://([^/]*)(.*)", re.DOTALL)
_FILES = frozenset({"file", "local"})
_WEB = frozenset({"http", "https"})
#: The worker's own configuration names the servers of these. Every other file system of fsspec wraps another one, runs
#: a program, or takes an unchecked server from the URL.
_STORES = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss"})
#: Seconds to connect to a server, and for the whole response.
_CONNECT, _WHOLE = 10.0, 300.0


def fetch(url: str) -> bytes:
    """Download a URL. Raises Preflight or Transient on failure, and NotAllowed if this worker may not read the URL."""
    limit = get_settings().max_object
    parts = _SCHEME.fullmatch(url)
    scheme = parts[1] if parts is not None else ""
    if parts is None or "::" in url or scheme not in _FILES | _WEB | _STORES:
        known = ", ".join(sorted(_FILES | _WEB | _STORES))
        raise Preflight(f"{url}: unknown URL scheme", remedy=f"write SCHEME://…, with one of the schemes {known}")
    if scheme in _WEB:
        data = _web(url, limit)
    elif scheme in _FILES:
        data = _local(url, parts[2] + parts[3], limit)
    else:
        addresses.check_store(scheme, parts[2])
        data = _store(url, limit)
    if len(data) > limit:
        raise Preflight(f"{addresses.shown(url)} has more than {limit} bytes", remedy="raise LONGSHORE_MAX_OBJECT")
    return data


def _local(url: str, path: str, limit: int) -> bytes:
    if not path.startswith("/"):
        raise Preflight(f"{url} is not an absolute file path", remedy="write file:///PATH")
    try:
        return paths.read(path, limit)
    except FileNotFoundError as error:
        raise Preflight(f"{url} does not exist", remedy="check the path on the worker's host") from error
    except OSError as error:
        raise Preflight(f"{url}: {error.strerror}") from error


def _web(url: str, limit: int) -> bytes:
    where, end, shown = addresses.endpoint(url), time.monotonic() + _WHOLE, addresses.shown(url)
    addresses.check(where.name)
    data = b""
    try:
        with session() as web, web.get(where.url, stream=True, timeout=(_CONNECT, 30.0)) as answer:
            if answer.status_code in {404, 410}:
                raise Preflight(f"{shown} returned {answer.status_code}", remedy="check the URL")
            if answer.status_code != 200:
                kind = Transient if answer.status_code >= 500 or answer.status_code == 429 else Preflight
                raise kind(f"{shown} returned {answer.status_code}")
            for chunk in answer.iter_content(65536):
                data += chunk
                if len(data) > limit:
                    break
                if time.monotonic() > end:
                    raise Transient(f"{shown}: the response took longer than {_WHOLE:g} s")
    except requests.RequestException as error:
        raise Transient(f"{shown}: {type(error).__name__}") from error
    return data


def _store(url: str, limit: int) -> bytes:
    try:
        import fsspec  # noqa: PLC0415 - the extra objects

        with fsspec.open(url, "rb") as file:
            data: bytes = file.read(limit + 1)
    except ImportError as error:
        raise Preflight(
            f"{url}: {error}", remedy="pip install 'longshore[objects]' and the driver of the scheme"
        ) from error
    except FileNotFoundError as error:
        raise Preflight(f"{url} does not exist", remedy="check the bucket and the path") from error
    except PermissionError as error:
        raise Preflight(f"{url}: permission denied", remedy="grant read access to the worker's credentials") from error
    except OperationError:
        raise
    except ValueError as error:
        raise Preflight(f"{url}: {error}") from error
    except Exception as error:  # each driver raises its own error types
        raise Transient(f"{url}: {type(error).__name__}: {error}") from error
    return data

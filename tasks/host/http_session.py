"""A `requests` session that connects only to checked addresses, at each hop of a redirect."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import ConnectTimeoutError, NewConnectionError

from longshore.tasks.host import addresses


def _connected(connection: Any, connect: Callable[[], socket.socket]) -> socket.socket:
    """Connect to one of the admitted addresses of the host; certificates are verified against the host name."""
    name = connection._dns_host
    try:
        found = addresses.resolve(name.strip("[]"), connection.port)
    except (OSError, UnicodeError) as error:
        raise NewConnectionError(connection, f"Failed to resolve {name!r} ({error})") from error
    for address in found:
        try:
            connection._dns_host = address
            return connect()
        except (NewConnectionError, ConnectTimeoutError):
            if address == found[-1]:
                raise
        finally:
            connection._dns_host = name
    raise AssertionError("resolve() returned no address")


class _Http(HTTPConnection):
    def _new_conn(self) -> socket.socket:
        return _connected(self, super()._new_conn)


class _Https(HTTPSConnection):
    def _new_conn(self) -> socket.socket:
        return _connected(self, super()._new_conn)


class _HttpPool(HTTPConnectionPool):
    ConnectionCls = _Http


class _HttpsPool(HTTPSConnectionPool):
    ConnectionCls = _Https


class _Adapter(HTTPAdapter):
    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = {"http": _HttpPool, "https": _HttpsPool}

    def send(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> requests.Response:
        """Check the host, then send; requests calls this method for each hop of a redirect."""
        addresses.check(addresses.endpoint(str(request.url)).name)
        return super().send(request, *args, **kwargs)


def session() -> requests.Session:
    """A session without the worker's proxy and .netrc, which would bypass the address check."""
    web = requests.Session()
    web.trust_env = False
    for scheme in ("http://", "https://"):
        web.mount(scheme, _Adapter())
    return web

"""Answers of the engine that go on for a while: two streams in one, a program's input and output, progress."""

from __future__ import annotations

import contextlib
import json
import queue
import select
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from longshore.orchestration.errors import LongshoreError, Transient

if TYPE_CHECKING:
    from longshore.tasks.host.engine.port import Check, Said

_TICK = 0.2
_CHUNK = 65536


def frames(chunks: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    """The engine's two streams in one: a byte says which (1, 2), and four give the length of what follows."""
    held = bytearray()
    for chunk in chunks:
        held += chunk
        while len(held) >= 8:
            end = 8 + int.from_bytes(held[4:8], "big")
            if len(held) < end:
                break
            yield held[0], bytes(held[8:end])
            del held[:end]


def talk(raw: Any, ahead: bytes, stdin: bytes | None, said: Said, check: Check) -> None:
    """Feed a program and hear it to its end; over its connection, which is nobody else's now.

    `ahead` is what was read of it already.
    """
    connection = getattr(raw, "_sock", raw)
    pending = memoryview(stdin or b"")
    if stdin is not None and not pending:
        _end_of_input(connection)

    def heard() -> Iterator[bytes]:
        nonlocal pending
        if ahead:
            yield ahead
        while True:
            check()
            # What TLS has read ahead cannot be seen from outside.
            hidden = getattr(connection, "pending", int)()
            wait = 0 if hidden else _TICK
            readable, writable, _ = select.select([connection], [connection] if pending else [], [], wait)
            if writable:
                try:
                    pending = pending[connection.send(pending[:_CHUNK]) :]
                except OSError:
                    pending = pending[:0]  # it does not read on
                if not pending:
                    _end_of_input(connection)
            if readable or hidden:
                chunk = connection.recv(_CHUNK)
                if not chunk:
                    return
                yield chunk

    for stream, piece in frames(heard()):
        said(stream, piece)


def _end_of_input(connection: Any) -> None:
    with contextlib.suppress(OSError, AttributeError):
        connection.shutdown(socket.SHUT_WR)


def entries(engine: Any, begin: Callable[[Any], Any], check: Check) -> Iterator[dict[str, Any]]:
    """What a call tells, one JSON object after the other. What `check` raises breaks it off, also while it is silent.

    A thread reads, for a response cannot be waited for and be given up at the same time.
    """
    heard: queue.Queue[Any] = queue.Queue()
    given_up = threading.Event()

    def read() -> None:
        try:
            response = begin(engine)
            if given_up.is_set():
                engine.close_connections()  # it answered late: what it has begun ends with its connection
                return
            for line in response.iter_lines(_CHUNK):
                if line.strip():
                    heard.put(json.loads(line))
            heard.put(None)
        except LongshoreError as error:
            heard.put(error)
        except Exception as error:  # noqa: BLE001 - told to whoever waits
            heard.put(Transient(f"the Docker engine broke off: {error}"))

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        while True:
            try:
                entry = heard.get(timeout=_TICK)
            except queue.Empty:
                check()
                continue
            if entry is None:
                return
            if isinstance(entry, LongshoreError):
                raise entry
            yield entry
            check()
    finally:
        given_up.set()
        engine.close_connections()  # the engine gives up then, also where it has not answered yet


def record_connections(api: Any, url: str) -> list[Any]:
    """The connections that calls of this URL are going to make: requests gives none of them out."""
    made: list[Any] = []
    adapter = api.get_adapter(url)
    find = getattr(adapter, "get_connection", None)
    if not hasattr(adapter, "pools") or find is None:
        return made  # over the network: the call's own end will do
    pool = find(url)
    make = pool._new_conn

    def recorded() -> Any:
        made.append(make())
        return made[-1]

    pool._new_conn = recorded
    return made

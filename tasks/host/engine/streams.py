"""Streamed responses of the engine: multiplexed output, the input and output of a program, progress entries."""

from __future__ import annotations

import contextlib
import json
import queue
import select
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from longshore.orchestration.errors import LongshoreError, Transient
from longshore.tasks.host.engine.port import Check, OnOutput

_TICK = 0.2
_CHUNK = 65536


def frames(chunks: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    """Demultiplex the engine's output: byte 0 of a header is the stream (1, 2), bytes 4 to 7 the payload's length."""
    held = bytearray()
    for chunk in chunks:
        held += chunk
        while len(held) >= 8:
            end = 8 + int.from_bytes(held[4:8], "big")
            if len(held) < end:
                break
            yield held[0], bytes(held[8:end])
            del held[:end]


def talk(raw: Any, ahead: bytes, stdin: bytes | None, on_output: OnOutput, check: Check) -> None:
    """Write a program's input and read its output to the end, over a connection for this program only.

    `ahead`: output that was read before this call.
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
            # select() does not see the bytes that TLS has buffered.
            buffered = getattr(connection, "pending", int)()
            wait = 0 if buffered else _TICK
            readable, writable, _ = select.select([connection], [connection] if pending else [], [], wait)
            if writable:
                try:
                    pending = pending[connection.send(pending[:_CHUNK]) :]
                except OSError:
                    pending = pending[:0]  # the program has closed its input
                if not pending:
                    _end_of_input(connection)
            if readable or buffered:
                chunk = connection.recv(_CHUNK)
                if not chunk:
                    return
                yield chunk

    for stream, piece in frames(heard()):
        on_output(stream, piece)


def _end_of_input(connection: Any) -> None:
    with contextlib.suppress(OSError, AttributeError):
        connection.shutdown(socket.SHUT_WR)


def entries(engine: Any, begin: Callable[[Any], Any], check: Check) -> Iterator[dict[str, Any]]:
    """The JSON entries of a streamed call. An error of `check` aborts the call, also between entries.

    A thread reads the response, since a blocking read cannot be aborted.
    """
    heard: queue.Queue[Any] = queue.Queue()
    given_up = threading.Event()

    def read() -> None:
        try:
            response = begin(engine)
            if given_up.is_set():
                engine.close_connections()  # a late response: closing the connection ends the engine's work
                return
            for line in response.iter_lines(_CHUNK):
                if line.strip():
                    heard.put(json.loads(line))
            heard.put(None)
        except LongshoreError as error:
            heard.put(error)
        except Exception as error:  # noqa: BLE001 - the consumer raises it
            heard.put(Transient(f"the Docker engine closed the stream: {error}"))

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
        engine.close_connections()  # the engine aborts the call, also before its response


def record_connections(api: Any, url: str) -> list[Any]:
    """A list that collects the connections of later calls to this URL, which requests does not expose."""
    made: list[Any] = []
    adapter = api.get_adapter(url)
    find = getattr(adapter, "get_connection", None)
    if not hasattr(adapter, "pools") or find is None:
        return made  # over the network: closing the response is enough
    pool = find(url)
    make = pool._new_conn

    def recorded() -> Any:
        made.append(make())
        return made[-1]

    pool._new_conn = recorded
    return made

"""kombu's Redis transport, with validation of every message before kombu parses it.

A malformed message can kill a worker: of eighteen kinds, seven end the process, and two of those are redelivered
and end the next one. The transport moves such a message to the dead letters, with the reason, before the worker
reads it; the sweeper sends the message of a waiting step again.
"""

from __future__ import annotations

import base64
import json
import logging
from datetime import datetime
from functools import cache
from typing import Any, cast

from celery import current_app
from kombu.transport import TRANSPORT_ALIASES, redis, virtual
from redis.exceptions import ConnectionError, ResponseError  # noqa: A004 - kombu catches this one

from longshore.orchestration.errors import StoreUnavailable
from longshore.orchestration.installation import integrity
from longshore.orchestration.messaging import signing
from longshore.orchestration.messaging.canvas import RESENT
from longshore.orchestration.messaging.transport import SharedClient
from longshore.orchestration.store.audit import note_refusal
from longshore.orchestration.store.run_store import Store

log = logging.getLogger(__name__)

#: Maximum bytes of a message: the largest holds the result of an application's task.
_MAX_BYTES = 8 * 1024 * 1024
#: Types of a body's parts: arguments, keywords, and Celery's embedded options.
_BODY = (list, dict, dict)


@cache
def _store() -> Store:
    return Store()


def fault(raw: bytes) -> str:
    """Return why a message is invalid; '' for a valid message."""
    if len(raw) > _MAX_BYTES:
        return f"{len(raw)} bytes, over the limit of {_MAX_BYTES}"
    try:
        return _fault(json.loads(raw))
    except (ValueError, RecursionError) as error:
        return f"not JSON: {type(error).__name__}"
    except (KeyError, TypeError, AttributeError, OverflowError) as error:
        return f"not a Celery message: {type(error).__name__}: {error}"


def _fault(message: Any) -> str:
    if not isinstance(message, dict):
        return f"a {type(message).__name__}, not an object"
    headers, properties = message["headers"], message["properties"]
    if not isinstance(properties["delivery_tag"], str) or not isinstance(properties["delivery_info"], dict):
        return "no valid delivery tag: the message cannot be acknowledged"
    if message.get("content-type") != "application/json" or message.get("content-encoding") != "utf-8":
        return f"content is {message.get('content-type')} in {message.get('content-encoding')}, not JSON in utf-8"
    body = _body(message)
    # The signature is checked before any other part is interpreted.
    return _forged(headers, body) or _wrong_header(headers) or _wrong_body(body)


def _wrong_header(headers: dict[str, Any]) -> str:
    if headers["task"] not in current_app.tasks:
        return f"unknown task {headers['task']!r}"
    if not isinstance(headers["id"], str):
        return "id is not a string"
    if headers.get("compression"):
        return "compressed, which is not supported"
    for name in ("root_id", "parent_id", "group"):
        if not isinstance(headers.get(name), str | None):
            return f"{name} is not a string"
    if not isinstance(headers.get("retries", 0), int):
        return "retries is not an integer"
    limits = headers.get("timelimit") or (None, None)
    if len(limits) != 2 or not all(isinstance(limit, int | float | None) for limit in limits):
        return "timelimit is not two numbers"
    for name in ("eta", "expires"):
        if headers.get(name) is not None:
            datetime.fromisoformat(headers[name])
    if not isinstance(headers.get("stamped_headers"), list | None) or not isinstance(
        headers.get("stamps"), dict | None
    ):
        return "stamps are invalid"
    return ""


def _body(message: Any) -> bytes:
    """Return a message's body as the bytes that were signed."""
    body = message["body"]
    if message["properties"].get("body_encoding") == "base64":
        return base64.b64decode(body, validate=True)
    return str(body).encode()


def _wrong_body(body: bytes) -> str:
    parts = json.loads(body)
    if not isinstance(parts, list) or len(parts) != len(_BODY):
        return "body is not that of a task"
    if not all(isinstance(part, kind) for part, kind in zip(parts, _BODY, strict=True)):
        return "body is not that of a task"
    return ""


def _forged(headers: dict[str, Any], body: bytes) -> str:
    keys = signing.ring()
    if keys is None:
        return ""
    try:
        signing.check_message(keys, headers, body)
    except signing.Forged as why:
        return f"{headers['task']} is refused: {why}"
    return ""


def keep_dead_letter(queue: str, raw: bytes, why: str) -> None:
    """Store an invalid message, with the reason, for an operator."""
    log.error("queue %s: an invalid message is moved to the dead letters: %s", queue, why)
    try:
        _store().keep_dead_letter(queue, raw.decode("utf-8", "replace"), why)
        note_refusal(_store(), f"a message in queue {queue}: {why}")
    except StoreUnavailable as error:
        log.error("queue %s: the invalid message is lost: %s: %r", queue, error, raw[:2000])


def _filtered(parse: Any) -> Any:
    """Wrap a client's `parse_response`: an invalid message becomes None."""

    def parse_response(connection: Any, command_name: str, **options: Any) -> Any:
        try:
            answer = parse(connection, command_name, **options)
        except ResponseError as error:
            if command_name != "BRPOP" or "WRONGTYPE" not in str(error):
                raise
            # A queue that is not a list: kombu would end this worker and the next one.
            log.error("a queue's key is not a list: %s", error)
            integrity.repair(_store())
            return None
        if command_name != "BRPOP" or not answer:
            return answer
        queue, raw = answer
        if b".pidbox" in queue:  # replies to remote control: no tasks
            return answer
        why = fault(raw)
        if not why:
            return answer
        keep_dead_letter(queue.decode("utf-8", "replace"), raw, why)
        return None

    return parse_response


class _QoS(redis.QoS):
    """Records no copy of a message that the sweeper resends: the saga knows which steps have to run.

    The copy in `unacked` costs two transactions a message, a third of the work of a worker's main process. A worker
    that is killed between receipt and claim loses the message: the sweeper resends the message after one lease. A
    worker that stops, or loses its connection, puts the message back.
    """

    def append(self, message: Any, delivery_tag: str) -> None:
        if message.headers.get("task") in RESENT:
            virtual.QoS.append(self, message, delivery_tag)
        else:
            super().append(message, delivery_tag)

    def ack(self, delivery_tag: str) -> None:
        if self._resent(delivery_tag) is not None:
            virtual.QoS.ack(self, delivery_tag)
        else:
            super().ack(delivery_tag)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        if not requeue and self._resent(delivery_tag) is not None:
            virtual.QoS.ack(self, delivery_tag)
        else:
            super().reject(delivery_tag, requeue=requeue)

    def restore_by_tag(self, tag: str, client: Any = None, leftmost: bool = False) -> None:
        message = self._resent(tag)
        if message is None:
            super().restore_by_tag(tag, client, leftmost)
            return
        where = message.delivery_info
        channel = cast(Any, self.channel)
        with channel.conn_or_acquire(client) as connected:
            channel._do_restore_message(message._raw, where["exchange"], where["routing_key"], connected, leftmost)

    def _resent(self, delivery_tag: str) -> Any:
        """Return the unacknowledged message that the sweeper resends, or None."""
        message = self._delivered.get(delivery_tag) if self._delivered else None
        return message if message is not None and message.headers.get("task") in RESENT else None


class _Filtering(SharedClient):
    """A channel whose client validates messages, and which opens no client on a closed connection."""

    QoS: Any = _QoS

    def _connparams(self, asynchronous: bool = False) -> Any:
        # kombu 5.7 restores the unacknowledged messages of a closed channel, finds no connection, and ends the worker
        # with an AttributeError. kombu handles a ConnectionError: the message is redelivered.
        if self.connection.client is None:  # type: ignore[attr-defined]
            raise ConnectionError("this channel's connection is closed")
        return super()._connparams(asynchronous=asynchronous)  # type: ignore[misc]

    def _create_client(self, asynchronous: bool = False) -> Any:
        client = super()._create_client(asynchronous=asynchronous)
        if asynchronous:  # kombu reads messages with this one
            client.parse_response = _filtered(client.parse_response)
        return client


class Channel(_Filtering, redis.Channel):
    """A channel to one server."""


class Transport(redis.Transport):
    Channel = Channel


class SentinelChannel(_Filtering, redis.SentinelChannel):
    """A channel to the master that Sentinel names."""


class SentinelTransport(redis.SentinelTransport):
    Channel = SentinelChannel


def use() -> None:
    """Register the transport for this process's apps."""
    for scheme in ("redis", "rediss", "redis+socket"):
        TRANSPORT_ALIASES[scheme] = f"{__name__}:Transport"
    TRANSPORT_ALIASES["sentinel"] = f"{__name__}:SentinelTransport"

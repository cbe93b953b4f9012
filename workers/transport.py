"""kombu's Redis transport, with a look at every message before anything is made of it.

Whoever can write to a queue can put there what kills a worker: of eighteen kinds of malformed messages, seven
end the process, and two of those come back and end the next one. Here such a message is put aside, with the
reason, and the worker never sees it; what it may have been a step's is sent again by the sweeper.
"""

from __future__ import annotations

import base64
import json
import logging
from datetime import datetime
from functools import cache
from typing import Any

from celery import current_app
from kombu.transport import TRANSPORT_ALIASES, redis
from redis.exceptions import ConnectionError, ResponseError  # noqa: A004 - the one that kombu knows

from longshore.orchestration.errors import StoreUnavailable
from longshore.orchestration.installation import integrity
from longshore.orchestration.messaging import signing
from longshore.orchestration.store.audit import note_refusal
from longshore.orchestration.store.run_store import Store

log = logging.getLogger(__name__)

#: Bytes of a message: the result of an application's task is the largest that one holds.
_LONGEST = 8 * 1024 * 1024
#: What a body is: arguments, keywords, and what else Celery sends along.
_BODY = (list, dict, dict)


@cache
def _store() -> Store:
    return Store()


def fault(raw: bytes) -> str:
    """What is wrong with a message; '' for one that a worker can take."""
    if len(raw) > _LONGEST:
        return f"it has {len(raw)} bytes, and at most {_LONGEST} may be"
    try:
        return _fault(json.loads(raw))
    except (ValueError, RecursionError) as error:
        return f"it is no JSON: {type(error).__name__}"
    except (KeyError, TypeError, AttributeError, OverflowError) as error:
        return f"it is no message: {type(error).__name__}: {error}"


def _fault(message: Any) -> str:
    if not isinstance(message, dict):
        return f"it is a {type(message).__name__}"
    headers, properties = message["headers"], message["properties"]
    if not isinstance(properties["delivery_tag"], str) or not isinstance(properties["delivery_info"], dict):
        return "it cannot be acknowledged"
    if message.get("content-type") != "application/json" or message.get("content-encoding") != "utf-8":
        return f"its content is {message.get('content-type')} in {message.get('content-encoding')}, not JSON in utf-8"
    body = _body(message)
    # Before anything in it is interpreted.
    return _forged(headers, body) or _wrong_header(headers) or _wrong_body(body)


def _wrong_header(headers: dict[str, Any]) -> str:
    if headers["task"] not in current_app.tasks:
        return f"there is no task {headers['task']!r} here"
    if not isinstance(headers["id"], str):
        return "its id is no text"
    if headers.get("compression"):
        return "it is compressed, which is not done here"
    for name in ("root_id", "parent_id", "group"):
        if not isinstance(headers.get(name), str | None):
            return f"its {name} is no text"
    if not isinstance(headers.get("retries", 0), int):
        return "its number of retries is none"
    limits = headers.get("timelimit") or (None, None)
    if len(limits) != 2 or not all(isinstance(limit, int | float | None) for limit in limits):
        return "its time limits are none"
    for name in ("eta", "expires"):
        if headers.get(name) is not None:
            datetime.fromisoformat(headers[name])
    if not isinstance(headers.get("stamped_headers"), list | None) or not isinstance(
        headers.get("stamps"), dict | None
    ):
        return "its stamps are none"
    return ""


def _body(message: Any) -> bytes:
    """As the bytes that were signed."""
    body = message["body"]
    if message["properties"].get("body_encoding") == "base64":
        return base64.b64decode(body, validate=True)
    return str(body).encode()


def _wrong_body(body: bytes) -> str:
    parts = json.loads(body)
    if not isinstance(parts, list) or len(parts) != len(_BODY):
        return "its body is none of a task"
    if not all(isinstance(part, kind) for part, kind in zip(parts, _BODY, strict=True)):
        return "its body is none of a task"
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
    """Keep a message that no worker can take, for a person."""
    log.error("a message in queue %s is put aside: %s", queue, why)
    try:
        _store().keep_dead_letter(queue, raw.decode("utf-8", "replace"), why)
        note_refusal(_store(), f"a message in queue {queue}: {why}")
    except StoreUnavailable as error:
        log.error("and it could not be kept: %s: %r", error, raw[:2000])


def _filtered(parse: Any) -> Any:
    """A client's `parse_response`, which gives nothing where what came is no message."""

    def parse_response(connection: Any, command_name: str, **options: Any) -> Any:
        try:
            answer = parse(connection, command_name, **options)
        except ResponseError as error:
            if command_name != "BRPOP" or "WRONGTYPE" not in str(error):
                raise
            # A queue that is no list: kombu would end the worker, and the next one as well.
            log.error("a queue has the wrong type: %s", error)
            integrity.repair(_store())
            return None
        if command_name != "BRPOP" or not answer:
            return answer
        queue, raw = answer
        if b".pidbox" in queue:  # answers to remote control: no tasks, and read by whoever has asked
            return answer
        why = fault(raw)
        if not why:
            return answer
        keep_dead_letter(queue.decode("utf-8", "replace"), raw, why)
        return None

    return parse_response


class _Filtering:
    """For a channel: its client reads through the sieve, and is none once its connection was closed."""

    def _connparams(self, asynchronous: bool = False) -> Any:
        # kombu 5.7 gives back what a closed channel has not acknowledged, finds no connection, and ends the worker with
        # an AttributeError. A lost connection it takes for what it is: the message comes again, as any lost one.
        if self.connection.client is None:  # type: ignore[attr-defined]
            raise ConnectionError("the connection of this channel was closed")
        return super()._connparams(asynchronous=asynchronous)  # type: ignore[misc]

    def _create_client(self, asynchronous: bool = False) -> Any:
        client = super()._create_client(asynchronous=asynchronous)  # type: ignore[misc]
        client.parse_response = _filtered(client.parse_response)
        return client


class Channel(_Filtering, redis.Channel):
    """To one server."""


class Transport(redis.Transport):
    Channel = Channel


class SentinelChannel(_Filtering, redis.SentinelChannel):
    """To whichever server Sentinel names."""


class SentinelTransport(redis.SentinelTransport):
    Channel = SentinelChannel


def use() -> None:
    """Have this process's apps read through it."""
    for scheme in ("redis", "rediss", "redis+socket"):
        TRANSPORT_ALIASES[scheme] = f"{__name__}:Transport"
    TRANSPORT_ALIASES["sentinel"] = f"{__name__}:SentinelTransport"

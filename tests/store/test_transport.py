"""Messages of Longshore's transports: sent with the request, and without a copy while unacknowledged."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from kombu import Connection, Queue
from kombu.transport import TRANSPORT_ALIASES

from longshore.orchestration.client.client import Client
from longshore.orchestration.errors import QueueFull
from longshore.orchestration.messaging.canvas import ADVANCE, STEP, TASK_ENDED, UNDO, producer
from longshore.orchestration.plans.model import Plan
from longshore.orchestration.settings import Settings
from longshore.workers import transport
from tests.servers import RedisServer

pytestmark = pytest.mark.store

PLAN = Plan("start")
PLAN.step("only", "noop.execute")


@pytest.fixture
def connection(redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Connection]:
    for scheme, path in list(TRANSPORT_ALIASES.items()):
        monkeypatch.setitem(TRANSPORT_ALIASES, scheme, path)  # the original value returns after the test
    redis_server.flush()
    transport.use()
    with Connection(redis_server.url, transport_options={"priority_steps": [0]}) as made:
        yield made


def received(connection: Connection, task: str) -> tuple[Any, Any]:
    """Publish one message of a task, and receive the message without an acknowledgement."""
    channel: Any = connection.channel()
    Queue("work", routing_key="work")(channel).declare()
    connection.Producer(channel).publish({}, routing_key="work", headers={"task": task})
    return channel, channel.basic_get("work")


@pytest.mark.parametrize("task", [STEP, UNDO, ADVANCE])
def test_resent_message_has_no_copy_and_returns_to_its_queue(
    connection: Connection, redis_server: RedisServer, task: str
) -> None:
    client = redis_server.client()
    channel, message = received(connection, task)
    assert message.headers["task"] == task
    assert (client.llen("work"), client.hlen("unacked"), client.zcard("unacked_index")) == (0, 0, 0)

    channel.close()

    assert client.llen("work") == 1


@pytest.mark.parametrize("requeue", [True, False])
def test_rejected_message_is_requeued_only_on_request(
    connection: Connection, redis_server: RedisServer, requeue: bool
) -> None:
    channel, message = received(connection, STEP)

    message.reject(requeue=requeue)
    channel.close()

    assert redis_server.client().llen("work") == int(requeue)


def test_acknowledged_message_does_not_return(connection: Connection, redis_server: RedisServer) -> None:
    channel, message = received(connection, STEP)

    message.ack()
    channel.close()

    assert redis_server.client().llen("work") == 0


def test_message_that_no_sweeper_resends_has_a_copy(connection: Connection, redis_server: RedisServer) -> None:
    client = redis_server.client()
    channel, message = received(connection, TASK_ENDED)
    assert client.hlen("unacked") == 1

    message.ack()
    channel.close()

    assert (client.llen("work"), client.hlen("unacked")) == (0, 0)


def test_channel_keeps_its_client_until_its_pool_changes(redis_server: RedisServer) -> None:
    with producer(Settings(redis_url=redis_server.url)).connection_for_write() as connection:
        channel: Any = connection.default_channel
        with channel.conn_or_acquire() as first, channel.conn_or_acquire() as second:
            assert first is second
        channel._disconnect_pools()
        with channel.conn_or_acquire() as third:
            assert third is not first
            assert third.ping()


def test_start_stores_the_request_and_sends_its_first_message_in_one_script(redis_server: RedisServer) -> None:
    redis_server.flush()
    client = Client(Settings(redis_url=redis_server.url, namespace="shop", max_runs=1, max_queued=1))
    redis = redis_server.client()
    first = client.start(PLAN, run_id="first")
    assert redis.llen("shop:control") == 1
    assert client.start(PLAN, run_id="first").attached
    with pytest.raises(QueueFull):
        client.start(PLAN, run_id="second")
    assert redis.llen("shop:control") == 1
    body = json.loads(redis.lindex("shop:control", 0))
    assert (body["headers"]["task"], body["headers"]["id"]) == (ADVANCE, first.id)
    client.close()

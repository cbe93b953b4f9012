"""Waiting for pending stops, on the in-memory engine."""

from __future__ import annotations

import time
from typing import Any

import pytest

from longshore.tasks.host.engine.port import Container
from longshore.tasks.implementation import Context
from longshore.tasks.operations.compose.state import Member, await_stops, members
from longshore.tasks.simulation.engine import MemoryEngine


class SlowlyStopping(MemoryEngine):
    """An engine in which a container stops after several polls."""

    def __init__(self) -> None:
        super().__init__()
        self.left: int | None = None
        self.looks = 0
        self.add_image("shop:1")

    def inspect(self, container: str) -> Container | None:
        self.looks += 1
        if self.left is not None:
            self.left -= 1
            if self.left == 0:
                super().stop(container)
        return super().inspect(container)

    def kill_event(self, container: str, age: float = 0.0) -> None:
        self._events.append({"Action": "kill", "Actor": {"ID": container}, "time": time.time() - age})


@pytest.fixture
def docker() -> SlowlyStopping:
    made = SlowlyStopping()
    labels = {"com.docker.compose.project": "shop", "com.docker.compose.service": "web"}
    made.create("shop-web-1", {"Image": "shop:1", "Labels": labels, "StopTimeout": 1})
    made.start("shop-web-1")
    return made


def found(docker: SlowlyStopping) -> list[Member]:
    listed = members(docker, "shop")
    docker.looks = 0
    return listed


def wait(docker: SlowlyStopping, of: list[Member], **options: Any) -> None:
    await_stops(Context(run_id="r1", step="step", plan="plan"), docker, of, **options)


def test_stopping_container_is_awaited(docker: SlowlyStopping) -> None:
    (web,) = found(docker)
    docker.kill_event(web.id)
    docker.left = 3

    wait(docker, [web])

    (now,) = members(docker, "shop")
    assert not now.running


def test_running_container_is_not_awaited(docker: SlowlyStopping) -> None:
    (web,) = found(docker)
    wait(docker, [web])
    assert docker.looks == 0


def test_restarted_container_is_not_awaited(docker: SlowlyStopping) -> None:
    (web,) = found(docker)
    docker.kill_event(web.id)
    docker.stop(web.id)
    docker.start(web.id)
    of = found(docker)

    wait(docker, of)

    assert docker.looks == 0


def test_container_beyond_its_grace_period_is_polled_once(docker: SlowlyStopping) -> None:
    (web,) = found(docker)
    docker.kill_event(web.id, age=60.0)
    wait(docker, [web])
    assert docker.looks == 1


def test_longer_grace_period_of_the_step_applies(docker: SlowlyStopping) -> None:
    (web,) = found(docker)
    docker.kill_event(web.id, age=60.0)
    docker.left = 3
    wait(docker, [web], grace=90.0)
    (now,) = members(docker, "shop")
    assert not now.running

"""The versions that a failed rollout records as bad, on the in-memory engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from longshore.orchestration.errors import OperationError
from longshore.orchestration.operations.compose import UP
from longshore.orchestration.settings import get_settings
from longshore.tasks.implementation import Context
from longshore.tasks.operations.compose.bad_versions import bad_versions
from longshore.tasks.operations.compose.cli import Resolved
from longshore.tasks.operations.compose.project import snapshot
from longshore.tasks.operations.compose.rollout import Rollout
from longshore.tasks.operations.compose.state import HealthWaiter
from longshore.tasks.simulation.engine import MemoryEngine

SERVICES = ("api", "poller", "web")


class Shop:
    """A project whose new containers have the given states when its rollout ends."""

    def __init__(self) -> None:
        self.docker = MemoryEngine()
        self.docker.add_image("shop:1")

    def roll_out(self, *, healthy_deadline: float | None = None, **states: dict[str, Any]) -> dict[str, str]:
        """Roll out containers with these states, and return the stored bad versions with their reasons. Without a
        deadline, Compose fails.
        """
        params: dict[str, Any] = {"project": "shop", "min_healthy_time": 0, "auto_revert": False}
        params |= {"healthy_deadline": healthy_deadline or 1}
        before = snapshot(self.docker, "shop", []) | {"services": list(SERVICES)}
        target = Resolved("shop", "{}", {}, {})
        ctx = Context(run_id="r1", step="step", plan="plan")
        rollout = Rollout(ctx, self.docker, UP.params.model_validate(params), before, target)

        def change(_: HealthWaiter) -> None:
            for service, state in states.items():
                self._create(service, state)
            if healthy_deadline is None:
                raise OperationError("dependency failed to start")

        with pytest.raises(OperationError):
            rollout.within_limits(change, SERVICES)
        return {one.service: one.why for one in bad_versions("shop")}

    def _create(self, service: str, state: dict[str, Any]) -> None:
        prefix = "com.docker.compose."
        labels = {f"{prefix}project": "shop", f"{prefix}service": service, f"{prefix}config-hash": f"hash of {service}"}
        made, _ = self.docker.create(f"shop-{service}-1", {"Image": "shop:1", "Labels": labels})
        if state.get("status") != "created":
            self.docker.start(made)
        self.docker._put(self.docker._need(made), **state)


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shop:
    monkeypatch.setenv("LONGSHORE_STATE_DIR", str(tmp_path / "state"))
    get_settings.cache_clear()
    return Shop()


EXITED = {"status": "exited", "running": False, "exit_code": 1}


def test_service_that_was_never_started_is_no_bad_version(shop: Shop) -> None:
    assert shop.roll_out(api=EXITED, poller={"status": "created"}).keys() == {"api"}


def test_service_that_could_still_become_healthy_is_no_bad_version(shop: Shop) -> None:
    assert shop.roll_out(api={"health": "unhealthy"}, poller={"health": "starting"}, web={}).keys() == {"api"}


def test_service_that_the_engine_could_not_start_is_a_bad_version(shop: Shop) -> None:
    assert shop.roll_out(api={"status": "created", "exit_code": 127}).keys() == {"api"}


def test_restarting_service_is_a_bad_version(shop: Shop) -> None:
    assert shop.roll_out(api={"restarting": True, "exit_code": 1}, web={}).keys() == {"api"}


def test_service_that_was_not_healthy_in_time_is_a_bad_version(shop: Shop) -> None:
    found = shop.roll_out(healthy_deadline=0.1, api={"health": "healthy"}, web={"health": "starting"})
    assert found == {"web": "is starting"}


def test_service_that_ended_early_is_a_bad_version(shop: Shop) -> None:
    found = shop.roll_out(healthy_deadline=0.1, api=EXITED | {"exit_code": 0}, poller={"status": "created"})
    assert found == {"api": "exited with code 0"}


def test_reason_without_output_is_the_state_of_the_container(shop: Shop) -> None:
    assert shop.roll_out(api=EXITED) == {"api": "exited with code 1"}

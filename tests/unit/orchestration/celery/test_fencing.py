"""Fences of an application: its settings, and plans that rely on them."""

from __future__ import annotations

from typing import Any

import pytest
from celery import Celery

from longshore.orchestration import ConfigError, Plan, Settings
from longshore.orchestration.celery import current_step, install
from longshore.orchestration.celery.fencing import settings_of
from longshore.orchestration.messaging.step_header import StepHeader, read

HEADER = StepHeader("run", 3, "u", "17", 2, "charge", "order", 60.0)


def application(broker: str = "redis://till:6379/2", **options: Any) -> Celery:
    app = Celery("till", broker=broker, set_as_current=False)
    app.conf.broker_transport_options = options

    def charge(amount: int) -> int:
        return amount

    app.task(name="charge", shared=False)(charge)
    return app


@pytest.fixture(autouse=True)
def nothing_set(own_settings: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LONGSHORE_REDIS_URL")


@pytest.mark.parametrize(
    ("broker", "options", "url", "namespace"),
    [
        ("redis://till:6379/2", {}, "redis://till:6379/2", "longshore"),
        ("rediss://till:6379/2", {"global_keyprefix": "ns:"}, "rediss://till:6379/2", "ns"),
        ("redis+socket:///run/redis.sock", {}, "unix:///run/redis.sock", "longshore"),
    ],
)
def test_settings_come_from_the_broker_of_the_application(
    broker: str, options: dict[str, Any], url: str, namespace: str
) -> None:
    found = settings_of(application(broker, **options))

    assert (found.redis_url, found.namespace) == (url, namespace)


def test_environment_overrides_the_applications_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    app = application(global_keyprefix="ns:")
    monkeypatch.setenv("LONGSHORE_NAMESPACE", "other")
    assert settings_of(app).namespace == "other"
    monkeypatch.setenv("LONGSHORE_REDIS_URL", "redis://record:6379/0")
    assert settings_of(app).redis_url == "redis://record:6379/0"
    assert settings_of(app, Settings(redis_url="redis://given:1/0")).redis_url == "redis://given:1/0"


@pytest.mark.parametrize("broker", ["amqp://till", "sentinel://a:26379;sentinel://b:26379"])
def test_broker_other_than_one_redis_needs_a_setting(broker: str) -> None:
    with pytest.raises(ConfigError, match="is not a single Redis: set LONGSHORE_REDIS_URL"):
        settings_of(application(broker))


def test_plan_records_that_the_application_is_fenced() -> None:
    fenced, plain = application(), application()
    install(fenced)
    plan = Plan("order")
    plan.celery("fenced", fenced.tasks["charge"].s(1), undo=fenced.tasks["charge"].s(2), timeout="5s", idempotent=True)
    plan.celery("plain", plain.tasks["charge"].s(1), timeout="5s")

    written = plan.to_dict()["steps"]
    assert (written["fenced"]["with"]["fenced"], written["fenced"]["with"]["idempotent"]) == (True, True)
    assert written["fenced"]["undo"]["with"]["fenced"] is True
    assert {"fenced", "idempotent"}.isdisjoint(written["plain"]["with"])


def test_header_of_a_message_is_read_as_it_was_written() -> None:
    assert read(HEADER.as_headers()) == HEADER
    assert read({}) is None
    assert read({"longshore_step": {"run_id": "run", "more": 1}}) is None
    assert read({"longshore_step": "text"}) is None


def test_code_outside_of_a_step_has_no_context() -> None:
    assert current_step() is None

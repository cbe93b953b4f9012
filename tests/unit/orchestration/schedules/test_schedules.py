"""Scheduled plans: planned times, due starts, and notation."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from celery.schedules import crontab
from celery.schedules import schedule as interval
from hypothesis import given as each
from hypothesis import strategies as st

from longshore.orchestration import Plan, PlanError, parse
from longshore.orchestration.errors import UsageError
from longshore.orchestration.language import schedule
from longshore.orchestration.language.identifiers import RUN_ID
from longshore.orchestration.language.schedule import Scheduled
from longshore.orchestration.schedules import declarations
from longshore.orchestration.settings import get_settings, load_settings

NIGHTLY = "name: backup\nschedules:\n  nightly: {cron: '0 3 * * *', timezone: Europe/Berlin, jitter: 5m}\n"
NIGHTLY += "steps:\n  a: {op: noop.execute}\n"


def ms(text: str) -> int:
    return round(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1000)


@each(st.floats(0.2, 5000), st.integers(0, 10**12), st.integers(0, 10**6), st.integers(0, 10**6))
def test_adjacent_intervals_equal_the_whole(every: float, begin: int, first: int, second: int) -> None:
    middle, end = begin + first, begin + first + second
    whole = schedule.by_interval(every, begin, end)
    both = schedule.by_interval(every, begin, middle) + schedule.by_interval(every, middle, end)
    assert whole == both[-schedule.CAUGHT_UP :]
    assert all(begin < at <= end for at in whole)


@each(st.integers(0, 10**12), st.floats(1, 600))
def test_jitter_is_deterministic_for_each_start(at: int, jitter: float) -> None:
    one = declarations.Schedule("a", "p", Scheduled(every=3600, jitter=jitter))
    again = declarations.Schedule("a", "p", Scheduled(every=3600, jitter=jitter))
    assert 0 <= one.jitter(at) < jitter * 1000
    assert one.jitter(at) == again.jitter(at)


def test_jittered_start_is_due_after_its_delay() -> None:
    one = declarations.Schedule("a", "p", Scheduled(cron="0 * * * *", jitter=600))
    at = ms("2026-11-21T10:00:00")
    held = one.jitter(at)
    assert one.planned(at - 1000, at + held - 1) == []
    assert one.planned(at - 1000, at + held) == [at]


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({}, "cron or every"),
        ({"cron": "0 3 * * *", "every": "1h"}, "cron or every"),
        ({"cron": "0 3 * *"}, "5"),
        ({"cron": "61 * * * *"}, "not a valid schedule"),
        ({"every": "0s"}, "every"),
        ({"every": "10s", "jitter": "10s"}, "shorter"),
        ({"every": "10s", "timezone": "Mars/Olympus"}, "not a time zone"),
        ({"every": "10s", "overlap": "maybe"}, "queue"),
        ({"every": "10s", "often": 1}, "often"),
        ({"cron": "*/5 * * * *", "jitter": "5m"}, "shorter"),
    ],
)
def test_invalid_schedule_is_refused_with_its_plan(given: dict[str, str], why: str) -> None:
    text = json.dumps({"name": "p", "schedules": {"s": given}, "steps": {"a": {"op": "noop.execute"}}})
    with pytest.raises(PlanError, match=why):
        parse(text)


def test_plan_with_schedules_round_trips() -> None:
    plan = parse(NIGHTLY)
    assert parse(plan.to_yaml()) == plan
    assert Plan.model_validate(plan.to_dict()) == plan
    assert plan.schedules["nightly"].timezone == "Europe/Berlin"


def test_beat_entry_fires_at_least_as_often_as_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Scheduled(cron="5 4 * * 1-5").beat() == crontab("5", "4", "1-5")
    assert Scheduled(every=90).beat() == interval(run_every=90)
    for other in (
        Scheduled(cron="0 3 * * *", timezone="Asia/Kolkata"),
        Scheduled(cron="0 3 L * *"),
        Scheduled(cron="0 3 * * *", jitter=60),
    ):
        assert other.beat() == crontab()
    one = declarations.Schedule("n", "backup", Scheduled(every=90, overlap="skip", params={"a": 1}))
    message = json.loads(json.dumps(one.entry()["kwargs"]))
    (tmp_path / "backup.yaml").write_text(NIGHTLY)
    monkeypatch.setenv("LONGSHORE_PLANS", str(tmp_path))
    get_settings.cache_clear()
    read = declarations.from_entry(get_settings(), message["name"], message["given"])
    assert read.plan == "backup"
    assert read.when.model_copy(update={"plan": ""}) == one.when
    with pytest.raises(UsageError, match="not a stored plan"):
        declarations.from_entry(get_settings(), "n", message["given"] | {"plan": "/etc/passwd"})
    # a declared schedule follows its declaration
    assert declarations.from_entry(get_settings(), "backup.nightly", message["given"]).definition().startswith("0 3")


def test_schedules_come_from_configuration_and_stored_plans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "backup.yaml").write_text(NIGHTLY)
    (tmp_path / "broken.yaml").write_text("name: [")
    config = tmp_path / "longshore.yaml"
    config.write_text("schedules:\n  hourly: {plan: backup, every: 1h, overlap: skip}\n  none: {every: 1h}\n")
    monkeypatch.setenv("LONGSHORE_PLANS", str(tmp_path))
    monkeypatch.setenv("LONGSHORE_CONFIG", str(config))
    get_settings.cache_clear()
    found, wrong = declarations.declared(load_settings())
    assert [one.name for one in found] == ["backup.nightly", "hourly"]
    assert any("broken" in why for why in wrong)
    assert any("none" in why and "names no plan" in why for why in wrong)
    plan = found[1].loaded()
    assert plan.concurrency is not None
    assert (plan.concurrency.key, plan.concurrency.on_limit) == ("schedule hourly", "skip")
    (tmp_path / "backup.yaml").write_text(NIGHTLY.replace("0 3", "0 14"))
    assert (
        next(one for one in declarations.declared(load_settings())[0] if "nightly" in one.name)
        .definition()
        .startswith("0 14")
    )


def test_run_id_combines_schedule_and_planned_time() -> None:
    at = ms("2026-11-21T03:00:00")
    assert schedule.run_id("backup.nightly", at) == "backup.nightly.20261121T030000Z"
    assert schedule.run_id("a", at + 500) != schedule.run_id("a", at)
    assert RUN_ID.fullmatch(schedule.run_id("x" * 300, at))


def test_unloadable_package_plan_does_not_block_worker_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(_name: str, **_: object) -> Plan:
        raise RuntimeError("the package is broken")

    monkeypatch.setattr(declarations, "stored", lambda: ["theirs"])
    monkeypatch.setattr(declarations, "load", broken)
    assert declarations.declared(load_settings()) == ([], ["plan theirs: the package is broken"])

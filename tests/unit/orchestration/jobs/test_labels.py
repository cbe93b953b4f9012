"""Jobs from labels: effects of labels, errors, and independence of order."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longshore.orchestration.jobs.labels import (
    _OF_CONTAINERS,
    _OF_VOLUMES,
    _READ,
    Entity,
    Job,
    Mount,
    discover,
)
from longshore.orchestration.language.schedule import DESCRIPTORS, parse_cron

JOB = "longshore.job."


def container(called: str = "shop-db-1", /, *, job: str = "backup", stack: str = "shop", **labels: str) -> Entity:
    given = {"enabled": "true", "name": job, "worker.image": "backup:1"} | {
        key.replace("__", "."): value for key, value in labels.items()
    }
    found = {f"{JOB}{key.replace('_', '-')}": value for key, value in given.items() if value}
    return Entity("container", called, found | {"com.docker.compose.project": stack})


def volume(name: str, **labels: str) -> Entity:
    return Entity("volume", name, {f"{JOB}{key.replace('__', '.')}": value for key, value in labels.items()})


def only(*entities: Entity) -> Job:
    found = discover(entities)
    assert not found.findings, [str(finding) for finding in found.findings]
    (job,) = found.jobs
    return job


def test_job_is_read_from_labels_with_defaults() -> None:
    job = only(container())
    assert job == Job("backup", "backup:1", stacks=("shop",), projects=("shop",), targets=("shop-db-1",))
    assert (job.stop_timeout, job.start_timeout, job.timeout, job.grace) == (30.0, 30.0, 3600.0, 10.0)


@pytest.mark.parametrize(
    ("label", "text", "field", "value"),
    [
        ("schedule", "@daily", "schedule", "0 0 * * *"),
        ("schedule", "*/5 1-3 * jan,feb mon", "schedule", "*/5 1-3 * jan,feb mon"),
        ("timezone", "Europe/Berlin", "timezone", "Europe/Berlin"),
        ("missed", "all", "missed", "all"),
        ("overlap_policy", "cancel-running", "overlap", "cancel_running"),
        ("worker__image", "backup:2", "image", "backup:2"),
        ("worker__command", "sh -c 'echo hello'", "command", ("sh", "-c", "echo hello")),
        ("worker__pull", "never", "pull", "never"),
        ("stop_timeout", "1m", "stop_timeout", 60.0),
        ("start_timeout", "90", "start_timeout", 90.0),
        ("timeout", "2h", "timeout", 7200.0),
        ("grace", "500ms", "grace", 0.5),
        ("scope", "Containers", "scope", "containers"),
        ("no_way_back", "accept", "no_way_back", "accept"),
    ],
)
def test_every_label_has_an_effect(label: str, text: str, field: str, value: Any) -> None:
    assert getattr(only(container(**{label: text})), field) == value


def test_every_declared_label_is_tested() -> None:
    assert set(_READ) == {
        *("scope", "schedule", "timezone", "missed", "overlap-policy", "worker.image", "worker.command", "worker.pull"),
        *("stop-timeout", "start-timeout", "timeout", "grace", "no-way-back"),
    }
    assert _OF_CONTAINERS - set(_READ) == {"enabled", "name"}
    assert {"attach", "mount.path", "mount.mode"} == _OF_VOLUMES


def test_labels_set_the_worker_environment() -> None:
    entity = container()
    entity = Entity(
        "container", entity.name, {**entity.labels, f"{JOB}worker.env.LEVEL": "9", f"{JOB}worker.env.A.b": ""}
    )
    assert only(entity).env == {"LEVEL": "9", "A.b": ""}


def test_containers_with_the_same_job_name_form_one_job() -> None:
    job = only(container("shop-web-1", worker__image=""), container(), container("other-db-1", stack="other"))
    assert job.targets == ("other-db-1", "shop-db-1", "shop-web-1")
    assert job.stacks == ("other", "shop")


def test_stack_name_may_differ_from_the_compose_project() -> None:
    entity = container()
    assert only(Entity("container", "x", {**entity.labels, "longshore.stack": "mine"})).stacks == ("mine",)


def test_disabled_container_is_no_target() -> None:
    assert discover([container(enabled="false"), container("x", enabled="")]).jobs == ()


def test_volume_labels_mount_volumes_in_their_job() -> None:
    job = only(
        container(),
        volume("data", attach="backup"),
        volume("logs", attach="backup", mount__path="/logs", mount__mode="RW"),
        Entity("volume", "plain", {}),
    )
    assert job.mounts == (Mount("data", "/mnt/data", "ro"), Mount("logs", "/logs", "rw"))


@pytest.mark.parametrize(
    ("entities", "message"),
    [
        ([container(name="")], "container shop-db-1: longshore.job.name: an enabled job needs a name"),
        ([container(name="a b")], "container shop-db-1: longshore.job.name: invalid name 'a b'"),
        (
            [container(worker__image="")],
            "job backup: longshore.job.worker.image: no image is set for the worker",
        ),
        ([container(timeout="soon")], "container shop-db-1: longshore.job.timeout: "),
        ([container(timeout="0")], "'0': expected a positive duration"),
        ([container(overlap_policy="maybe")], "'maybe': expected one of queue, skip, cancel_running"),
        ([container(timezone="Mars/Olympus")], "'Mars/Olympus' is not a time zone"),
        ([container(worker__command="sh -c 'x")], "longshore.job.worker.command: No closing quotation"),
        ([container(schedule="* * *")], "has 3 fields; a schedule has 5"),
        (
            [container(), container("z", worker__image="backup:2")],
            "container z: longshore.job.worker.image: 'backup:2' conflicts with 'backup:1' of container shop-db-1, "
            "which takes precedence for job backup",
        ),
        (
            [container(), volume("data", attach="restore")],
            "volume data: longshore.job.attach: no job 'restore'",
        ),
        ([container(), volume("data", attach="backup", mount__mode="x")], "'x': expected ro or rw"),
        ([container(), volume("data", attach="backup", mount__path="mnt")], "'mnt': expected an absolute path"),
        (
            [
                container(),
                volume("a", attach="backup", mount__path="/m"),
                volume("b", attach="backup", mount__path="/m"),
            ],
            "volume b: longshore.job.mount.path: volume a is already mounted at /m for job backup",
        ),
    ],
)
def test_invalid_label_is_reported_with_its_location(entities: list[Entity], message: str) -> None:
    found = discover(entities)
    assert any(message in str(finding) for finding in found.errors), [str(finding) for finding in found.findings]


def test_invalid_label_keeps_the_default() -> None:
    (job,) = discover([container(timeout="soon", grace="1s")]).jobs
    assert (job.timeout, job.grace) == (3600.0, 1.0)


def test_unknown_label_is_a_warning() -> None:
    found = discover([container(tiemout="5s"), volume("v", mount__paht="/x")])
    assert [str(finding) for finding in found.findings] == [
        "container shop-db-1: longshore.job.tiemout: unknown label",
        "volume v: longshore.job.mount.paht: unknown label",
    ]
    assert found.errors == ()
    assert len(found.jobs) == 1


@pytest.mark.parametrize("text", [*DESCRIPTORS, "0 0 * * 7", "1,2,3 */2 1-31/3 DEC sun-sat", "5/10 * * * *"])
def test_valid_schedules_are_accepted(text: str) -> None:
    assert len(parse_cron(text).split()) == 5


@pytest.mark.parametrize(
    "text",
    [
        "",
        "@never",
        "60 * * * *",
        "* 24 * * *",
        "* * 0 * *",
        "* * * 13 *",
        "* * * * 8",
        "5-1 * * * *",
        "*/0 * * * *",
        "x * * * *",
    ],
)
def test_invalid_schedules_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"fields|not one of|not a valid schedule: bad "):
        parse_cron(text)


@given(st.randoms(use_true_random=False))
def test_discovery_order_does_not_matter(dice: random.Random) -> None:
    entities = [
        container("b", timeout="2h"),
        container("a", worker__image="backup:2"),
        container("c", job="other", schedule="bad"),
        volume("v2", attach="backup,other"),
        volume("v1", attach="backup", mount__path="/x"),
        volume("v3", attach="nobody"),
    ]
    expected = discover(entities)
    dice.shuffle(entities)
    assert discover(entities) == expected


def test_label_missing_on_an_existing_volume_makes_the_job_unusable() -> None:
    lacking = {f"{JOB}attach": "backup", f"{JOB}mount.path": "/data"}
    found = discover([container(), Entity("volume", "shop_data", {}, lacking)])

    assert [(one.field, one.job, one.unusable) for one in found.findings] == [
        (f"{JOB}attach", "backup", True),
        (f"{JOB}mount.path", "backup", True),
    ]
    assert "does not have this label" in str(found.findings[0])
    assert found.jobs[0].mounts == ()

"""`longshore doctor` on a good installation, and on one with faults."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from longshore.orchestration import Client, Plan
from longshore.orchestration.installation.doctor import examine
from longshore.orchestration.messaging import signing
from longshore.orchestration.store.breakers import Breakers
from longshore.orchestration.store.hosts import Hosts
from tests.integration.conftest import QUICK
from tests.integration.processes import Installation, wait_for
from tests.integration.test_poisoned_messages import message
from tests.servers import RedisServer

pytestmark = pytest.mark.maintenance

FAMILIES = "control,noop.undo,noop,command.undo,command,file.undo,file"


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with RedisServer("--appendfsync", "always", "--maxmemory-policy", "noeviction") as made:
        yield made


@pytest.fixture
def place(server: RedisServer, tmp_path: Path) -> Iterator[Installation]:
    made = Installation(server.url, tmp_path, options=dict(QUICK))
    (tmp_path / "plans").mkdir()
    made.options["plans"] = str(tmp_path / "plans")
    try:
        yield made
    finally:
        made.close()


def diagnosis(place: Installation) -> tuple[int, dict[str, str]]:
    """The exit code of doctor, and its findings that are not ok, with their remedies."""
    done = place.longshore("doctor", "-o", "json")
    assert done.code in {0, 1}, done
    return done.code, {one["what"]: one["remedy"] for one in done.json if one["grade"] != "ok"}


def test_good_installation_has_no_finding(place: Installation) -> None:
    (place.folder / "plans/good.yaml").write_text(
        "name: good\nschedules: {often: {every: 10m}}\nsteps:\n  a: {op: noop.execute}\n"
    )
    place.worker("one", "-c", "1", "-Q", FAMILIES).start()
    beat = place.beat()
    try:
        store = place.client().store
        wait_for("a tick", lambda: store.client.get(store.keys.last_tick))
    finally:
        beat.kill()
        beat.communicate()
    assert diagnosis(place) == (0, {})
    text = place.longshore("doctor").out
    for good in (
        "Redis persists its data to disk",
        "every required queue has a worker",
        "and a beat is running",
        "MiB of undo backups",
    ):
        assert good in text


def plant_faults(place: Installation, client: Client) -> dict[str, str]:
    """Plant faults; return a part of the expected finding for each."""
    (place.folder / "plans/nightly.yaml").write_text(
        "name: nightly\nschedules: {night: {cron: '@daily'}}\nsteps:\n"
        "  own: {op: billing.charge}\n  stack: {op: docker.start.execute, with: {container: web}}\n"
    )
    place.redis.lpush(place.queue_key("cache"), json.dumps(message()))
    place.redis.hset(client.store.keys.host("elsewhere"), "had:cache", "")
    place.redis.zadd(client.store.keys.hosts, {"elsewhere": client.store.now() - 10**8})
    Breakers(client.store).hold("registry", "it does not answer")

    plan = Plan("stands")
    plan.step("a", "noop.execute", changed=True).after(plan.step("asks", "approval.wait.execute").timeout(600))
    run = client.start(plan)
    wait_for("the approval to wait", lambda: run.report().step("asks").status == "waiting")
    keys = client.store.keys.of(run.id)
    # a worker of another version, with a clock one hour ahead, a full disk, and other keys
    host = Hosts(client.store).all()[place.namespace]
    node = host.alive[0]
    registration = json.loads(place.redis.hget(client.store.keys.host(place.namespace), f"node:{node.name}"))  # type: ignore[arg-type]
    registration |= {"version": "0.0.1", "queues": ["docker", "docker.undo"], "facts": {"docker": "19.03.1"}}
    registration["health"] = {
        "skew": 3_600_000,
        "free": 1000,
        "kept": 5 * 1024**2,
        "keys": ["w1"],
        "missing": ["/srv/gone"],
    }
    other = client.store.keys.host("other")
    # No worker runs that could remove a fault. Both hosts count as alive for the lease of one minute.
    place.workers[0].kill()
    place.options["lease"] = "1m"
    beat = f"{client.store.now()} ready 0"
    place.redis.hset(client.store.keys.host(place.namespace), f"beat:{node.name}", beat)
    place.redis.hset(other, mapping={"node:two@other": json.dumps(registration), "beat:two@other": beat})
    place.redis.zadd(client.store.keys.hosts, {"other": client.store.now()})
    place.redis.hset(keys.run, "state", "running")
    place.redis.hset(keys.steps, mapping={"status:0": "ready", "status:1": "ready"})
    place.redis.zadd(client.store.keys.live, {run.id: 0})
    place.redis.delete(keys.waits, keys.events)
    place.redis.xadd(keys.events, {"event": "run_created", "at": "1"}, id="1-1")
    place.redis.config_set("appendfsync", "everysec")
    return {
        "operation": "no worker provides operation billing.charge, which plan nightly needs",
        "queue": "1 messages wait in queue cache, and no worker consumes it",
        "persistence": "appendfsync everysec",
        "breaker": "service registry is down",
        "stuck": f"1 runs make no progress: {run.id}",
        "version": "versions of Longshore differ",
        "clock": "the clock of host other is 3600.0 s ahead of that of Redis",
        "disk": "host other has 0 MiB free",
        "keys": "do not sign messages",
        "engine": "Docker 19.03.1 is older than 20.10",
        "folders": "stack directories are not mounted in its worker: /srv/gone",
        "beat": "1 schedules, but no beat has ever ticked",
    }


def test_doctor_names_each_fault_with_a_remedy(place: Installation) -> None:
    place.worker("one", "-c", "1", "-Q", FAMILIES).start()
    try:
        words = plant_faults(place, place.client())
        code, found = diagnosis(place)
    finally:
        place.redis.config_set("appendfsync", "always")
    assert code == 1
    for name, word in words.items():
        matching = [what for what in found if word in what]
        assert matching, (name, list(found))
        assert found[matching[0]], f"{name} has no remedy"


def test_doctor_reports_missing_workers_and_queues(place: Installation) -> None:
    code, found = diagnosis(place)
    assert code == 1
    assert "no worker is alive" in found
    place.worker("half", "-c", "1", "-Q", "noop").start()
    code, found = diagnosis(place)
    assert code == 1
    assert any("no worker consumes queue control" in what for what in found)
    assert any("none consumes noop.undo" in what for what in found)


def test_doctor_reports_mismatched_keys(place: Installation) -> None:
    keys, theirs = place.folder / "keys.json", place.folder / "theirs.json"
    for path in (keys, theirs):
        path.write_text(signing.written([signing.new_key("worker"), signing.new_key("client")]))
        path.chmod(0o600)
    place.worker("one", "-c", "1", "-Q", FAMILIES, LONGSHORE_KEYS=str(keys)).start()
    assert any("this client has no key" in one.what for one in examine(place.client().store))
    place.options["keys"] = str(theirs)
    assert any("does not have key" in one.what for one in examine(place.client().store))
    place.options["keys"] = str(keys)
    assert not any("key" in one.what for one in examine(place.client().store))

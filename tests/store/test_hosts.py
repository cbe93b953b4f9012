"""The registry of hosts: registrations, host states, and the hosts that a target selects."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import fakeredis
import pytest

from longshore.orchestration import Plan, UnknownName
from longshore.orchestration.installation.doctor import _work as examine
from longshore.orchestration.monitoring.metrics import text
from longshore.orchestration.operations import find
from longshore.orchestration.runs.pending_reasons import pending_reasons
from longshore.orchestration.store.hosts import Hosts, HostState, Node, NodeState
from longshore.orchestration.store.placement import cannot, grouped, hosts_of
from longshore.orchestration.store.queue_lengths import queue_lengths
from longshore.orchestration.store.run_store import Store
from tests.servers import RedisServer
from tests.store.stored_run import StoredRun, settings_for

LEASE = 5.0
WEB = {"role": "web", "group": "web.dev.eu"}


class Clocked(Store):
    """Hosts with a clock that a test can advance."""

    ahead = 0

    def now(self) -> int:
        return super().now() + self.ahead


@pytest.fixture(params=["redis", "fakeredis"])
def store(request: pytest.FixtureRequest) -> Iterator[Clocked]:
    if request.param == "fakeredis":
        made = Clocked(settings_for("redis://nowhere", lease=LEASE), fakeredis.FakeRedis(decode_responses=True))
    else:
        server: RedisServer = request.getfixturevalue("redis_server")
        server.flush()
        made = Clocked(settings_for(server.url, lease=LEASE))
    yield made
    made.client.close()


@pytest.fixture
def hosts(store: Clocked) -> Hosts:
    return Hosts(store)


def node(name: str, host: str, **more: Any) -> Node:
    queues = ("noop", f"noop@{host}", f"noop@{host}.undo", "noop.undo")
    return Node(name, **({"queues": queues, "labels": WEB, "facts": {"os": "debian", "docker": "20"}} | more))


def backdate(hosts: Hosts, host: str, seconds: float) -> None:
    """Backdate all registrations of a host."""
    key = hosts._keys.host(host)
    for name, value in hosts._client.hgetall(key).items():
        if name.startswith("beat:"):
            at, _, rest = value.partition(" ")
            hosts._client.hset(key, name, f"{int(at) - round(seconds * 1000)} {rest}")


def test_host_merges_its_workers_registrations(hosts: Hosts) -> None:
    hosts.register("web1", node("a@web1", "web1", active=2))
    hosts.register("web1", node("b@web1", "web1", labels={"spare": "yes"}, queues=("docker",), facts={"rack": "1"}))

    web1 = hosts.get("web1")

    assert web1.state is HostState.READY
    assert web1.labels == WEB | {"spare": "yes"}
    assert {"docker", "noop"} <= web1.had
    assert web1.facts == {"os": "debian", "docker": "20", "rack": "1"}
    assert set(web1.queues) == {"docker", "noop", "noop.undo", "noop@web1", "noop@web1.undo"}
    assert [item.active for item in web1.nodes] == [2, 0]
    assert json.loads(json.dumps(web1.as_data()))["nodes"][0]["name"] == "a@web1"


def test_silent_host_is_lost_but_a_deregistered_host_is_not(hosts: Hosts) -> None:
    hosts.register("web1", node("a@web1", "web1"))
    hosts.register("web2", node("a@web2", "web2"))
    backdate(hosts, "web1", 3 * LEASE - 1)
    assert hosts.get("web1").state is HostState.READY
    backdate(hosts, "web1", 2)
    assert hosts.get("web1").state is HostState.LOST
    assert "none of its workers has sent a heartbeat for 1" in hosts.get("web1").why_not()

    hosts.leave("web2", "a@web2")

    assert hosts.get("web2").state is HostState.STOPPED
    assert hosts.get("web2").labels == WEB, "the labels of a stopped host are lost"
    assert "noop@web2" in hosts.get("web2").had
    hosts.beat("web1", "a@web1", NodeState.READY, 0)
    assert hosts.get("web1").state is HostState.READY


def test_drain_completes_when_every_worker_is_idle(hosts: Hosts) -> None:
    hosts.register("web1", node("a@web1", "web1", active=1))
    hosts.register("web1", node("b@web1", "web1"))
    assert hosts.drain("web1", "ann").state is HostState.DRAINING

    request_drain = hosts.beat("web1", "a@web1", NodeState.DRAINED, 1)
    assert request_drain is not None
    assert (request_drain.by, request_drain.stop) == ("ann", False)
    assert hosts.request_drain("web1") == request_drain
    hosts.beat("web1", "b@web1", NodeState.DRAINED, 0)
    assert hosts.get("web1").state is HostState.DRAINING
    hosts.beat("web1", "a@web1", NodeState.DRAINED, 0)
    assert hosts.get("web1").state is HostState.DRAINED
    assert hosts.get("web1").why_not() == "host web1 is drained by ann"
    hosts.leave("web1", "a@web1")
    hosts.leave("web1", "b@web1")
    hosts.register("web1", node("a@web1", "web1"))
    assert hosts.request_drain("web1") == request_drain, "a new worker of a drained host is not drained"

    hosts.undrain("web1")

    assert hosts.request_drain("web1") is None
    assert hosts.get("web1").state is HostState.READY


def test_host_is_stopping_when_all_workers_stop(hosts: Hosts) -> None:
    hosts.register("web1", node("a@web1", "web1"))
    hosts.register("web1", node("b@web1", "web1"))
    hosts.beat("web1", "a@web1", NodeState.STOPPING, 1)
    assert hosts.get("web1").state is HostState.READY
    hosts.beat("web1", "b@web1", NodeState.STOPPING, 0)
    assert hosts.get("web1").state is HostState.STOPPING


def test_deregistered_last_worker_outweighs_an_earlier_killed_one(hosts: Hosts) -> None:
    hosts.register("web1", node("killed@web1", "web1"))
    hosts.register("web1", node("last@web1", "web1"))
    hosts._client.hset(hosts._keys.host("web1"), "beat:killed@web1", "1 ready 1")
    hosts.leave("web1", "last@web1")
    assert hosts.get("web1").state is HostState.STOPPED
    hosts.register("web1", node("new@web1", "web1"))
    assert hosts.get("web1").state is HostState.READY


def test_newest_worker_decides_a_hosts_facts(hosts: Hosts) -> None:
    hosts.register("web1", node("new@web1", "web1", labels={"role": "web"}, since=2000))
    hosts.register("web1", node("old@web1", "web1", labels={"role": "cache"}, since=1000))
    hosts.beat("web1", "old@web1", NodeState.READY, 0)
    assert hosts.get("web1").labels == {"role": "web"}
    assert "different labels" in str(list(examine(hosts._store)))


def test_unknown_host_is_reported_with_the_known_ones(hosts: Hosts) -> None:
    hosts.register("web1", node("a@web1", "web1"))
    for ask in (hosts.get, hosts.undrain, lambda name: hosts.drain(name, "ann")):
        with pytest.raises(UnknownName, match=r"no host 'web9' is known \(there are: web1\)"):
            ask("web9")
    assert hosts.find("web9") is None


def test_long_silent_host_is_removed(hosts: Hosts) -> None:
    hosts.register("web1", node("a@web1", "web1"))
    hosts._client.zadd(hosts._keys.hosts, {"web1": 1})
    hosts.register("web2", node("a@web2", "web2"))

    assert hosts.forget_old(60) == ["web1"]

    hosts.register("web2", node("killed@web2", "web2"))
    hosts._client.hset(hosts._keys.host("web2"), "beat:killed@web2", "1 ready 0")
    assert hosts.forget_old(60) == []
    assert [each.name for each in hosts.get("web2").nodes] == ["a@web2"]
    assert list(hosts.all()) == ["web2"]
    assert hosts.knows("web2", "a@web2")
    assert not hosts.knows("web1", "a@web1")


def test_drain_of_a_silent_host_lasts_until_a_person_ends_it(hosts: Hosts, store: Clocked) -> None:
    hosts.register("web1", node("a@web1", "web1"))
    hosts.drain("web1", "ann")
    store.ahead = 10 * 86_400_000

    assert hosts.forget_old(store.settings.retention) == []

    hosts.register("web1", node("b@web1", "web1"))
    assert hosts.beat("web1", "b@web1", NodeState.READY, 0) == hosts.get("web1").drained
    assert hosts.get("web1").why_not() == "host web1 is drained by ann"
    # and a person ends the drain
    store.ahead *= 2
    hosts.undrain("web1")
    assert hosts.forget_old(store.settings.retention) == ["web1"]
    hosts.register("web1", node("a@web1", "web1"))
    hosts.drain("web1", "ann")
    hosts.forget("web1")
    hosts.register("web1", node("a@web1", "web1"))
    assert hosts.get("web1").state is HostState.READY


def test_host_that_is_drained_during_its_removal_stays(hosts: Hosts, monkeypatch: pytest.MonkeyPatch) -> None:
    hosts.register("web1", node("a@web1", "web1"))
    hosts._client.zadd(hosts._keys.hosts, {"web1": 1})
    remove = hosts._remove

    def drain_first(pipe: Any, name: str) -> None:
        hosts.drain(name, "ann")
        remove(pipe, name)

    monkeypatch.setattr(hosts, "_remove", drain_first)

    assert hosts.forget_old(60) == []

    assert hosts.get("web1").drained is not None


def test_target_selects_live_hosts(hosts: Hosts) -> None:
    for name in ("web1", "web2", "db1", "old1"):
        labels = WEB if name.startswith("web") else {"role": name[:-1]}
        hosts.register(name, node(f"a@{name}", name, labels=labels))
    hosts.leave("old1", "a@old1")
    backdate(hosts, "web2", 100)

    def names(target: str, *, always: bool = False) -> list[str]:
        return [host.name for host in hosts_of(hosts.all(), target, always=always)]

    assert names("_all") == ["db1", "web1", "web2"], "a lost host is missing in the target"
    assert names("group:web") == names("group:web.dev") == ["web1", "web2"]
    assert names("old1") == ["old1"], "a stopped host was not selected by its name"
    with pytest.raises(
        UnknownName, match=r"no host has the label role:cache \(there are: group:web.dev.eu, role:db, role:web\)"
    ):
        names("role:cache")
    with pytest.raises(UnknownName, match="no host has the label role:old"):
        names("role:old")
    hosts.drain("db1", "ann")
    assert names("_all") == ["db1", "web1", "web2"]
    assert names("role:db", always=True) == ["db1"]
    with pytest.raises(UnknownName, match=r"all hosts of role:db are drained: db1"):
        names("role:db")


@pytest.mark.parametrize(
    ("operation", "queues", "facts", "why"),
    [
        ("docker.stop.execute", ("docker@h",), {}, ""),
        ("docker.stop.execute", ("docker@h",), {"docker": ""}, ""),
        ("docker.stop.execute", ("docker@h",), {"docker": None}, "host h has no Docker engine"),
        ("docker.stop.execute", ("file@h",), {"docker": "20"}, "host h has never had a worker for the queue docker"),
        ("compose.up.execute", ("compose@h",), {"docker": "20", "compose": None}, "host h has no Docker Compose"),
        ("file.deploy.execute", ("file@h",), {"docker": None}, ""),
        ("approval.wait.execute", (), {}, ""),
    ],
)
def test_host_without_an_operation_is_refused(
    hosts: Hosts, operation: str, queues: tuple[str, ...], facts: dict[str, Any], why: str
) -> None:
    hosts.register("h", Node("a@h", queues=queues, facts=facts))
    assert cannot(find(operation), hosts.get("h")) == why


def test_temporarily_absent_worker_keeps_its_hosts_operations(hosts: Hosts) -> None:
    hosts.register("h", Node("docker@h", queues=("docker@h",), own=("billing.charge",)))
    hosts.register("h", Node("control@h", queues=("control",)))
    hosts.leave("h", "docker@h")
    assert cannot(find("docker.stop.execute"), hosts.get("h")) == ""
    assert hosts.get("h").own == {"billing.charge"}
    hosts.leave("h", "control@h")
    assert cannot(find("docker.stop.execute"), hosts.get("h")) == ""
    hosts.forget("h")
    hosts.register("h", Node("control@h", queues=("control",)))
    assert "never had a worker" in cannot(find("docker.stop.execute"), hosts.get("h"))


def test_label_targets_select_groups_of_hosts(hosts: Hosts) -> None:
    hosts.register("web1", node("a@web1", "web1"))
    hosts.register("db1", node("a@db1", "db1", labels={}, facts={"os": "alpine"}))
    found = list(hosts.all().values())
    assert {key: [host.name for host in group] for key, group in grouped(found, "os").items()} == {
        "alpine": ["db1"],
        "debian": ["web1"],
    }
    assert list(grouped(found, "label:role")) == ["web"]


# --- queues and waiting steps ---------------------------------------------------------------------


def enqueue(store: Store, queue: str, task: str, *arguments: Any) -> None:
    """Enqueue a message as Celery does."""
    import base64

    body = base64.b64encode(json.dumps([list(arguments), {}, {}]).encode()).decode()
    message = json.dumps({"headers": {"task": task}, "body": body})
    store.client.lpush(f"{store.settings.broker_prefix()}{queue}", message)


def test_queue_status_has_length_age_and_workers(stored: StoredRun) -> None:
    stored.begin(0, 1)
    hosts = Hosts(stored.store)
    hosts.register("web1", node("a@web1", "web1"))
    stored.age(30)
    enqueue(stored.store, "noop", "longshore.step", stored.run_id, 0)
    enqueue(stored.store, "noop", "longshore.step", stored.run_id, 1)
    enqueue(stored.store, "noop.undo", "foreign.task", 1)

    found = {backlog.queue: backlog for backlog in queue_lengths(stored.store)}

    assert (found["noop"].length, found["noop"].workers) == (2, 1)
    assert 29 <= found["noop"].oldest <= 40
    assert (found["noop.undo"].length, found["noop.undo"].oldest) == (1, 0.0)
    assert (found["control"].length, found["control"].workers) == (0, 0)
    hosts.drain("web1", "ann")
    assert {backlog.queue: backlog.workers for backlog in queue_lengths(stored.store)}["noop"] == 0
    assert {backlog.queue: backlog.workers for backlog in queue_lengths(stored.store)}["noop.undo"] == 1
    exported = text(stored.store)
    assert 'longshore_queue_length{queue="noop"} 2.0' in exported
    assert 'longshore_hosts{state="draining"} 1.0' in exported
    hosts.leave("web1", "a@web1")
    assert {backlog.queue: backlog.length for backlog in queue_lengths(stored.store)}["noop"] == 2, (
        "the length is missing without a worker"
    )


def test_waiting_step_names_its_missing_worker(stored: StoredRun) -> None:
    plan = Plan("p", target="web1")
    plan.step("a", "noop.execute")
    stored.begin(0)
    stored.put(steps={"host:0": "web1"})
    from longshore.orchestration.plans.compiled import CompiledPlan

    compiled, hosts = CompiledPlan(plan), Hosts(stored.store)

    def why() -> str:
        _, steps = stored.store.everything(stored.run_id)
        return pending_reasons(stored.store, compiled, steps).get("pending_reason:0", "")

    assert why() == "waits: no worker consumes queue noop@web1"
    hosts.register("web1", node("a@web1", "web1"))
    assert why() == ""
    hosts.drain("web1", "ann")
    assert why() == "waits: host web1 is drained by ann"
    stored.put(steps={"status:0": "changed", "ustatus:0": "ready"})
    stored.redis.hdel(stored.keys.steps, "host:0")
    assert pending_reasons(stored.store, compiled, stored.store.everything(stored.run_id)[1]) == {}, (
        "a compensation waits for a drained host"
    )
    stored.put(steps={"status:0": "ready", "host:0": "web1"})
    stored.redis.hdel(stored.keys.steps, "ustatus:0")
    hosts.undrain("web1")
    backdate(hosts, "web1", stored.store.settings.lease + 1)
    assert "waits: host web1 has sent no heartbeat for" in why()
    backdate(hosts, "web1", 100)
    assert "waits: host web1 is lost" in why()

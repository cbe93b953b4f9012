"""A fleet of five hosts with one worker each; the hosts of a step are known by the files that the step writes."""

from __future__ import annotations

import json
import signal
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from longshore.orchestration import Client, Param, Plan, UnknownName, UsageError
from longshore.orchestration.states import RunState, StepState
from longshore.orchestration.store.hosts import Hosts, HostState
from tests.integration.conftest import MakeInstallation
from tests.integration.processes import Installation, Worker, fork_server, names, report_of, result_of, wait_for
from tests.servers import free_port

pytestmark = pytest.mark.integration

LABELS = {
    "web1": "role=web,group=web.dev.eu",
    "web2": "role=web,group=web.prod.eu",
    "web3": "role=web,group=web.prod.us",
    "db1": "role=db,group=db",
    "db2": "role=db,group=db.prod,spare=yes",
}
FAMILIES = "control,command.undo,command,file.undo,file,noop.undo,noop"


@pytest.fixture(scope="module")
def fleet(module_installation: MakeInstallation) -> Installation:
    made = module_installation(options={"claim_timeout": "8s"})
    for host, labels in LABELS.items():
        start(made, host, labels)
    return made


def start(made: Installation, host: str, labels: str = "", *arguments: str, queues: str = FAMILIES) -> Worker:
    worker = made.worker(
        f"at-{host}", "--concurrency", "1", "-Q", queues, *arguments,
        LONGSHORE_HOST=host, LONGSHORE_LABELS=labels, LONGSHORE_FACTS=f"rack={host[-1]}",
    )  # fmt: skip
    worker.start()
    return worker


@pytest.fixture
def client(fleet: Installation) -> Client:
    return fleet.client()


def test_workers_register_their_hosts_and_labels(client: Client) -> None:
    assert [host.name for host in client.hosts()] == sorted(LABELS)


def test_host_publishes_its_facts(fleet: Installation, client: Client) -> None:
    web1 = next(host for host in client.hosts() if host.name == "web1")

    assert web1.state is HostState.READY
    assert web1.labels == {"role": "web", "group": "web.dev.eu"}
    assert {"os", "arch", "cpus", "memory", "kernel"} <= web1.facts.keys()
    assert web1.facts["rack"] == "1"
    assert {"file", "file@web1", "file@web1.undo"} <= set(web1.queues)
    listed = fleet.longshore("hosts", "ls", "--label", "group:web.prod", "-o", "json").json
    assert [(host["name"], host["state"]) for host in listed] == [("web2", "ready"), ("web3", "ready")]
    shown = fleet.longshore("hosts", "show", "web1")
    assert "role=web" in shown.out
    assert "worker at-web1@" in shown.out
    answer = inspect(fleet, "web1")
    assert (answer["name"], answer["labels"], answer["state"]) == ("web1", web1.labels, "ready")


def inspect(made: Installation, host: str) -> dict[str, Any]:
    """The answer of a host to `celery inspect host`."""
    node = made.at(f"at-{host}@{made.namespace}")
    command = ["celery", "-A", "longshore.workers", "inspect", "host", "-d", node.node, "--json"]
    result = result_of(fork_server().start(command, env=made.environment, cwd=made.folder))
    assert result.code == 0, result.err
    found: dict[str, Any] = json.loads(result.out[result.out.index("{") :])[node.node]
    return found


@pytest.mark.parametrize(
    ("target", "hosts"),
    [
        ("_all", {"db1", "db2", "web1", "web2", "web3"}),
        ("role:web", {"web1", "web2", "web3"}),
        ("group:web.prod", {"web2", "web3"}),
        ("group:web.pro", set()),
        ("web2", {"web2"}),
        ("{{ params.where }}", {"db1", "db2"}),
    ],
)
def test_target_selects_exactly_its_hosts(fleet: Installation, tmp_path: Path, target: str, hosts: set[str]) -> None:
    plan = Plan("reach", params={"where": Param(default="role:db")})
    plan.step("write", "file.deploy.execute", **written(tmp_path)).target(target)
    if not hosts:
        with pytest.raises(UnknownName, match=r"no host has the label group:web.pro .*group:web.prod.eu"):
            fleet.run(plan)
        return

    report = report_of(fleet, plan)

    assert report.state is RunState.SUCCEEDED
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {host: host for host in hosts}
    assert {host.host for host in report.step("write").hosts} == hosts


def written(folder: Path) -> dict[str, str]:
    return {"path": f"{folder}/{{{{ host.name }}}}", "content": "{{ host.name }}"}


def test_any_selects_one_host(fleet: Installation, tmp_path: Path) -> None:
    plan = Plan("one")
    plan.step("write", "file.deploy.execute", **written(tmp_path))

    assert report_of(fleet, plan).state is RunState.SUCCEEDED
    assert len(list(tmp_path.iterdir())) == 1


def test_failure_on_one_host_undoes_the_step_on_the_others(fleet: Installation, tmp_path: Path) -> None:
    (tmp_path / "web2").mkdir()
    plan = Plan("release")
    plan.step("write", "file.deploy.execute", **written(tmp_path)).target("_all")

    report = report_of(fleet, plan)

    step = report.step("write")
    assert report.state is RunState.UNDONE
    assert [host.host for host in step.hosts if host.status is StepState.FAILED] == ["web2"]
    undone = {item.host for item in step.items if item.undo and item.undo.status == "undone"}
    assert undone >= {"db1", "db2", "web1", "web3"}
    assert {path.name for path in tmp_path.iterdir()} == {"web2"}


def test_tolerated_failure_on_one_host_does_not_end_the_run(fleet: Installation, tmp_path: Path) -> None:
    (tmp_path / "web2").mkdir()
    plan = Plan("release")
    write = plan.step("write", "file.deploy.execute", **written(tmp_path)).target("_all").tolerate(1)
    plan.step("next", "noop.execute").after(write)

    report = report_of(fleet, plan)

    assert report.state is RunState.SUCCEEDED
    assert report.step("next").status is StepState.CHANGED
    assert len(list(tmp_path.iterdir())) == 5
    assert [item.host for item in report.step("write").failures()] == ["web2"]


def test_failed_canary_keeps_the_step_from_the_other_hosts(fleet: Installation, tmp_path: Path) -> None:
    (tmp_path / "db1").mkdir()
    plan = Plan("release")
    plan.step("write", "file.deploy.execute", **written(tmp_path)).target("_all").canary(1).tolerate(3)

    report = report_of(fleet, plan)

    assert report.state is RunState.FAILED, "the run has changed something"
    assert {path.name for path in tmp_path.iterdir()} == {"db1"}
    left = {host.host: host.reason for host in report.step("write").hosts if host.status is StepState.NOT_RUN}
    assert left == dict.fromkeys(("db2", "web1", "web2", "web3"), "a canary failed")
    assert "a canary failed" in str(report.step("write").error)


def test_canaries_run_before_the_other_units(fleet: Installation, tmp_path: Path) -> None:
    plan = Plan("release")
    plan.step("write", "file.deploy.execute", **written(tmp_path)).target("_all").canary(2).max_parallel(2)
    run = fleet.run(plan)

    assert run.wait(timeout=60).state is RunState.SUCCEEDED
    order = [(found.name, found.step) for found in run.events() if found.name in {"item_started", "item_ended"}]
    first = [order.index(("item_ended", f"write[{n}]")) for n in (0, 1)]
    assert all(order.index(("item_started", f"write[{n}]")) > max(first) for n in (2, 3, 4))


# --- guards and selection -------------------------------------------------------------------------


def test_guards_are_decided_for_each_host(fleet: Installation, tmp_path: Path) -> None:
    plan = Plan("guarded")
    step = plan.step("write", "file.deploy.execute", **written(tmp_path)).target("_all")
    step.when("host.facts.rack == '1'").when("host.labels.role == 'web'", reason="it serves no web")
    plan.step("fact", "noop.execute").target("_all").when_fact(label="role:db", fact={"rack": "2"})
    plan.step("none", "noop.execute").target("role:web").when_fact(os="plan9").on_error("continue")
    plan.step("any", "noop.execute").when_fact(os="plan9")
    plan.step("some", "noop.execute").when_fact(min_cpu=1, healthy=True)

    report = report_of(fleet, plan)

    assert report.state is RunState.SUCCEEDED
    assert {path.name for path in tmp_path.iterdir()} == {"web1"}
    reasons = {host.host: host.reason for host in report.step("write").hosts if host.status is StepState.SKIPPED}
    assert reasons["db1"] == "it serves no web"
    assert reasons["web2"] == "when: guard returned false"
    assert [host.host for host in report.step("fact").hosts if host.status is StepState.CHANGED] == ["db2"]
    assert report.step("none").status is StepState.SKIPPED
    assert "when-fact" in str(report.step("none").reason)
    assert report.step("any").reason == "when-fact: no host is like that"
    assert report.step("some").status is StepState.CHANGED


def test_guard_is_decided_for_each_item(fleet: Installation) -> None:
    plan = Plan("items")
    plan.step("each", "noop.execute").foreach([1, 2, 3]).when("item > 1", reason="too small")

    step = report_of(fleet, plan).step("each")

    assert [str(item.status) for item in step.items] == ["skipped", "changed", "changed"]
    assert step.items[0].reason == "too small"


def test_step_is_skipped_on_a_host_without_its_queue(fleet: Installation) -> None:
    plan = Plan("pull")
    plan.step("pull", "docker.pull.execute", image="x:1").target("role:db")
    plan.step("ask", "docker.inspect.get", container="shop").target("web1")

    report = report_of(fleet, plan)

    assert report.state is RunState.SUCCEEDED
    assert [host.reason for host in report.step("pull").hosts] == [
        "host db1 has never had a worker for the queue docker",
        "host db2 has never had a worker for the queue docker",
    ]
    assert (report.step("ask").status, report.step("ask").reason) == (
        StepState.SKIPPED,
        "host web1 has never had a worker for the queue docker",
    )


def test_hosts_are_found_by_labels_and_facts(client: Client) -> None:
    def found(**conditions: Any) -> list[str]:
        return [host.name for host in client.hosts(**conditions)]

    facts = client.hosts()[0].facts
    assert found(label="role:web") == ["web1", "web2", "web3"]
    assert found(label=["role:web", "group:web.prod"], fact={"rack": "3"}) == ["web3"]
    assert found(os=facts["os"].upper(), arch=facts["arch"], min_cpu=1, min_memory="1MiB", healthy=True) == sorted(
        LABELS
    )
    assert found(min_memory="100TiB") == found(os="plan9") == found(label="spare:no") == []
    groups = client.hosts(group_by="label:role")
    assert {key: [host.name for host in hosts] for key, hosts in groups.items()} == {
        "db": ["db1", "db2"],
        "web": ["web1", "web2", "web3"],
    }
    assert client.hosts(group_by="label:spare").keys() == {"yes"}
    assert client.hosts(group_by="rack").keys() == {"1", "2", "3"}
    with pytest.raises(UsageError, match="hosts: colour"):
        client.hosts(colour="red")


# --- missing hosts --------------------------------------------------------------------------------


def test_start_with_an_unknown_host_is_refused_and_stores_nothing(fleet: Installation, tmp_path: Path) -> None:
    plan = tmp_path / "plan.yaml"
    plan.write_text("name: typo\nsteps:\n  a: {op: noop.execute}\n  b: {op: noop.execute, target: web9, after: a}\n")

    result = fleet.longshore("run", str(plan), "--run-id", "typo-1")

    assert result.code == 2
    assert "step b: target: no worker has registered on host 'web9' (there are: db1, db2, web1" in result.err
    assert fleet.longshore("runs", "show", "typo-1").code == 2


def test_templated_target_without_a_host_fails_or_skips_the_step(fleet: Installation) -> None:
    plan = Plan("found")
    find = plan.step("find", "noop.execute", data={"host": "web9", "label": "role:cache"})
    plan.step("skips", "noop.execute").after(find).target("{{ steps.find.data.label }}").on_no_host("skip")
    plan.step("fails", "noop.execute").after(find).target("{{ steps.find.data.host }}").on_error("continue")

    report = report_of(fleet, plan)

    assert report.step("skips").status is StepState.SKIPPED
    assert report.step("skips").reason == "no host matches the target role:cache"
    assert "no worker has registered on host 'web9'" in str(report.step("fails").error)


# --- drain ------------------------------------------------------------------------------------------


def test_drained_host_claims_only_compensations_and_always_steps(fleet: Installation, tmp_path: Path) -> None:
    slow = Plan("slow")
    slow.step("write", "file.deploy.execute", **written(tmp_path)).target("web3")
    slow.step("sleep", "noop.execute", sleep=3, fail=True).target("web3").after("write")
    slow.step("last", "file.deploy.execute", path=f"{tmp_path}/last", content="x").target("web3").after(
        "sleep"
    ).always()
    under_way = fleet.run(slow)
    wait_for("the step to sleep on the host", lambda: "sleep" in names(under_way, "step_started"))

    result = fleet.longshore("hosts", "drain", "web3", "--actor", "ann")

    assert (result.code, result.out) == (0, "web3: accepts no new steps; 1 active step\n")
    try:
        broadcast = Plan("all")
        broadcast.step("write", "noop.execute").target("role:web")
        report = report_of(fleet, broadcast)
        assert report.state is RunState.SUCCEEDED
        assert {host.host: host.reason for host in report.step("write").hosts if host.reason} == {
            "web3": "host web3 is drained by ann"
        }
        report = under_way.wait(timeout=60)
        assert report.step("sleep").status is StepState.FAILED, "the running step has not ended"
        assert report.state is RunState.UNDONE
        assert {path.name for path in tmp_path.iterdir()} == {"last"}

        waits = fleet.run("name: waits\ntarget: web3\nsteps: {a: {op: noop.execute}}\n")
        wait_for("the pending reason", lambda: waits.report().step("a").reason == "waits: host web3 is drained by ann")
        assert "host web3 is drained by ann" in fleet.longshore("runs", "show", waits.id).out
    finally:
        assert fleet.longshore("hosts", "undrain", "web3").code == 0
    assert waits.wait(timeout=60).state is RunState.SUCCEEDED


def test_unclaimed_unit_is_skipped_when_its_host_is_drained(fleet: Installation) -> None:
    plan = Plan("rolls")
    plan.step("work", "noop.execute", sleep=2).target("role:web").max_parallel(1)
    run = fleet.run(plan)
    wait_for("the first unit to start", lambda: names(run, "item_started"))
    fleet.longshore("hosts", "drain", "web3", "--actor", "ann")
    try:
        report = run.wait(timeout=60)
    finally:
        fleet.longshore("hosts", "undrain", "web3")

    assert report.state is RunState.SUCCEEDED
    found = {host.host: (str(host.status), host.reason) for host in report.step("work").hosts}
    assert found == {
        "web1": ("changed", None),
        "web2": ("changed", None),
        "web3": ("skipped", "host web3 is drained by ann"),
    }


def test_drain_with_stop_ends_the_workers_of_the_host(fleet: Installation) -> None:
    worker = start(fleet, "spare1")
    run = fleet.run("name: slow\ntarget: spare1\nsteps: {a: {op: noop.execute, with: {sleep: 2}}}\n")
    wait_for("the step to start", lambda: names(run, "step_started"))

    assert fleet.longshore("hosts", "drain", "spare1", "--stop").code == 0

    assert run.wait(timeout=60).state is RunState.SUCCEEDED
    wait_for("the worker to end", lambda: not worker.running)
    hosts = Hosts(fleet.client().store)
    assert hosts.get("spare1").state is HostState.STOPPED
    worker.start()
    wait_for("the host to be drained", lambda: hosts.get("spare1").state is HostState.DRAINED)
    assert fleet.longshore("hosts", "undrain", "spare1").code == 0
    wait_for("the host to be ready", lambda: hosts.get("spare1").state is HostState.READY)
    run = fleet.run("name: slow\ntarget: spare1\nsteps: {a: {op: noop.execute, with: {sleep: 3}}}\n")
    wait_for("the step to start", lambda: names(run, "step_started"))
    worker.signal_main(signal.SIGTERM)
    wait_for("the host to be stopping", lambda: hosts.get("spare1").state is HostState.STOPPING)
    assert run.wait(timeout=60).state is RunState.SUCCEEDED
    wait_for("the host to be stopped", lambda: hosts.get("spare1").state is HostState.STOPPED)
    assert fleet.longshore("hosts", "forget", "spare1", "-o", "json").json["message"] == "forgotten: spare1"
    assert fleet.longshore("hosts", "show", "spare1").code == 2


# --- figures ------------------------------------------------------------------------------------------


def test_metrics_report_the_length_and_workers_of_each_queue(fleet: Installation) -> None:
    plan = Plan("crowd", target="web1")
    plan.step("many", "noop.execute", sleep=0.3).foreach(list(range(20)))
    run = fleet.run(plan)
    wait_for("the first unit to start", lambda: names(run, "item_started"))
    port = free_port()
    served = fleet.popen("metrics", "--listen", str(port))
    try:
        found = {each["queue"]: each for each in fleet.longshore("metrics", "-o", "json").json}
        assert found["noop@web1"]["length"] > 0
        assert found["noop@web1"]["oldest"] > 0
        assert found["noop"]["workers"] == len(LABELS)
        text = wait_for("the metrics", lambda: scraped(port))
        assert 'longshore_queue_length{queue="noop@web1"}' in text
        assert 'longshore_hosts{state="ready"} 5.0' in text
    finally:
        served.terminate()
        served.communicate()
        run.cancel("enough")
    assert fleet.longshore("metrics", "--listen", "nowhere").code == 2
    run.wait(timeout=60)


def scraped(port: int) -> str:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            return str(answer.read().decode())
    except OSError:
        return ""


# --- lost hosts ---------------------------------------------------------------------------------------


def test_report_names_a_lost_host_and_a_drained_host(fleet: Installation) -> None:
    fleet.longshore("hosts", "drain", "db1")
    worker = fleet.at(f"at-web2@{fleet.namespace}")
    plan = Plan("all", on_failure="keep")
    plan.step("work", "noop.execute", sleep=2).target("_all")
    run = fleet.run(plan)
    try:
        wait_for("four units to start", lambda: len(names(run, "item_started")) >= 4)
        worker.kill()

        report = run.wait(timeout=60)

        found = {host.host: host for host in report.step("work").hosts}
        assert report.state is RunState.FAILED
        assert (found["db1"].status, found["db1"].reason) == (StepState.SKIPPED, "host db1 is drained by tester")
        assert found["web2"].status is StepState.FAILED
        assert "host did not answer: host web2 is lost" in str(found["web2"].error)
        assert {found[name].status for name in ("db2", "web1", "web3")} == {StepState.CHANGED}
        assert Hosts(run.store).get("web2").state is HostState.LOST
        assert "lost" in fleet.longshore("hosts", "ls").out
    finally:
        fleet.longshore("hosts", "undrain", "db1")
        worker.start()


def test_step_for_a_lost_host_reports_the_reason_and_waits(fleet: Installation) -> None:
    worker = fleet.at(f"at-db2@{fleet.namespace}")
    worker.kill()
    run = fleet.run("name: waits\ntarget: db2\nsteps: {a: {op: noop.execute}}\n")
    wait_for("the pending reason", lambda: "host db2 is lost" in str(run.report().step("a").reason))

    worker.start()

    assert run.wait(timeout=60).state is RunState.SUCCEEDED


def test_quick_retries_run_on_the_host_of_the_first_attempt(fleet: Installation, tmp_path: Path) -> None:
    plan = Plan("again")
    tried = f"echo x >> {tmp_path}/tries; test $(wc -l < {tmp_path}/tries) -ge 5"
    plan.step("try", "command.shell.execute", command=tried).retry(5, initial="100ms", maximum="100ms")

    run = fleet.run(plan)

    assert run.wait(timeout=60).state is RunState.SUCCEEDED
    owners = [owner_node(event.fields["owner"]) for event in run.events() if event.name == "step_started"]
    assert len(owners) == 5
    assert len(set(owners)) == 1


def test_compensation_runs_on_the_host_of_its_step(fleet: Installation, tmp_path: Path) -> None:
    plan = Plan("local")
    steps = [plan.step(f"write{n}", "file.deploy.execute", path=f"{tmp_path}/{n}", content="x") for n in range(6)]
    plan.step("fail", "noop.execute", fail=True).after(*steps)
    run = fleet.run(plan)

    report = run.wait(timeout=60)

    assert report.state is RunState.UNDONE
    did = {item.step: item.fields["owner"] for item in run.events() if item.name == "step_started"}
    undid = {item.step: item.fields["owner"] for item in run.events() if item.name == "undo_started"}
    assert len({owner_node(owner) for owner in did.values()}) > 1, "all steps ran on one host"
    assert {name: owner_node(owner) for name, owner in undid.items() if str(name).startswith("write")} == {
        name: owner_node(owner) for name, owner in did.items() if str(name).startswith("write")
    }


def owner_node(owner: str) -> str:
    return owner.partition("@")[2].partition("/")[0]

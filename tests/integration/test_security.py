"""An installation with Redis users and signed messages: runs work as without, and denied requests are refused."""

from __future__ import annotations

import base64
import json
import os
import signal
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from longshore.orchestration import Plan, operation
from longshore.orchestration.client import preconditions
from longshore.orchestration.client.request import request_body
from longshore.orchestration.errors import PlanDenied, StoreUnavailable
from longshore.orchestration.installation import acl
from longshore.orchestration.messaging import signing
from longshore.orchestration.settings import Settings
from longshore.orchestration.store import audit
from longshore.orchestration.store.admission import Admission
from tests import servers
from tests.integration.conftest import QUICK
from tests.integration.processes import PATIENCE, Installation, Worker, fork_server, wait_for
from tests.integration.test_poisoned_messages import message
from tests.unit.conftest import own_registry
from tests.unit.tasks.operations.test_http import Service

pytestmark = pytest.mark.operations
assert own_registry

PASSWORDS = {role: f"{role}-password" for role in acl.ROLES}
SPACE = "guarded"


class Guarded:
    """A Redis with users, a worker with all keys, and a client with the client's key."""

    def __init__(self, folder: Path) -> None:
        self.keys, self.client_keys = folder / "keys.json", folder / "client-keys.json"
        keys = [signing.new_key("worker"), signing.new_key("client")]
        self.write(keys)
        self.users = folder / "users.acl"
        self.users.write_text(
            acl.users(Settings(namespace=SPACE), PASSWORDS, ["celery", "shipping"], admin="admin-password")
        )
        self.server = AdminServer("--aclfile", str(self.users))
        self.server.start()
        self.folder = folder
        self.admin = redis.Redis.from_url(self.server.url, decode_responses=True)
        self.place = self.as_role("worker", self.keys)
        self.client = self.as_role("client", self.client_keys).client()

    def write(self, keys: list[signing.Key]) -> None:
        for path, text in (
            (self.keys, signing.written(keys)),
            (self.client_keys, signing.written([key for key in keys if key.role == "client"])),
        ):
            path.write_text(text)
            path.chmod(0o600)

    def as_role(self, role: str, keys: Path | str = "") -> Installation:
        url = acl.url(role, PASSWORDS[role], f"redis://127.0.0.1:{self.server.port}/0")
        options: dict[str, str] = QUICK | ({"keys": str(keys)} if keys else {})
        return Installation(url, self.folder, SPACE, options)

    def run(self, plan: Plan, **given: Any) -> Any:
        return self.client.start(plan, **given).wait(timeout=PATIENCE)

    def push(self, queue: str, raw: bytes) -> None:
        self.admin.lpush(f"{SPACE}:{queue}", raw)

    def refusals(self) -> list[str]:
        return [line.why for line in audit.lines(self.client.store, refused=True)]

    def refused(self, word: str) -> str:
        return wait_for(f"a line about {word}", lambda: next((why for why in self.refusals() if word in why), None))

    def close(self) -> None:
        self.place.close()
        self.client.store.client.close()
        self.client._producer.close()
        self.admin.close()
        self.server.close()


class AdminServer(servers.RedisServer):
    """A server that the tests use as the Redis user admin."""

    def __init__(self, *options: str) -> None:
        super().__init__(*options)
        self.url = f"redis://admin:admin-password@127.0.0.1:{self.port}/0"


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    made = Guarded(tmp_path_factory.mktemp("guarded"))
    try:
        made.place.worker("one", "-c", "2", "--task-events").start()
        yield made
    finally:
        made.close()


def wide(name: str = "wide") -> Plan:
    plan, mark = Plan(name), f"/tmp/guarded-{uuid.uuid4().hex}"
    first = plan.step("first", "noop.execute", changed=True)
    several = [plan.step(f"s{n}", "noop.execute", changed=True).after(first) for n in range(3)]
    fails_once = f"test -e {mark} && rm {mark} || {{ touch {mark}; exit 1; }}"
    again = plan.step("again", "command.shell.execute", command=fails_once).retry(2, initial=0.05).after(*several)
    plan.step("last", "noop.execute").after(again)
    return plan


def test_runs_and_commands_work_with_users_and_signatures(guarded: Guarded) -> None:
    guarded.admin.acl_log_reset()
    refused = len(guarded.refusals())
    done = guarded.run(wide())
    assert done.state == "succeeded", done
    bad = Plan("bad")
    made = bad.step("made", "noop.execute", changed=True)
    bad.step("fails", "noop.execute", fail="no").after(made)
    assert guarded.run(bad).state == "undone"
    slow = Plan("slow")
    slow.step("sleeps", "noop.execute", sleep=60)
    run = guarded.client.start(slow)
    wait_for("the step to run", lambda: any(step.status == "running" for step in run.report().steps))
    assert run.answer(run.cancel("enough"), timeout=PATIENCE) == "done"
    assert run.wait(timeout=PATIENCE).state == "undone"
    assert [entry["action"] for entry in guarded.client.dry_run(wide())]
    assert guarded.as_role("operator", guarded.client_keys).longshore("runs", "ls").code == 0
    assert guarded.as_role("operator", guarded.client_keys).longshore("hosts", "drain", SPACE).code == 0
    assert guarded.as_role("operator", guarded.client_keys).longshore("hosts", "undrain", SPACE).code == 0
    assert guarded.as_role("monitor").longshore("metrics").code == 0

    assert [entry for entry in guarded.admin.acl_log() if entry["reason"] != "auth"] == []
    assert len(guarded.refusals()) == refused
    recorded = {(line.what, line.plan or line.run, line.actor) for line in audit.lines(guarded.client.store)}
    assert ("start", "wide", "tester") in recorded
    assert ("cancel", run.id, "tester") in recorded


def test_client_starts_a_run_after_a_flush_of_the_scripts(guarded: Guarded) -> None:
    guarded.admin.script_flush()
    client = guarded.as_role("client", guarded.client_keys).client()
    try:
        assert client.start(wide("forgotten")).wait(timeout=PATIENCE).state == "succeeded"
    finally:
        client.close()


def test_client_may_not_write_records(guarded: Guarded) -> None:
    done = guarded.run(wide("mine"))
    keys = guarded.client.store.keys.of(done.run_id)
    client = guarded.client.store.client
    for write in (
        lambda: client.hset(keys.run, "state", "succeeded"),
        lambda: client.hset(keys.steps, "status:0", "failed"),
        lambda: client.xadd(keys.events, {"event": "run_ended"}),
        lambda: client.delete(keys.run),
        lambda: client.xadd(guarded.client.store.keys.audit, {"what": "start"}),
        client.flushall,
        lambda: client.config_set("appendonly", "no"),
        lambda: client.set("elses:key", "x"),
    ):
        with pytest.raises(redis.exceptions.NoPermissionError):
            write()
    with pytest.raises(StoreUnavailable, match="grant the Redis user the permission"):
        guarded.client.store.call(client.hset, keys.run, "state", "succeeded")
    assert any(keys.run == entry["object"] for entry in guarded.admin.acl_log())  # the ACL log of Redis


def test_unsigned_message_is_refused(guarded: Guarded) -> None:
    guarded.push("noop", json.dumps(message([["run", 0], {}, {}])).encode())
    assert "the signature is missing" in guarded.refused("longshore.step is refused")


def test_pickled_message_is_refused(guarded: Guarded) -> None:
    pickled = message() | {"content-type": "application/x-python-serialize", "content-encoding": "binary"}
    guarded.push("noop", json.dumps(pickled).encode())
    assert "not JSON" in guarded.refused("application/x-python-serialize")


def signed_message(guarded: Guarded, run_id: str) -> dict[str, Any]:
    """Return the signed message of a step from its queue."""
    worker = guarded.place.workers[0]
    worker.signal_main(signal.SIGSTOP)
    try:
        with Worker(guarded.place, "control-only", "-Q", "control", "-c", "1"):
            plan = Plan("watched")
            plan.step("only", "noop.execute", changed=True)
            guarded.client.start(plan, run_id=run_id)
            raw = wait_for("a message", lambda: guarded.admin.lrange(f"{SPACE}:noop", 0, -1))[0]
    finally:
        worker.signal_main(signal.SIGCONT)
    return dict(json.loads(raw))


def test_changed_or_copied_signed_message_is_refused(guarded: Guarded) -> None:
    run_id = f"replayed-{uuid.uuid4().hex[:6]}"
    copied = signed_message(guarded, run_id)
    assert guarded.client.get(run_id).wait(timeout=PATIENCE).state == "succeeded"

    renamed = copied | {"headers": copied["headers"] | {"task": "longshore.undo"}}
    guarded.push("noop", json.dumps(renamed).encode())
    assert "the content was changed" in guarded.refused("longshore.undo is refused")

    body = json.loads(base64.b64decode(copied["body"]))
    body[0][0] = "another-run"
    other = copied | {"body": base64.b64encode(json.dumps(body).encode()).decode()}
    guarded.push("noop", json.dumps(other).encode())
    assert "the content was changed" in guarded.refused("longshore.step is refused: its signature does not match")

    before = guarded.client.get(run_id).report()
    guarded.push("noop", json.dumps(copied).encode())
    assert copied["headers"]["id"] in guarded.refused("was carried out before")
    assert guarded.client.get(run_id).report().steps[0].attempts == before.steps[0].attempts


def test_client_may_not_send_a_step(guarded: Guarded) -> None:
    keys = signing.read(guarded.client_keys)
    forged = message([["run", 0], {}, {}])
    headers = forged["headers"]
    headers[signing.FIELD] = signing.sign(
        keys, "message", signing._parts(headers, base64.b64decode(forged["body"]), "")
    ) | {"plan": ""}
    guarded.push("noop", json.dumps(forged).encode())
    assert "a client may not send longshore.step" in guarded.refused("a client may not send")


def test_unsigned_request_and_command_are_refused(guarded: Guarded, monkeypatch: pytest.MonkeyPatch) -> None:
    thief = guarded.as_role("client").client()  # with the password, without the key
    monkeypatch.setattr(preconditions, "require_signing_key", lambda _store: None)  # an attacker skips this check
    run = thief.start(wide("stolen"))
    assert "its request is refused: the signature is missing" in guarded.refused("its request is refused")
    assert thief.store.state(run.id) is None

    slow = Plan("kept")
    slow.step("sleeps", "noop.execute", sleep=3)
    mine = guarded.client.start(slow)
    wait_for("the step to run", lambda: any(step.status == "running" for step in mine.report().steps))
    theirs = thief.get(mine.id)
    thief.store.command(mine.id, "cancel")
    guarded.refused("the command is refused")
    assert theirs.wait(timeout=PATIENCE).state == "succeeded"


def test_request_written_into_redis_is_refused(guarded: Guarded) -> None:
    plan = wide("evil")
    run = guarded.client.start(plan)
    run.wait(timeout=PATIENCE)
    body = guarded.client.store.body(run.id)
    assert body is not None
    body["plan"]["steps"]["first"]["op"] = "evil.operation.execute"
    store = guarded.client.store
    store.client.set(store.keys.of("planted").request, json.dumps(body))
    store.client.zadd(store.keys.inbox, {"planted": "1"})
    assert "planted" not in guarded.refused("its request is refused: the signature is missing")
    assert store.state("planted") is None


def test_key_rotation_does_not_interrupt_runs(guarded: Guarded) -> None:
    old = signing.read(guarded.keys).keys
    guarded.write(signing.rotated(old, time.time(), after=0.0))
    assert guarded.run(wide("rotated")).state == "succeeded"
    newest = {key.id for key in signing.read(guarded.keys).keys} - {key.id for key in old}
    assert signing.read(guarded.keys).signing(time.time() + 1).id in newest
    # workers accept the earlier keys while signed messages may still be in queues
    assert {key.id for key in old} <= {key.id for key in signing.read(guarded.keys).keys}


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"op": "command.exec.execute", "argv": ["true"], "env": {"DB_PASSWORD": "hunter22"}}, "plaintext secret"),
        ({"op": "file.deploy.execute", "path": "/srv/../etc/shadow", "content": "x"}, "has a .. in it"),
        ({"op": "noop.execute", "data": {"x": "{{ params.__class__ }}"}}, "__class__"),
    ],
)
def test_denied_plan_is_refused_before_it_is_stored(guarded: Guarded, values: dict[str, Any], word: str) -> None:
    plan = Plan("harmful")
    plan.step("a", values.pop("op"), **values)
    with pytest.raises(PlanDenied, match=word):
        guarded.client.dry_run(plan)
    with pytest.raises(PlanDenied, match=word):
        guarded.client.start(plan, run_id="harmful")
    assert guarded.client.store.body("harmful") is None
    guarded.refused(word)


def test_oversized_plan_is_refused(guarded: Guarded) -> None:
    small = guarded.as_role("client", guarded.client_keys)
    small.options = small.options | {"max_plan": "2048"}
    plan = Plan("oversized")
    plan.step("a", "noop.execute", data={"x": "y" * 4000})
    with pytest.raises(PlanDenied, match="2048 are allowed"):
        small.client().start(plan)
    guarded.refused("2048 are allowed")


def test_copy_of_a_command_or_of_a_pruned_request_is_refused(guarded: Guarded) -> None:
    store = guarded.client.store
    run = guarded.client.start(wide("copied"))
    run.wait(timeout=PATIENCE)
    assert run.answer(run.undo(), timeout=PATIENCE) == "done"
    wait_for("the undo", lambda: run.state() == "undone")
    keys = store.keys.of(run.id)
    (_, asked), *_ = store.commands(run.id)
    # a client may read and write requests, but a copy of an earlier request is refused
    store.client.xadd(keys.commands, asked)
    store.client.zadd(store.keys.inbox, {run.id: 1})
    assert run.id in {
        line.run for line in _refusals(guarded, "the command is a copy of one that was carried out before")
    }

    request = store.client.get(keys.request)
    assert run.prune() == "done"
    recorded = [(line.what, line.actor) for line in audit.lines(store, run=run.id)]
    assert {("start", "tester"), ("undo", "tester"), ("prune", "tester")} <= set(recorded)
    store.client.set(keys.request, request)
    store.client.zadd(store.keys.inbox, {run.id: 1})
    assert run.id in {line.run for line in _refusals(guarded, "was already executed, and the run was deleted")}
    assert store.state(run.id) is None


def test_replaced_request_of_a_live_run_is_refused(guarded: Guarded, tmp_path: Path) -> None:
    store, mark = guarded.client.store, tmp_path / "go-on"
    slow = Plan("swapped")
    waits = slow.step("a", "command.shell.execute", command=f"until test -e {mark}; do sleep 0.1; done")
    slow.step("b", "noop.execute", changed=True).after(waits)
    mine = guarded.client.start(slow)
    wait_for("the step to run", lambda: mine.report().step("a").status == "running")
    request, body = store.request(mine.id), store.body(mine.id)
    assert request is not None
    assert body is not None
    other = Plan("swapped")
    other.step("b", "noop.execute", fail="evil").after(other.step("a", "noop.execute"))
    theirs = body | {"plan": other.to_dict(), "digest": other.digest({}, {})}
    store.client.set(
        store.keys.of(mine.id).request,
        signing.sealed(guarded.client.settings, "request", mine.id, json.dumps(theirs)),
    )
    # a new worker refuses the request; workers of the run continue with their cached plan
    with Worker(guarded.place, "fresh", "-Q", "control", "-c", "1"):
        assert mine.id in {line.run for line in _refusals(guarded, "its request was replaced after the run began")}
        # and the new worker leaves the run in the index of live runs
        assert store.client.zscore(store.keys.live, mine.id) is not None
    store.client.set(store.keys.of(mine.id).request, request)
    mark.touch()
    assert mine.wait(timeout=PATIENCE).state == "succeeded"


def _refusals(guarded: Guarded, word: str) -> list[audit.Line]:
    def found() -> list[audit.Line]:
        return [line for line in audit.lines(guarded.client.store, refused=True) if word in line.why]

    return wait_for(f"a line about {word}", found)


def test_operator_has_the_permissions_of_each_command(guarded: Guarded) -> None:
    place = guarded.as_role("operator", guarded.client_keys)
    guarded.admin.acl_log_reset()
    for words in (
        "runs ls", "hosts ls", "locks ls", "breaker ls", "ops ls", "schedules ls", "job ls", "audit", "metrics",
        "doctor", "check", "select", "hosts forget nosuch", "breaker reset nosuch", "gc --dry-run",
        "runs prune --older-than 30d",
    ):  # fmt: skip
        done = place.longshore(*words.split())
        assert "may not" not in done.err, (words, done.err)
        assert "no permissions" not in done.err, (words, done.err)
    # Doctor reads the configuration only if the permission exists.
    log = [
        entry for entry in guarded.admin.acl_log() if (entry["reason"], entry["object"]) != ("command", "config|get")
    ]
    assert [entry for entry in log if entry["reason"] != "auth"] == []
    place.close()


def test_audit_trail_marks_entries_of_clients(guarded: Guarded) -> None:
    store = guarded.client.store
    store.client.xadd(store.keys.client_reports, {"what": "approve", "actor": "boss", "run": "any"})
    store.client.xadd(store.keys.client_reports, {"nonsense": "\x00"})
    found = list(audit.lines(store, limit=5))
    assert {line.by_client for line in found if line.actor == "boss"} == {True}
    result = guarded.as_role("operator", guarded.client_keys).longshore("audit", "-n", "5")
    assert "approve (as a client says)" in result.out
    assert all(not line.by_client for line in audit.lines(store, limit=1000) if line.what == "start")


def test_answer_of_an_application_worker_needs_its_seal(monkeypatch: pytest.MonkeyPatch, guarded: Guarded) -> None:
    ring = signing.read(guarded.keys)
    monkeypatch.setattr(signing, "ring", lambda _settings=None: ring)
    answer = {"told": ["run", 0, "", "7"], "ok": True}
    sealed = signing.seal("ended", answer)["seal"]
    signing.check_seal("ended", answer, sealed)
    for forged in (answer | {"ok": False}, answer | {"told": ["other", 0, "", "7"]}):
        with pytest.raises(signing.Forged):
            signing.check_seal("ended", forged, sealed)
    with pytest.raises(signing.Forged):
        signing.check_seal("ended", answer, None)


def test_start_without_a_known_key_is_refused_and_stores_nothing(guarded: Guarded, tmp_path: Path) -> None:
    plan = tmp_path / "plan.yaml"
    plan.write_text("name: any\nsteps:\n  a: {op: noop.execute}\n")
    bare = guarded.as_role("operator")
    done = bare.longshore("run", str(plan), "--run-id", "bare")
    assert (done.code, "this client has no key" in done.err, "client/keys.json" in done.err) == (2, True, True)
    theirs = tmp_path / "theirs.json"
    theirs.write_text(signing.written([signing.new_key("client")]))
    theirs.chmod(0o600)
    foreign = guarded.as_role("operator", theirs)
    done = foreign.longshore("run", str(plan), "--run-id", "foreign")
    assert (done.code, "do not know the keys in" in done.err) == (2, True)
    assert guarded.client.store.body("bare") is None
    assert guarded.client.store.body("foreign") is None
    with_theirs = guarded.as_role("worker", guarded.client_keys).worker("none", "-c", "1")
    with_theirs.start(wait=False)
    wait_for("the worker to end", lambda: not with_theirs.running)
    assert b"a client's keys" in with_theirs.log.read_bytes()


def test_application_worker_without_a_key_reports_its_outcomes(
    guarded: Guarded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = {
        "BANK_BROKER": guarded.place.redis_url, "BANK_LEDGER": str(tmp_path / "ledger"),
        "BANK_PREFIX": guarded.place.settings.broker_prefix(), "PYTHONPATH": guarded.place.pythonpath,
    }  # fmt: skip
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    sys.modules.pop("tests.integration.bank", None)
    from tests.integration import bank

    command = ["celery", "-A", "tests.integration.bank", "worker", "-c", "1", "-Q", "celery,shipping"]
    log = tmp_path / "bank.log"
    worker = fork_server().start(command, env=os.environ | environment, cwd=tmp_path, log=log)
    try:
        plan = Plan("order")
        plan.celery("charge", bank.charge.s(42), undo=bank.refund.s(42), timeout=30)
        plan.celery("ship", bank.ship.s("o-1", fails=True), undo=bank.fetch_back.s("o-1"), timeout=30).after("charge")
        report = guarded.run(plan)
        assert report.state == "undone", (tmp_path / "bank.log").read_text()
        assert report.step("charge").data == {"charged": 42}
        # The worker of the task has reported the failure, not the timeout.
        assert report.step("ship").error == f"the task failed; its worker's log has why (task {report.run_id}.ship.1)"
        ledger = (tmp_path / "ledger").read_text().splitlines()
        assert ledger == ["charge 42", "ship o-1", "fetch back o-1", "refund 42"]
    finally:
        worker.terminate()
        worker.wait(20)
        bank.app.close()


def test_operation_unknown_to_all_workers_is_refused_and_audited(guarded: Guarded, own_registry: None) -> None:
    @operation("evil.operation")
    def evil() -> None:
        """An operation of this client only."""

    plan = Plan("unknown-to-all")
    plan.step("a", "evil.operation")
    run = guarded.client.start(plan)
    (line,) = _refusals(guarded, "no worker that knows the operation has read the request")
    assert (line.run, line.plan, line.actor) == (run.id, "unknown-to-all", "tester")
    wait_for("the pending reason", lambda: "no worker that knows the operation" in str(run.report().error))
    assert run.report().step("a").attempts == 0
    run.cancel()
    assert run.wait(timeout=PATIENCE).exit_code == 1


# --- hostile clients with a key -----------------------------------------------------------------------


@pytest.fixture
def listener() -> Iterator[Service]:
    service = Service()
    thread = threading.Thread(target=service.server.serve_forever)
    thread.start()
    yield service
    service.server.shutdown()
    service.server.server_close()
    thread.join()


def test_plan_cannot_read_worker_credentials_or_unlisted_secrets(guarded: Guarded, listener: Service) -> None:
    # Given a signed plan that sends secrets to a server of its author, and writes the secrets into files
    state = guarded.place.folder / "state"
    references = [
        f"file:{guarded.keys}", f"file:{guarded.client_keys}", f"file:{guarded.keys.parent}/./keys.json",
        "env:LONGSHORE_REDIS_URL", "env:LONGSHORE_KEYS", "env:PATH", "env:HOME", "file:/etc/shadow", "file:/etc/passwd",
        "file:/proc/self/environ", "file:/proc/1/environ", "file:/dev/fd/0", f"file:{state}/x", f"file:{guarded.users}",
        f"file:/run/secrets/../..{guarded.keys}",
    ]  # fmt: skip
    plan = Plan("thief", on_error="continue", on_failure="keep")
    for number, reference in enumerate(references):
        secret = f"{{{{ secret('{reference}') }}}}"
        plan.step(f"send{number}", "network.http.request", url=f"{listener.url}/{number}", body=secret)
        plan.step(f"file{number}", "file.deploy.execute", path=f"/tmp/thief-{number}", content=secret)

    # When a worker executes the plan
    report = guarded.run(plan)

    # Then no secret was sent or written, each step was refused, and the audit trail has each refusal
    assert listener.asked == []
    for number, reference in enumerate(references):
        assert not Path(f"/tmp/thief-{number}").exists()
        for step in (f"send{number}", f"file{number}"):
            assert f"this worker may not read secret {reference}" in str(report.step(step).error)
    lines = [line for line in audit.lines(guarded.client.store, refused=True, limit=1000) if line.run == report.run_id]
    assert {line.step for line in lines} == {step.name for step in report.steps}
    assert PASSWORDS["worker"] not in report.model_dump_json()


def test_signed_request_with_a_path_as_its_id_is_refused_and_writes_nothing(guarded: Guarded, tmp_path: Path) -> None:
    plan = Plan("escape")
    plan.step("a", "command.exec.execute", argv=["true"])
    outside = tmp_path / "outside"
    for run_id, changed in (
        ("escape-born", {"instance_id": f"x/../../../../../../../../..{outside}"}),
        ("escape-parent", {"parent": {"run": "../x", "step": 0, "line": []}}),
    ):
        body = request_body(plan, {}, "eve") | changed
        Admission(guarded.as_role("client", guarded.client_keys).client().store).submit(run_id, body)
        line = wait_for(
            "the refusal", lambda run_id=run_id: next(
                (one for one in audit.lines(guarded.client.store, refused=True, run=run_id)), None
            )
        )  # fmt: skip
        assert "must match" in line.why
        assert not guarded.admin.exists(guarded.client.store.keys.of(run_id).run)
    assert not outside.exists()
    assert guarded.run(wide("after")).state == "succeeded"

"""Maintenance of an installation in use: TLS, an upgrade of workers, and a restore from the files of Redis."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from longshore.orchestration import Plan
from longshore.orchestration.client import request
from longshore.orchestration.errors import StoreUnavailable
from longshore.orchestration.store.records import SCHEMA_VERSION
from tests.conftest import require
from tests.integration.conftest import QUICK
from tests.integration.processes import PATIENCE, Installation, wait_for
from tests.servers import RedisServer, free_port

pytestmark = pytest.mark.maintenance


def two_steps(name: str, sleep: float = 0.0) -> Plan:
    plan = Plan(name)
    first = [plan.step(f"a{n}", "noop.execute", changed=True, sleep=sleep) for n in range(2)]
    plan.step("b", "noop.execute", changed=True).after(*first)
    return plan


def plan_with_approval(name: str) -> Plan:
    plan = Plan(name)
    plan.step("after", "noop.execute", changed=True).after(
        plan.step("ask", "approval.wait.execute").timeout(600).after(plan.step("before", "noop.execute", changed=True))
    )
    return plan


def test_all_processes_use_tls_and_verify_the_certificate(tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        require("openssl is not installed")
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=redis", "-addext",
         "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)],
        check=True, capture_output=True,
    )  # fmt: skip
    port = free_port()
    options = ["--tls-port", str(port), "--tls-auth-clients", "no", "--tls-cert-file", str(certificate)]
    options += ["--tls-key-file", str(key), "--tls-ca-cert-file", str(certificate)]
    with RedisServer(*options):
        url = f"rediss://127.0.0.1:{port}/0?ssl_cert_reqs=required&ssl_ca_certs={certificate}"
        place = Installation(url, tmp_path, options=dict(QUICK))
        try:
            place.worker("one", "-c", "2").start()
            assert place.client().start(two_steps("by-tls")).wait(timeout=PATIENCE).state == "succeeded"
            assert place.longshore("runs", "ls").code == 0
            unknown = Installation(f"rediss://127.0.0.1:{port}/0", tmp_path, place.namespace, place.options)
            with pytest.raises(StoreUnavailable):
                unknown.client().runs()
            unknown.close()
        finally:
            place.close()


def test_upgrade_leaves_new_runs_to_new_workers_and_completes_old_ones(
    redis_server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Installation(redis_server.url, tmp_path, options=dict(QUICK))
    try:
        old = place.worker("old", "-c", "2")
        old.start()
        client = place.client()
        earlier_run = client.start(plan_with_approval("begun-before"))
        wait_for("the approval to wait", lambda: earlier_run.report().step("ask").status == "waiting")

        # a client of the new version starts a run before the workers are upgraded
        monkeypatch.setattr(request, "SCHEMA_VERSION", SCHEMA_VERSION + 1)
        run = client.start(two_steps("of-the-new"))
        wait_for(
            "the old worker to receive the run",
            lambda: b"newer version" in old.log.read_bytes() or run.state() == "pending",
        )
        assert client.store.state(run.id) is None  # the old worker has not earlier_run the run

        new = place.worker(
            "new", "-c", "2", LONGSHORE_IMPORTS="tests.integration.newer_version", PYTHONPATH=place.pythonpath
        )
        new.start()
        # Both workers consume the same queues: messages that the old worker refuses are redelivered.
        assert run.wait(timeout=PATIENCE).state == "succeeded"
        old.stop()
        earlier_run.approve("ask")
        assert earlier_run.wait(timeout=PATIENCE).state == "succeeded"
        assert {step.attempts for step in earlier_run.report().steps} == {1}
    finally:
        place.close()


def test_run_continues_after_a_restore_from_the_append_only_file(tmp_path: Path) -> None:
    with RedisServer("--appendfsync", "always") as first, RedisServer("--appendfsync", "always") as second:
        place = Installation(first.url, tmp_path, options=dict(QUICK))
        try:
            place.worker("one", "-c", "2").start()
            run = place.client().start(plan_with_approval("restored"))
            wait_for("the approval to wait", lambda: run.report().step("ask").status == "waiting")
        finally:
            place.close()
        first.stop()
        second.stop()
        shutil.rmtree(second.folder / "appendonlydir", ignore_errors=True)
        shutil.copytree(first.folder / "appendonlydir", second.folder / "appendonlydir")
        second.start()
        place = Installation(second.url, tmp_path, place.namespace, dict(QUICK))
        try:
            place.worker("two", "-c", "2").start()
            again = place.client().get(run.id)
            assert again.report().step("before").attempts == 1
            again.approve("ask")
            done = again.wait(timeout=PATIENCE)
            assert done.state == "succeeded"
            assert [step.attempts for step in done.steps] == [1, 1, 1]
        finally:
            place.close()

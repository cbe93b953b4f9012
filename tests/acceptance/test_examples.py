"""The results of the examples, and their links on the page of examples."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from longshore.orchestration.client import embedded
from tests.integration.processes import fork_server, result_of
from tests.servers import RedisServer

ROOT = Path(__file__).resolve().parents[2]
FEATURES = ROOT / "examples" / "features"

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """An environment with its own embedded server, which the fixture ends."""
    folder = tmp_path_factory.mktemp("s")
    env = {name: value for name, value in os.environ.items() if not name.startswith("LONGSHORE_")}
    # On a busy machine, the time between two commands may exceed the default.
    env |= {"LONGSHORE_STATE_DIR": str(folder), "LONGSHORE_IDLE_TIMEOUT": "5m"}
    env |= {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"}
    yield env | {"LONGSHORE_IMPORTS": "shop"}
    if pid := embedded.supervisor_pid(folder):
        os.kill(pid, 15)
        while embedded.supervisor_pid(folder):
            time.sleep(0.05)


def done(env: dict[str, str], *arguments: str) -> tuple[int, str]:
    if not arguments[0].endswith(".py"):
        ran = result_of(fork_server().start(["longshore", *arguments], env=env, cwd=FEATURES), 120)
        assert "Traceback" not in ran.err, ran.err
        return ran.code, ran.out
    command = [sys.executable, *arguments]
    script = subprocess.run(command, cwd=FEATURES, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert "Traceback" not in script.stderr, script.stderr
    return script.returncode, script.stdout


def report(env: dict[str, str], plan: str, folder: Path | None = None) -> dict[str, Any]:
    given = ["-p", f"folder={folder}"] if folder else []
    _, out = done(env, "run", plan, *given, "-o", "json")
    return json.loads(out)  # type: ignore[no-any-return]


def steps(found: dict[str, Any]) -> dict[str, str]:
    return {step["name"]: step["status"] for step in found["steps"]}


def test_catalog(environment: dict[str, str]) -> None:
    built, again, newer = (report(environment, "catalog.yaml"), report(environment, "catalog.yaml"), done(
        environment, "run", "catalog.yaml", "-p", "version=2", "-o", "json")[1])  # fmt: skip
    assert [steps(found)["build"] for found in (built, again, json.loads(newer))] == ["changed", "unchanged", "changed"]
    assert json.loads(newer)["steps"][1]["data"]["valid"] is True


def test_basic(environment: dict[str, str], tmp_path: Path) -> None:
    found = report(environment, "basic.yaml", tmp_path)
    assert (found["exit_code"], steps(found)) == (0, {"make": "changed", "page": "changed", "check": "unchanged"})
    assert (tmp_path / "site" / "index.html").read_text() == "<h1>open</h1>\n"


def test_files(environment: dict[str, str], tmp_path: Path) -> None:
    """On two hosts, which are two workers with different host names."""
    worker = ["celery", "-A", "longshore.workers", "worker", "--loglevel", "WARNING", "-c", "2"]
    socket = f"unix://{environment['LONGSHORE_STATE_DIR']}/redis.sock"
    done(environment, "runs", "ls")  # starts the embedded server
    hosts = [
        subprocess.Popen(
            [*worker, "-n", f"files@{host}"], cwd=FEATURES, env=environment | {"LONGSHORE_REDIS_URL": socket}
        )
        for host in ("web1", "web2")
    ]
    try:
        deadline = time.monotonic() + 60
        while not {"web1", "web2"} <= set(live_hosts(environment)):
            assert time.monotonic() < deadline, "the hosts did not come up"
            time.sleep(0.2)
        found = report(environment, "files.yaml", tmp_path)
        assert steps(found) == {"upload": "changed", "deploy": "changed", "verify": "unchanged"}
        for host in ("web1", "web2"):
            path = tmp_path / host / "app.conf"
            assert path.read_text() == f"# {host}, {os.uname().machine}\nport = 8080\n"
            assert path.stat().st_mode & 0o7777 == 0o640
        assert {row["data"]["status"] for row in found["steps"][2]["items"]} == {"in-sync"}
        second = report(environment, "files.yaml", tmp_path)
        assert steps(second)["deploy"] == "unchanged"
        (tmp_path / "web2" / "app.conf").write_text("by hand")
        third = report(environment, "files.yaml", tmp_path)
        assert steps(third)["deploy"] == "changed", "drift is repaired"
    finally:
        for host in hosts:
            host.terminate()
        for host in hosts:
            host.wait(30)


def test_fleet(environment: dict[str, str], tmp_path: Path) -> None:
    """With three hosts of a role, and the embedded host without a role."""
    socket = f"unix://{environment['LONGSHORE_STATE_DIR']}/redis.sock"
    done(environment, "runs", "ls")  # starts the embedded server
    command = ["longshore", "worker", "-c", "1", "--label", "role=web", "--loglevel", "WARNING"]
    hosts = [
        subprocess.Popen([*command, "--host", host], cwd=FEATURES, env=environment | {"LONGSHORE_REDIS_URL": socket})
        for host in ("web1", "web2", "web3")
    ]
    try:
        deadline = time.monotonic() + 60
        while not {"web1", "web2", "web3"} <= set(live_hosts(environment)):
            assert time.monotonic() < deadline, "the hosts did not come up"
            time.sleep(0.2)
        found = report(environment, "fleet.yaml", tmp_path)
        assert steps(found) == {"page": "changed", "check": "unchanged"}
        assert {path.name for path in tmp_path.glob("*.html")} == {"web1.html", "web2.html", "web3.html"}
    finally:
        for host in hosts:
            host.terminate()
        for host in hosts:
            host.wait(30)


def live_hosts(env: dict[str, str]) -> list[str]:
    from longshore.orchestration.settings import Settings
    from longshore.orchestration.store.hosts import Hosts
    from longshore.orchestration.store.run_store import Store

    store = Store(Settings(redis_url=f"unix://{env['LONGSHORE_STATE_DIR']}/redis.sock"))
    try:
        return [host.name for host in Hosts(store).all().values() if host.alive]
    finally:
        store.client.close()


def test_functions(environment: dict[str, str], tmp_path: Path) -> None:
    assert done(environment, "functions.py", str(tmp_path)) == (0, "succeeded 42 o-1\n")


def test_parallel(environment: dict[str, str]) -> None:
    found = report(environment, "parallel.yaml")
    assert [step["level"] for step in found["steps"]] == [0, 1, 1, 1, 2]
    assert found["state"] == "succeeded"


def test_guards(environment: dict[str, str]) -> None:
    _, out = done(environment, "guards.py")
    assert "production clean changed" in out
    assert "production restart changed" in out
    assert "staging restart skipped only in production" in out


def test_only_if_changed(environment: dict[str, str], tmp_path: Path) -> None:
    assert steps(report(environment, "only-if-changed.yaml", tmp_path)) == {"config": "changed", "restart": "changed"}
    second = report(environment, "only-if-changed.yaml", tmp_path)
    assert steps(second) == {"config": "unchanged", "restart": "skipped"}
    assert second["steps"][1]["reason"] == "no dependencies changed"


def test_hooks(environment: dict[str, str]) -> None:
    _, out = done(environment, "hooks.py")
    assert out.splitlines() == [
        "hooks: 3 steps",
        "level 0: first",
        "  first begins",
        "  first changed",
        "level 1: second",
        "  second begins",
        "  second attempt 1: no",
        "  second failed",
        "  second undone",
        "  first undone",
        "undone: 3 steps, 1 changed, 1 failed, 1 not run; 2 undone",
    ]


def test_error_strategies(environment: dict[str, str]) -> None:
    found = report(environment, "error-strategies.yaml")
    assert (found["state"], found["exit_code"]) == ("partial", 3)
    assert steps(found) == {"optional": "failed", "needs-it": "skipped", "needed": "changed", "end": "changed"}


def test_failure_recovery(environment: dict[str, str]) -> None:
    found = report(environment, "failure-recovery.yaml")
    assert steps(found) == {"migrate": "failed", "report": "changed", "release-lock": "changed"}
    assert found["steps"][1]["data"] == {"text": "the table is locked"}


def test_retry(environment: dict[str, str], tmp_path: Path) -> None:
    (step,) = report(environment, "retry.yaml", tmp_path)["steps"]
    assert (step["status"], step["attempts"]) == ("changed", 3)


def test_fan_out(environment: dict[str, str], tmp_path: Path) -> None:
    found = report(environment, "fan-out.yaml", tmp_path)
    assert (found["exit_code"], steps(found)["write"]) == (0, "changed")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["db1", "web1", "web2", "web3"]
    assert found["steps"][2]["data"] == {"written": 4}


def test_results(environment: dict[str, str]) -> None:
    _, out = done(environment, "results.py")
    # The end of the last line is text of pydantic.
    *lines, last = out.splitlines()
    assert last.startswith("the data of step 'used' does not match Order: number: ")
    assert lines == [
        "number='o-7' amount=42",
        "{'amount': 42, 'text': 'order o-7'}",
        "[('web1', 'unchanged'), ('db1', 'failed')]",
    ]


def test_introspection(environment: dict[str, str]) -> None:
    code, out = done(environment, "introspection.py")
    assert code == 0
    assert "step 'a': the steps form a cycle: a → b → a" in out
    assert "[['pull'], ['stop'], ['migrate'], ['start']]" in out
    assert "migrate undone 1" in out


def test_own_operations(environment: dict[str, str], tmp_path: Path) -> None:
    assert done(environment, "own_operations.py", str(tmp_path)) == (0, "undone undone ['charge', 'refund']\n")


def test_approval(environment: dict[str, str]) -> None:
    assert done(environment, "run", "approval.yaml", "--run-id", "ask-1", "--detach")[0] == 0
    until = time.monotonic() + 60
    while done(environment, "runs", "approve", "ask-1", "ask", "--note", "go", "--actor", "ann")[0] != 0:
        assert time.monotonic() < until
    code, out = done(environment, "runs", "watch", "ask-1", "-o", "json")
    assert (code, json.loads(out)["steps"][2]["data"]) == (0, {"by": "ann", "note": "go"})


def test_sub_plan(environment: dict[str, str], tmp_path: Path) -> None:
    found = report(environment, "sub-plan.yaml", tmp_path)
    assert found["steps"][1]["data"] == {"page": f"{tmp_path}/site/index.html"}
    assert found["steps"][0]["data"]["run_id"] == f"{found['run_id']}.site"


def test_celery_tasks(environment: dict[str, str], redis_server: RedisServer, tmp_path: Path) -> None:
    env = environment | {
        "LONGSHORE_REDIS_URL": redis_server.url,
        "BANK_BROKER": redis_server.url,
        "BANK_LEDGER": str(tmp_path / "ledger"),
    }
    apps = {"bank": FEATURES, "longshore.workers": tmp_path}
    workers = []
    for app, folder in apps.items():
        with (tmp_path / f"{app}.log").open("wb") as log:
            command = [sys.executable, "-m", "celery", "-A", app, "worker", "-c", "1", "-n", f"{app}@%h"]
            own = env | ({"PYTHONPATH": str(FEATURES)} if app != "bank" else {})
            workers.append(subprocess.Popen(command, cwd=folder, env=own, stdout=log, stderr=log))
    try:
        code, out = done(env, "celery_tasks.py")
        assert (code, out) == (0, "undone [('charge', 'changed', 'undone'), ('ship', 'failed', 'undone')]\n")
        assert (tmp_path / "ledger").read_text().split("\n") == [
            "charge 42",
            "ship o-1",
            "fetch back o-1",
            "refund 42",
            "",
        ]
    finally:
        for worker in workers:
            worker.terminate()
        for worker in workers:
            worker.wait(30)


def test_page_of_examples_links_each_example() -> None:
    page = (ROOT / "docs/reference/examples.md").read_text()
    names = sorted(path.name for path in FEATURES.iterdir() if path.name != "__pycache__")
    assert len(names) > 15
    assert [name for name in names if f"[{name}](../../examples/features/{name})" not in page] == []

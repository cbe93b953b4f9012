"""A secret that another step of the run prints: no text of the run contains the value."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from longshore.orchestration import Plan, Report
from tests.conftest import get
from tests.integration import own_operations  # noqa: F401 - the client knows them as well
from tests.integration.conftest import MakeInstallation
from tests.integration.flower import Flower
from tests.integration.leaks import assert_nowhere, everything
from tests.integration.processes import PATIENCE, Installation, lines, wait_for
from tests.servers import RedisServer

#: The secrets of the parent plan and of its child, of eight characters each.
VALUE, CHILDS = "s3cr3t-8", "ch1ld_8x"
PARENTS = "{{ secret('env:LONGSHORE_SECRET_DB') }}"
CHILDS_OWN = "{{ secret('env:LONGSHORE_SECRET_CHILD') }}"


@pytest.fixture(scope="module")
def redis_server() -> Iterator[RedisServer]:
    """A separate server, whose append-only file the tests read."""
    with get(RedisServer) as server:
        yield server


@pytest.fixture(scope="module")
def place(module_installation: MakeInstallation) -> Installation:
    made = module_installation(options={"imports": "tests.integration.own_operations", "lease": "2s"})
    notified = made.folder / "notified"
    made.options |= {"notify_command": f"sh -c 'cat >> {notified}'", "notify_on": "failed,undo_failed"}
    settings = {"LONGSHORE_SECRET_DB": VALUE, "LONGSHORE_SECRET_CHILD": CHILDS, "PYTHONPATH": made.pythonpath}
    made.worker("keeper", "-c", "2", "--task-events", "--loglevel", "DEBUG", **settings).start()
    made.worker(
        "victim", "-c", "1", "-Q", "functions@victim,functions.undo@victim", LONGSHORE_HOST="victim", **settings
    ).start()
    return made


def assert_not_disclosed(place: Installation, server: RedisServer, report: Report) -> None:
    """Check that no key, append-only file, log, event, report, page or notification has one of the values."""
    with Flower(place, PYTHONPATH=place.pythonpath) as flower:
        assert_nowhere(everything(place, server, report, flower), VALUE, CHILDS)


def child(folder: Path) -> Path:
    """Store a plan that writes its own secret and prints the secret of its parent."""
    file = folder / "child.yaml"
    file.write_text(f"""\
name: child
on_error: continue
steps:
  write: {{op: file.deploy.execute, with: {{path: "{folder}/child.env", content: "{CHILDS_OWN}", mode: "0600"}}}}
  command: {{op: command.shell.execute, with: {{command: "cat {folder}/.env"}}, after: write, undo: none}}
  own: {{op: own.leak, with: {{path: "{folder}/.env"}}, after: write}}
  fails: {{op: own.leak, with: {{path: "{folder}/.env", fail: true}}, after: write}}
""")
    return file


def test_later_steps_disclose_no_secret_of_the_run(
    place: Installation, redis_server: RedisServer, tmp_path: Path
) -> None:
    # given steps that print a file with a secret of an earlier step or of the child, in all forms
    plan = Plan("leaks", on_error="continue")
    env, childs = tmp_path / ".env", tmp_path / "child.env"
    plan.step("env", "file.deploy.execute", path=str(env), content=PARENTS, mode="0600")
    command = f"cat {env}; cat {env} >&2"
    plan.step("prints", "command.shell.execute", command=command).undo("none").after("env")
    plan.step("fails", "command.shell.execute", command=f"{command}; exit 3").undo("none").after("env")
    plan.step("own", "own.leak", path=str(env)).after("env")
    plan.step("own-fails", "own.leak", path=str(env), fail=True).after("env")
    plan.run_plan("child", str(child(tmp_path))).after("env")
    plan.step("last", "own.leak", path=str(childs)).after("child").only_if_failed()
    stops = f"cat {env} {childs} >&2; exit 1"
    plan.step("stops", "command.shell.execute", command=stops).undo("none").after("last").on_error("stop")

    # when
    report = place.run(plan).wait(PATIENCE)

    # then steps and compensations have printed the secrets
    assert report.step("prints").data["stdout"] == "***"
    assert report.step("own").data == {"text": "***", "key ***": "value"}
    assert "postgres://app:***@db/shop" in str(report.step("own-fails").error)
    assert "******" in str(report.step("stops").error)
    undo = report.step("own").undo
    assert undo is not None
    assert undo.error == "RuntimeError: cannot undo ***"
    log = (place.folder / "notified").read_text
    wait_for("the notification", lambda: (place.folder / "notified").exists() and f'"{report.run_id}"' in log())
    assert "***" in log()
    logs = place.workers[0].log.read_text()
    assert all(f"{word} ***" in logs for word in ("printed", "printed as an error", "logged", "undone"))
    # and no stored text contains a secret
    env.unlink(missing_ok=True)
    childs.unlink(missing_ok=True)
    assert_not_disclosed(place, redis_server, report)


def test_killed_worker_leaves_no_secret(place: Installation, redis_server: RedisServer, tmp_path: Path) -> None:
    # given a step that has printed the secret and still runs
    plan = Plan("killed")
    env = tmp_path / ".env"
    plan.step("env", "file.deploy.execute", path=str(env), content=PARENTS, mode="0600")
    began = tmp_path / "began"
    plan.step("own", "own.leak-and-hang", path=str(env), began=str(began)).after("env").target("victim")
    plan.step("after", "command.shell.execute", command=f"cat {env}; exit 1").undo("none").after("own")
    run = place.run(plan)
    wait_for("the step to print", lambda: lines(began))

    # when its worker is killed, and another worker of the host claims the step
    place.workers[1].kill()
    (tmp_path / "go").touch()
    place.workers[1].start()
    report = run.wait(PATIENCE)

    # then
    assert report.step("own").attempts == 2
    assert "noted ***" in "".join(text for _, text in run.output("own"))
    env.unlink(missing_ok=True)
    assert_not_disclosed(place, redis_server, report)
    assert VALUE not in subprocess.run(["ps", "axww"], capture_output=True, text=True, check=True).stdout

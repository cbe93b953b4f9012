"""Secrets printed by containers, programs, functions and child runs are masked in records, logs, pages and messages."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from longshore.orchestration import Plan, Report
from tests.conftest import get
from tests.docker.stack import IMAGE, Stack, stack
from tests.integration import own_operations  # noqa: F401 - registers the operations for the client
from tests.integration.conftest import MakeInstallation, module_installation
from tests.integration.flower import Flower
from tests.integration.leaks import assert_nowhere, everything
from tests.integration.listener import Listener, listener
from tests.integration.processes import PATIENCE, Installation, Worker, wait_for
from tests.servers import RedisServer, engine_url

pytestmark = [pytest.mark.docker, pytest.mark.integration]
assert stack
assert module_installation
assert listener

#: Eight characters, most of which JSON, URLs, HTML or Base64 encode.
VALUE = 's3"/+é%8'
REFERENCE = "{{ secret('env:LONGSHORE_SECRET_DB') }}"
LEAK = "echo cannot connect to postgres://app:$$PW@db >&2; exit 1"


@pytest.fixture(scope="module")
def redis_server() -> Iterator[RedisServer]:
    """A Redis server of this module, whose append-only file the tests read."""
    with get(RedisServer) as server:
        yield server


@pytest.fixture(scope="module")
def place(module_installation: MakeInstallation, listener: Listener) -> Installation:
    options = {"host": "web1", "lease": "2s", "imports": "tests.integration.own_operations"}
    made = module_installation(docker_host=engine_url(), options=options)
    # The state folder has private files with the environments of the stacks, and is not searched.
    made.options |= {"state_dir": str(made.folder.with_name(f"{made.folder.name}-state"))}
    made.options |= {
        "notify_command": f"sh -c 'cat >> {made.folder}/notices'",
        "notify_webhook": f"{listener.url}/hook",
    }
    worker(made, "one").start()
    return made


@pytest.fixture(scope="module")
def flower(place: Installation) -> Iterator[Flower]:
    with Flower(place, PYTHONPATH=place.pythonpath) as made:
        wait_for("the workers", lambda: place.workers[0].node in made.get("/api/workers?refresh=1")[1])
        yield made


def worker(place: Installation, name: str) -> Worker:
    settings = {"LONGSHORE_SECRET_DB": VALUE, "PYTHONPATH": place.pythonpath}
    return place.worker(name, "-c", "4", "--task-events", "--loglevel", "DEBUG", **settings)


def release(stack: Stack, **services: Any) -> Plan:
    """A plan that writes the secret into `.env` for the services, and into `pw` for the steps."""
    printing = {"environment": {"PW": "${PW}"}, "command": ["sh", "-c", "echo begun with $$PW; exec sleep 600"]}
    stack.write(web=printing, **{name: printing | service for name, service in services.items()})
    plan = Plan("release", on_error="continue")
    for name, content in {".env": f"TAG=1\nPW='{REFERENCE}'\n", "pw": REFERENCE}.items():
        file = {"path": f"{stack.directory}/{name}", "content": content, "mode": "0600"}
        plan.step(name.strip("."), "file.deploy.execute", **file)
    return plan


def up(stack: Stack, plan: Plan, service: str, *, deadline: int = 20) -> Any:
    params = {"project_dir": str(stack.directory), "project": stack.name, "services": [service], "grace": 0}
    params |= {"min_healthy_time": 0.5, "healthy_deadline": deadline}
    return plan.step(f"up-{service}", "compose.up.execute", **params).after("env", "pw")


def child(stack: Stack) -> Path:
    """The file of a plan that does not contain the secret."""
    file = stack.directory / "child.yaml"
    web, password = stack.container("web"), stack.directory / "pw"
    file.write_text(f"""\
name: child
on_error: continue
steps:
  exec: {{op: docker.exec.execute, with: {{container: {web}, argv: [sh, -c, "echo $PW; exit 3"]}}, undo: none}}
  shell: {{op: command.shell.execute, with: {{command: "cat {password} >&2; exit 4"}}, undo: none}}
  own: {{op: own.leak, with: {{path: "{password}", fail: true}}}}
""")
    return file


def assert_secret_is_masked_everywhere(
    place: Installation, server: RedisServer, listener: Listener, flower: Flower, report: Report
) -> None:
    notices = place.folder / "notices"
    wait_for("the command", lambda: notices.exists() and f'"{report.run_id}"' in notices.read_text())
    wait_for("the webhook", lambda: listener.notices(report.run_id))
    found = everything(place, server, report, flower)
    found["notifications"] = "\n".join(body.decode() for _, _, body in listener.heard)
    assert_nowhere(found, VALUE)


def test_printed_secret_is_masked_everywhere(
    place: Installation, redis_server: RedisServer, listener: Listener, flower: Flower, stack: Stack
) -> None:
    check = {"test": ["CMD-SHELL", LEAK], "interval": "300ms", "retries": 1}
    plan = release(stack, sick={"healthcheck": check}, loops={"command": ["sh", "-c", LEAK], "restart": "always"})
    web, password = stack.container("web"), str(stack.directory / "pw")
    up(stack, plan, "web")
    prints = "echo $PW; echo $PW >&2; exit 3"
    plan.step("exec", "docker.exec.execute", container=web, argv=["sh", "-c", prints]).after("up-web").undo("none")
    plan.step("logs", "docker.logs.get", container=web).after("up-web")
    plan.step("inspect", "docker.inspect.get", container=web).after("up-web")
    run = {"image": IMAGE, "command": ["sh", "-c", prints], "env": {"PW": REFERENCE}}
    plan.step("run", "docker.run.execute", **run).after("up-web")
    reads = {"image": IMAGE, "command": ["sh", "-c", "cat /pw; exit 3"], "files": {"/pw": REFERENCE}}
    plan.step("reads", "docker.run.execute", **reads).after("pw")
    service = {"project_dir": str(stack.directory), "project": stack.name, "service": "web"}
    plan.step("service-run", "compose.run.execute", **service, command=["sh", "-c", prints]).after("up-web")
    plan.step("shell", "command.shell.execute", command=f"cat {password}; cat {password} >&2").undo("none").after("pw")
    plan.step("exec-here", "command.exec.execute", argv=["cat", password, "/nothing"]).undo("none").after("pw")
    plan.step("own", "own.leak", path=password).after("pw")
    plan.step("own-fails", "own.leak", path=password, fail=True).after("pw")
    plan.step("forms", "own.leak-forms", path=password).after("pw")
    plan.run_plan("child", str(child(stack))).after("up-web")
    up(stack, plan, "sick").after("up-web")
    up(stack, plan, "loops", deadline=4).after("up-web")
    stops = plan.step("stops", "command.shell.execute", command=f"cat {password} >&2; exit 1").undo("none")
    stops.after("up-loops", "up-sick", "child", "service-run").on_error("stop").only_if_failed()

    report = place.run(plan).wait(PATIENCE)

    # The output of the steps is stored, with the secret masked.
    assert report.step("up-web").status == "changed", report.step("up-web").error
    assert "begun with ***" in str(report.step("logs").data)
    for name in ("exec", "run", "reads", "service-run", "up-sick", "up-loops", "own-fails", "stops", "exec-here"):
        step = report.step(name)
        assert (str(step.status), "***" in f"{step.error} {step.data}") == ("failed", True), step
    assert str(report.step("forms").data).count("***") == 9
    assert_secret_is_masked_everywhere(place, redis_server, listener, flower, report)
    # The search finds an unmasked secret: the private configuration of the stack.
    private = [path.read_text() for path in place.settings.state_dir.rglob("*.yml")]
    with pytest.raises(AssertionError, match="private"):
        assert_nowhere({"private": "".join(private)}, VALUE)


def test_printed_secret_is_masked_after_a_kill_of_the_worker(
    place: Installation, redis_server: RedisServer, listener: Listener, flower: Flower, stack: Stack
) -> None:
    # Given running steps that have printed the secret: a container, a program, a function and a release
    check = {"test": ["CMD-SHELL", LEAK], "interval": "300ms", "retries": 20}
    plan = release(stack, sick={"healthcheck": check})
    password, go = stack.directory / "pw", stack.directory / "go"
    prints = "echo $PW; echo $PW >&2; while ! test -e /folder/go; do sleep 0.2; done; echo $PW; exit 1"
    folder = {"type": "bind", "source": str(stack.directory), "target": "/folder"}
    run = {"image": IMAGE, "command": ["sh", "-c", prints], "env": {"PW": REFERENCE}, "volumes": [folder]}
    plan.step("run", "docker.run.execute", **run).after("pw")
    command = f"cat {password}; echo; while ! test -e {go}; do sleep 0.2; done; cat {password}; exit 1"
    plan.step("shell", "command.shell.execute", command=command).undo("none").after("pw")
    own = {"path": str(password), "began": str(stack.directory / "began")}
    plan.step("own", "own.leak-and-hang", **own).after("pw")
    up(stack, plan, "sick")
    stops = plan.step("stops", "own.leak", path=str(password), fail=True).after("own", "run", "shell", "up-sick")
    stops.on_error("stop").only_if_failed()
    run = place.run(plan)

    def printed() -> bool:
        labels = {"label": f"longshore.run={run.run_id}"}
        rows = stack.engine.containers(filters=labels)
        sick = [one for one in stack.containers() if "sick" in one["Names"][0] and one["State"] == "running"]
        checks = stack.engine.inspect_container(sick[0]["Id"])["State"]["Health"]["Log"] if sick else []
        output = "".join(text for _, text in run.output("shell"))
        in_container = rows and stack.engine.logs(rows[0]["Id"])
        return bool(in_container and checks and "***" in output and Path(own["began"]).exists())

    wait_for("the output of all steps", printed)
    # When the worker is killed, and another worker continues
    place.workers[0].kill()
    go.touch()
    worker(place, "two").start()
    report = run.wait(PATIENCE)

    # Then
    assert report.step("own").attempts == 2, report
    for name in ("run", "up-sick", "stops"):
        step = report.step(name)
        assert (str(step.status), "***" in f"{step.error} {step.data}") == ("failed", True), step
    assert_secret_is_masked_everywhere(place, redis_server, listener, flower, report)

"""A secret that a container prints: no key, event, log or report of the run has it."""

from __future__ import annotations

from typing import Any

import pytest

from longshore.orchestration import Plan, Report
from tests.docker.stack import IMAGE, Stack, stack
from tests.integration.conftest import MakeInstallation, module_installation
from tests.integration.processes import PATIENCE, Installation, redis_of
from tests.servers import engine_url

pytestmark = [pytest.mark.docker, pytest.mark.integration]
assert stack
assert module_installation

#: Eight characters.
VALUE = "s3cr3t-8"
LEAK = "echo cannot connect to postgres://app:$$PW@db >&2; exit 1"


@pytest.fixture(scope="module")
def place(module_installation: MakeInstallation) -> Installation:
    made = module_installation(docker_host=engine_url(), options={"host": "web1"})
    made.worker("one", "-c", "2", "--loglevel", "DEBUG", LONGSHORE_SECRET_DB=VALUE).start()
    return made


def release(stack: Stack, **web: Any) -> Plan:
    """A plan that writes `.env` from the secret, and brings up a stack whose services print it."""
    stack.write(web={"environment": {"PW": "${PW}"}, "command": ["sh", "-c", "echo begun with $$PW; sleep 600"]} | web)
    plan = Plan("release", on_error="continue")
    content = "TAG=1\nPW={{ secret('env:LONGSHORE_SECRET_DB') }}\n"
    plan.step("env", "file.deploy.execute", path=f"{stack.directory}/.env", content=content, mode="0600")
    said = {"project_dir": str(stack.directory), "project": stack.name, "min_healthy_time": 0.5, "healthy_deadline": 20}
    plan.step("up", "compose.up.execute", **said).after("env")
    return plan


def told_nowhere(place: Installation, report: Report) -> None:
    found = {"redis": repr(redis_of(place)), "report": report.model_dump_json()}
    found["log"] = "".join(worker.log.read_text() for worker in place.workers)
    for arguments in (["runs", "show"], ["runs", "events"]):
        found[" ".join(arguments)] = place.longshore(*arguments, report.run_id).out
    for step in report.steps:
        found[f"output of {step.name}"] = repr(list(place.client().get(report.run_id).output(step.name)))
    for where, text in found.items():
        assert VALUE not in text, where


def test_container_command_and_log_tell_no_secret(place: Installation, stack: Stack) -> None:
    plan = release(stack)
    web = stack.container("web")
    plan.step("exec", "docker.exec.execute", container=web, argv=["sh", "-c", "echo $PW; exit 3"]).after("up")
    plan.step("logs", "docker.logs.get", container=web).after("up")
    plan.step("inspect", "docker.inspect.get", container=web).after("up")
    run = {"image": IMAGE, "command": ["sh", "-c", "echo $PW; echo $PW >&2; exit 1"]}
    plan.step("run", "docker.run.execute", env={"PW": "{{ secret('env:LONGSHORE_SECRET_DB') }}"}, **run).after("up")

    report = place.run(plan).wait(PATIENCE)

    assert report.step("up").status == "changed", report.step("up").error
    assert "***" in str(report.step("exec").error) + str(report.step("exec").data)
    assert "begun with ***" in str(report.step("logs").data)
    assert report.step("run").status == "failed"
    told_nowhere(place, report)


def test_failed_health_check_tells_no_secret(place: Installation, stack: Stack) -> None:
    check = {"test": ["CMD-SHELL", LEAK], "interval": "300ms", "retries": 1}

    report = place.run(release(stack, healthcheck=check)).wait(PATIENCE)

    assert report.step("up").status == "failed"
    told_nowhere(place, report)


def test_crash_loop_tells_no_secret(place: Installation, stack: Stack) -> None:
    report = place.run(release(stack, command=["sh", "-c", LEAK], restart="always")).wait(PATIENCE)

    assert report.step("up").status == "failed"
    told_nowhere(place, report)

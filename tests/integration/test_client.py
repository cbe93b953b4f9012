"""The library in the process of an application, and two installations on one Redis."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest
from celery import Celery

from longshore.orchestration import Client, ConfigError, Plan, PlanError, UnknownName, WaitTimeout
from tests.integration.conftest import MakeInstallation
from tests.integration.processes import PATIENCE, Installation, lines

APPLICATION = """
import logging, sys

class Heard(logging.Handler):
    def emit(self, record):
        if record.name.split(".")[0] == "longshore":
            print("heard:", record.levelname, record.getMessage(), file=sys.stderr)

logging.basicConfig(level=logging.DEBUG, handlers=[Heard()])

from longshore.orchestration import Client, Plan, RunFailed

client = Client()
plan = Plan("silent")
first = plan.step("first", "noop.execute", data={"x": 1})
plan.step("second", "noop.execute", sleep=0.3).after(first)
client.dry_run(plan)
run = client.start(plan, run_id="silent")
events = [event.name for event in run.watch()]
report = run.wait(timeout=30, check=True)
again = client.start(plan, run_id="silent")
assert again.attached
failing = Plan("silent-failure")
failing.step("only", "noop.execute", fail=True)
try:
    client.start(failing).wait(timeout=30, check=True)
except RunFailed as failed:
    assert failed.exit_code == 1
else:
    raise SystemExit("it did not fail")
long = Plan("silent-cancel")
long.step("only", "noop.execute", sleep=30)
run = client.start(long)
run.answer(run.cancel())
run.wait(timeout=30)
assert events[0] == "run_created" and events[-1] == "run_ended", events
"""


def test_library_prints_nothing_and_logs_nothing_below_warning(workers: Installation) -> None:
    # when
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", APPLICATION],
        env=workers.environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )

    # then
    assert done.returncode == 0, done.stderr
    assert (done.stdout, done.stderr) == ("", "")


def test_two_name_spaces_on_one_redis_are_separate(
    workers: Installation, client: Client, install: MakeInstallation, tmp_path: Path
) -> None:
    # given
    other = install()
    other.redis_url = workers.redis_url
    other.worker("other", "--concurrency", "1").start()

    def plan(name: str) -> Plan:
        made = Plan("same")
        made.step("only", "command.shell.execute", command=f"echo $LONGSHORE_RUN_ID by {name} >> {tmp_path}/log")
        return made

    # when both use the same run id
    here = client.start(plan("here"), run_id="same-id")
    there = other.run(plan("there"), "same-id")
    reports = [here.wait(PATIENCE), there.wait(PATIENCE)]

    # then each has its own run, on its own worker
    assert not here.attached
    assert not there.attached
    assert [report.exit_code for report in reports] == [0, 0]
    assert sorted(lines(tmp_path / "log")) == ["same-id by here", "same-id by there"]
    assert [run.id for run in other.client().runs()] == ["same-id"]
    node = next(event for event in there.events() if event.name == "step_started").fields["owner"]
    assert f"other@{other.namespace}/" in node
    with pytest.raises(UnknownName):
        other.client().get("silent")
    # and every key of one begins with its name space
    mine = [key for key in other.redis.scan_iter() if b"{same-id}" in key]
    assert {key.partition(b":")[0] for key in mine} == {b"longshore", other.namespace.encode()}


def test_dry_run_without_a_worker_names_the_queue(install: MakeInstallation) -> None:
    # given
    nobody = install()
    plan = Plan("unheard")
    plan.step("only", "noop.execute")
    client = nobody.client()

    # when
    def impatient() -> None:
        import longshore.orchestration.client.dry_run as module

        before, module._PROBE_SECONDS = module._PROBE_SECONDS, 1.0
        try:
            client.dry_run(plan)
        finally:
            module._PROBE_SECONDS = before

    # then
    with pytest.raises(WaitTimeout, match=r"no worker answered for queue noop.*longshore worker"):
        impatient()


def test_wait_times_out_before_the_run_ends(client: Client) -> None:
    # given
    plan = Plan("patience")
    plan.step("only", "noop.execute", sleep=1.5)
    run = client.start(plan)

    # when
    with pytest.raises(WaitTimeout, match=rf"runs watch {run.id}"):
        run.wait(0.3)

    # then
    assert run.wait(PATIENCE).exit_code == 0


def test_wait_returns_when_the_run_ends(client: Client) -> None:
    # given
    plan = Plan("prompt")
    plan.step("only", "noop.execute", sleep=0.5)

    # when
    slowest = 0.0
    for _ in range(3):
        run = client.start(plan)
        run.wait(PATIENCE)
        ended = next(event for event in run.events() if event.name == "run_ended")
        slowest = max(slowest, client.store.now() - ended.at)

    # then
    assert slowest < 1000


def test_concurrent_watchers_receive_events_in_order(client: Client) -> None:
    # given
    plan = Plan("watched")
    first = plan.step("first", "noop.execute", sleep=0.3)
    plan.step("second", "noop.execute").after(first)
    run = client.start(plan)
    seen: list[list[str]] = [[], []]

    def watch(heard: list[str]) -> None:
        heard += [event.id for event in client.get(run.id).watch()]

    # when
    watchers = [threading.Thread(target=watch, args=(heard,)) for heard in seen]
    for watcher in watchers:
        watcher.start()
    for watcher in watchers:
        watcher.join(PATIENCE)

    # then
    everything = [event.id for event in run.events()]
    assert seen == [everything, everything]
    assert [event.name for event in run.events()][-1] == "run_ended"


def test_client_is_thread_safe(workers: Installation) -> None:
    """Several threads of a web server can share a client."""
    client, ended = Client(workers.settings), []

    def start(number: int) -> None:
        plan = Plan("p")
        plan.step("a", "noop.execute")
        ended.append(client.start(plan, run_id=f"thread-{number}").wait(PATIENCE).exit_code)

    threads = [threading.Thread(target=start, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    client.close()
    assert ended == [0] * len(threads)


def test_client_refuses_a_celery_app_with_another_broker(workers: Installation) -> None:
    # given
    same = Celery("application", broker=workers.settings.broker_url(), set_as_current=False)
    other = Celery("application", broker="redis://elsewhere:6379/0", set_as_current=False)

    # then
    assert Client(workers.settings, app=same).runs() is not None
    with pytest.raises(ConfigError):
        Client(workers.settings, app=other)


def test_refused_start_leaves_no_key_in_redis(workers: Installation, client: Client) -> None:
    # given
    plan = Plan("bad")
    plan.step("only", "noop.execute", sleep="soon")
    before = set(workers.redis.keys())

    # when
    with pytest.raises(PlanError, match="only"):
        client.start(plan)

    # then
    assert set(workers.redis.keys()) == before


def test_wait_names_the_queue_that_no_worker_consumes(
    install: MakeInstallation, caplog: pytest.LogCaptureFixture
) -> None:
    alone = install()
    plan = Plan("alone")
    plan.step("fetch", "noop.execute").target("_any")
    run = alone.run(plan)

    with pytest.raises(WaitTimeout, match="no worker consumes queue control"):
        run.wait(timeout=3)
    assert caplog.messages == [f"run {run.id} waits: no worker consumes queue control"]

    alone.worker("control", "-Q", "control").start()
    with pytest.raises(WaitTimeout, match=r"\(no worker consumes queue noop\)"):
        run.wait(timeout=5)
    assert caplog.messages[1:] == [f"run {run.id} waits: no worker consumes queue noop"]

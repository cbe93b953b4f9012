"""Restarts of services: selection, order, reverts, moved tags of registries, and the number of engine calls."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml
from docker.errors import NotFound

from longshore.orchestration.stacks.orchestrate import Stacks
from longshore.orchestration.stacks.plan import RolloutOptions
from longshore.orchestration.stacks.rules import stack_rules
from longshore.tasks.operations.compose.cli import _program
from tests.docker.engine_proxy import EngineProxy
from tests.docker.stale_stacks import PREFIX, QUICK, MakeProject, place, project, rules, selected, two, up
from tests.docker.two_stacks import Project, changed
from tests.integration.conftest import MakeInstallation, install, module_installation, short_folder
from tests.integration.processes import Installation, fork_server, stored_text, wait_for
from tests.servers import IMAGE, PASSWORD, USER, Registry, engine_url, remove_project

if TYPE_CHECKING:
    import docker

pytestmark = [pytest.mark.docker, pytest.mark.integration, pytest.mark.stacks]
assert module_installation
assert install
assert short_folder
assert place
assert project
assert rules
assert two

ROOT = Path(__file__).resolve().parents[2]


# --- restart ----------------------------------------------------------------------------------------


def test_named_services_are_restarted_without_drift(place: Installation, two: tuple[Project, Project]) -> None:
    shop, blog = two
    before = [shop.state(), blog.state()]

    piped = place.feed(f"\n  {shop.name}/db \n{blog.name}/jobs\n\n", "restart", "-", *QUICK)

    assert piped.code == 0, piped.err
    after = [shop.state(), blog.state()]
    assert [changed(*pair) for pair in zip(before, after, strict=True)] == [{"db-1"}, {"jobs-1"}]
    assert after[0]["db-1"][0] == before[0]["db-1"][0], "restarted, and not recreated"
    whole = place.longshore("restart", blog.name, *QUICK)
    assert whole.code == 0
    assert changed(after[1], blog.state()) == {"db-1", "web-1", "jobs-1"}
    # and unknown or missing names change nothing
    now = [shop.state(), blog.state()]
    for words in (("restart", "nobody"), ("restart", f"{shop.name}/db", f"{shop.name}/nobody"), ("restart", "db")):
        assert place.longshore(*words).code == 2, words
    empty = place.feed("\n \n", "restart", "-")
    assert (empty.code, "no services specified" in empty.err) == (2, True)
    assert [shop.state(), blog.state()] == now
    nothing = place.longshore("restart")
    assert (nothing.code, nothing.out.splitlines()[-1]) == (0, "no services need a restart")


def test_stacks_are_updated_in_order_after_a_canary(place: Installation, project: MakeProject) -> None:
    shop, infra, blog = (project(name) for name in ("a-shop", "infra", "b-blog"))
    shop.up(db={"labels": {"longshore.after": infra.name}})
    up(infra, blog)
    for one in (shop, infra, blog):
        one.move_image("db")
    dry = place.longshore("orchestrate", "--dry-run", "-o", "json").json
    levels = {step["step"]: step["level"] for step in dry["steps"]}
    assert levels[infra.name] < levels[shop.name]
    # given a first stack that fails
    old = infra.state()["db-1"][1]
    blog.move_image("db", command=["false"])
    done = place.longshore("orchestrate", "--canary", "1", *QUICK, "-o", "json")
    assert done.code == 3
    assert set(done.json["stacks"]["failed"]) == {shop.name, infra.name, blog.name}
    assert {one.state()["db-1"][1] for one in (shop, infra, blog)} == {old}, "no stack follows the failed canary"


def test_restart_inspects_stacks_that_changed_after_the_selection(place: Installation, project: MakeProject) -> None:
    shop = project("shop")
    shop.up()
    shop.move_image("web")
    shop.move_image("db")
    deployed = Stacks(place.client())
    plan = deployed.plan(deployed.select(), RolloutOptions(min_healthy_time=0.5))
    shop.compose("up", "--detach", "db")  # a change outside of Longshore
    before = shop.state()

    report = place.client().start(plan).wait(60)

    step = report.step(shop.name)
    assert (report.exit_code, step.data["moved"], step.data["left"]) == (0, True, ["db"])
    assert changed(before, shop.state()) == {"web-1"}


def test_restart_leaves_stopped_services_stopped(place: Installation, project: MakeProject) -> None:
    shop = project("shop")
    shop.up(seed={"command": ["true"]}, web={"deploy": {"replicas": 2}})
    shop.compose("stop", "--timeout", "1", "jobs")
    shop.engine.stop(shop.container("web", 2), timeout=1)
    before = shop.state()

    done = place.longshore("restart", shop.name, *QUICK)

    assert done.code == 0, done.err
    assert changed(before, shop.state()) == {"db-1", "web-1"}
    # and with a new image, the stopped container is recreated and not started
    now = shop.move_image("web")
    assert place.longshore("orchestrate", *QUICK).code == 0
    assert [shop.state()[name][1:4:2] for name in ("web-1", "web-2")] == [(now, "running"), (now, "exited")]
    # and a restart by name starts the stopped service
    assert place.longshore("restart", f"{shop.name}/jobs", *QUICK).code == 0
    assert shop.state()["jobs-1"][3] == "running"


def test_failed_one_off_service_runs_again(place: Installation, project: MakeProject) -> None:
    shop = project("shop")
    (shop.folder / "seed").write_text("exit 1")
    seed = {"command": ["sh", "/seed"], "volumes": ["./seed:/seed"], "labels": {"longshore.files": "seed=none"}}
    shop.up(seed=seed)
    wait_for("the failure of the service", lambda: shop.state()["seed-1"][3] == "exited")
    assert list(selected(place)) == [f"{shop.name}/seed"]
    (shop.folder / "seed").write_text("exit 0")

    assert place.longshore("orchestrate", *QUICK).code == 0
    assert selected(place) == {}


def test_services_in_the_network_of_another_are_recreated_with_it(place: Installation, project: MakeProject) -> None:
    shop = project("shop")
    shop.up(jobs={"network_mode": "service:db"})
    now = shop.move_image("db")
    before = shop.state()

    assert place.longshore("orchestrate", *QUICK).code == 0

    after = shop.state()
    assert changed(before, after) == {"db-1", "jobs-1"}
    assert after["db-1"][1] == now
    mode = shop.engine.inspect_container(shop.container("jobs"))["HostConfig"]["NetworkMode"]
    assert mode == f"container:{after['db-1'][0]}"


def test_services_that_differ_only_in_dependencies_are_distinguished(place: Installation, project: MakeProject) -> None:
    """Compose's hash of a service does not depend on its dependencies."""
    shop = project("shop")
    same = {"image": shop.ref("web"), "depends_on": ["db"]}
    shop.up(web={"volumes": []} | same, one=same, two={"image": shop.ref("web")}, jobs={"depends_on": ["db"]})
    shop.engine.stop(shop.container("db"), timeout=1)
    shop.move_image("web")

    for _ in range(2):
        assert place.longshore("orchestrate", *QUICK).code == 0
        assert selected(place) == {}
    assert place.longshore("orchestrate").out.splitlines()[-1] == "cache valid, nothing to do"


def test_undo_of_an_orchestration_restores_the_image(place: Installation, project: MakeProject) -> None:
    shop = project("shop")
    shop.up()
    old = shop.state()["web-1"][1]
    shop.move_image("web")
    done = Stacks(place.client()).orchestrate(min_healthy_time=0.5)
    assert done.report is not None
    run = place.client().get(done.report.run_id)
    run.answer(run.undo())
    report = run.wait(60)
    assert (report.state, report.exit_code) == ("undone", 1)
    assert shop.state()["web-1"][1] == old
    assert list(selected(place)) == [f"{shop.name}/web"]


def test_invalid_files_of_a_stack_fail_only_this_stack(place: Installation, two: tuple[Project, Project]) -> None:
    shop, blog = two
    (shop.folder / "compose.yml").write_text("services: [")
    now = blog.move_image("db")

    done = place.longshore("orchestrate", *QUICK, "-o", "json")

    assert done.code == 3
    assert done.json["stacks"]["up_to_date"] == [blog.name]
    assert f"{shop.name}: its files are invalid" in done.json["message"]
    assert blog.state()["db-1"][1] == now, "the other stack is updated"
    assert place.longshore("select").code == 3
    assert place.longshore("restart", f"{shop.name}/db").code == 2


# --- registries -------------------------------------------------------------------------------------


def test_moved_tag_of_a_registry_is_found_without_a_pull(
    place: Installation, project: MakeProject, closed_registry: Registry, new_image: Callable[[str], str], rules: Path
) -> None:
    shop = project("shop")
    ref = f"{closed_registry.host}/{shop.name}:1"
    engine, login = shop.engine, {"username": USER, "password": PASSWORD}
    first = new_image(ref)
    engine.push(ref, auth_config=login)
    shop.up(db={"image": ref})
    assert selected(place, registry=True) == {}, "a refused login is not an error"
    assert f"note: image {ref}: its registry could not be queried: " in place.longshore("select").out
    second = new_image(ref)
    engine.push(ref, auth_config=login)
    engine.tag(first, ref.rpartition(":")[0], "1")
    assert selected(place) == {}, "without --registry, no registry is queried"
    with contextlib.suppress(Exception):
        engine.remove_image(second, force=True)
    login_of_rules = {"username": USER, "password": "{{ secret('env:LONGSHORE_SECRET_REGISTRY') }}"}
    rules.write_text(yaml.safe_dump({"only": [f"{PREFIX}-*"], "registries": {closed_registry.host: login_of_rules}}))

    (reason,) = selected(place, registry=True)[f"{shop.name}/db"]

    assert reason.startswith(f"image {ref} → ")
    assert reason.endswith("at its registry")
    assert engine.inspect_image(ref)["Id"] == first
    done = place.longshore("orchestrate", "--registry", *QUICK)
    assert done.code == 0, done.err
    assert shop.state()["db-1"][1] == engine.inspect_image(ref)["Id"] != first
    # and a stored answer that calls the image up to date is reported, until a rebuild replaces the answer
    reused = "note: registries were not asked again about 1 image on host"
    assert reused not in done.out
    assert [reused in place.longshore("select", "--registry").out for _ in range(2)] == [False, True]
    assert reused in place.longshore("orchestrate", "--registry", *QUICK).out
    # and the service is found by the name of its image
    for name in (ref, ref.rpartition(":")[0], shop.state()["db-1"][1][7:19]):
        assert list(selected(place, image=name)) == [f"{shop.name}/db"]
    assert selected(place, image=f"{shop.name}:nobody") == {}
    check = place.longshore("check", "--image", ref, "--json")
    assert [one["service"] for one in check.json["deployments"]] == ["db"]
    # and the stored data do not contain the password
    rules.write_text(yaml.safe_dump({"only": [f"{PREFIX}-*"]}))
    assert PASSWORD not in stored_text(place)


# --- the page ---------------------------------------------------------------------------------------


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "docs" / "how-to" / "stacks.md").read_text(), re.DOTALL)


def test_commands_and_code_of_the_stacks_page_run(
    place: Installation, engine: docker.APIClient, rules: Path, tmp_path: Path
) -> None:
    shutil.copytree(ROOT / "examples" / "orchestrate", tmp_path / "examples" / "orchestrate")
    for name in ("infra", "shop"):
        (tmp_path / "examples" / "orchestrate" / name / ".env").write_text(f"IMAGE={IMAGE}\n")
    (tmp_path / "bin").mkdir()
    fork_server().write_program(tmp_path / "bin" / "longshore")
    path = f"{tmp_path}/bin{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = place.environment | {"DOCKER_HOST": engine_url(), "PATH": path}
    (shell,), python = blocks("sh"), "\n".join(["from longshore.orchestration import Client", *blocks("python")])
    was = rules.read_text()
    rules.write_text(yaml.safe_dump({"only": ["orchestrate-*"]}))
    try:
        printed = []
        for command in (["sh", "-e", "-c", shell], [sys.executable, "-c", python]):
            done = subprocess.run(
                command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False
            )
            assert done.returncode == 0, done.stdout + done.stderr
            printed.append(done.stdout)
        assert "orchestrate-shop/web\n" in printed[0]
        assert printed[0].count("cache valid, nothing to do") == 1
        assert printed[1] == "cache valid, nothing to do 0\n"
    finally:
        rules.write_text(was)
        for name in ("orchestrate-shop", "orchestrate-infra"):
            remove_project(engine, name)


def test_file_on_the_page_is_valid(tmp_path: Path) -> None:
    (tmp_path / "stacks.yaml").write_text(blocks("yaml")[0])
    read = stack_rules(str(tmp_path / "stacks.yaml"))
    assert (list(read.stacks), read.only) == (["shop"], ["*", "!test-*"])


# --- the number of calls ----------------------------------------------------------------------------


class Counter(EngineProxy):
    """A proxy before the engine and Compose that forwards and records all calls."""

    def __init__(self, folder: Path) -> None:
        self._calls: list[str] = []
        self._log = folder / "compose.log"
        self.config = folder / "config"
        plugin = self.config / "cli-plugins" / "docker-compose"
        plugin.parent.mkdir(parents=True)
        plugin.write_text(f'#!/bin/sh\necho "$@" >>{self._log}\nexec {" ".join(_program())} "$@"\n')
        plugin.chmod(0o755)
        super().__init__(folder)

    def requests(self) -> tuple[list[str], int]:
        """The calls of the engine, and the number of calls of Compose, since the last call of this method."""
        calls, self._calls = self._calls, []
        # Without the calls of the job agent, which periodically searches for job containers.
        watch = [call for call in calls if "longshore.kind" in call]
        for call in [*watch, *(["GET /version"] if watch and "GET /version" in calls else [])]:
            calls.remove(call)
        lines = self._log.read_text().splitlines() if self._log.exists() else []
        self._log.write_text("")
        return calls, len(lines)

    def answer(self, request: bytes) -> bytes:
        self._calls += re.findall(r"^[A-Z]+ /\S+(?= HTTP/1\.1\r)", request.decode(errors="replace"), re.M)
        return b""


@pytest.fixture
def counter(short_folder: Path) -> Iterator[Counter]:
    made = Counter(short_folder)
    yield made
    made.close()


def test_checks_of_many_containers_need_at_most_five_engine_calls(
    install: MakeInstallation, engine: docker.APIClient, counter: Counter, tmp_path: Path
) -> None:
    prefix = f"los-many-{uuid.uuid4().hex[:6]}"
    rules = tmp_path / "stacks.yaml"
    rules.write_text(yaml.safe_dump({"only": [f"{prefix}-*"]}))
    services = {f"s{number}": {"image": IMAGE, "command": ["sleep", "9999"]} for number in range(5)}
    folders = [tmp_path / f"{prefix}-{number}" for number in range(8)]

    def make(folder: Path) -> None:
        folder.mkdir()
        (folder / "site.conf").write_text("one")
        (folder / "compose.yml").write_text(json.dumps({"services": services}))
        for number in range(5):
            values = {"project": folder.name, "service": f"s{number}", "container-number": "1", "config-hash": "x"}
            values |= {"project.working_dir": str(folder), "project.config_files": str(folder / "compose.yml")}
            labels = {f"com.docker.compose.{key}": value for key, value in values.items()}
            binds = engine.create_host_config(binds=[f"{folder}/site.conf:/site.conf"])
            engine.create_container(IMAGE, name=f"{folder.name}-s{number}-1", labels=labels, host_config=binds)

    place = install(docker_host=counter.url, options={"host": "many", "stacks": str(rules)})
    place.worker("many", "-c", "3", DOCKER_CONFIG=str(counter.config)).start()
    try:
        for folder in folders:
            make(folder)
        counter.requests()
        assert place.longshore("rebuild", "--force", timeout=120.0).code == 0
        assert counter.requests()[1] == 2 * len(folders)
        # repeated, because each pool process may execute its first check
        for command in [("check",), ("select", "-o", "names")] * 2:
            done = place.longshore(*command)
            assert done.code == 0, done.err
            calls, compose = counter.requests()
            assert len(calls) <= 5, calls
            assert compose == 0
        assert len(done.out.splitlines()) == 5 * len(folders)
        for folder in folders[:3]:
            with (folder / "compose.yml").open("a") as file:
                file.write("\n")
        assert place.longshore("check").code == 1
        calls, compose = counter.requests()
        assert (len(calls) <= 5, compose) == (True, 0), calls
        assert place.longshore("select").code == 0
        calls, compose = counter.requests()
        assert (len(calls) <= 5, compose) == (True, 6), calls
    finally:
        for folder in folders:
            for number in range(5):
                with contextlib.suppress(NotFound):
                    engine.remove_container(f"{folder.name}-s{number}-1", force=True)

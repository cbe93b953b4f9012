"""What is restarted, in which order and how far, and what is asked of engine and registries for it."""

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
from tests.docker.engine_proxy import InBetween
from tests.docker.stale_stacks import PREFIX, QUICK, MakeProject, place, project, rules, selected, two, up
from tests.docker.two_stacks import Project, changed
from tests.integration.conftest import MakeInstallation, install, module_installation, short_folder
from tests.integration.processes import Installation, stored_text, wait_for
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


def test_what_is_named_is_restarted_whether_it_is_stale_or_not(
    place: Installation, two: tuple[Project, Project]
) -> None:
    shop, blog = two
    before = [shop.state(), blog.state()]

    piped = place.feed(f"\n  {shop.name}/db \n{blog.name}/jobs\n\n", "restart", "-", *QUICK)

    assert piped.code == 0, piped.err
    after = [shop.state(), blog.state()]
    assert [changed(*pair) for pair in zip(before, after, strict=True)] == [{"db-1"}, {"jobs-1"}]
    assert after[0]["db-1"][0] == before[0]["db-1"][0], "stopped and started, not made anew"
    whole = place.longshore("restart", blog.name, *QUICK)
    assert whole.code == 0
    assert changed(after[1], blog.state()) == {"db-1", "web-1", "jobs-1"}
    # and what does not exist, or is not said, changes nothing
    now = [shop.state(), blog.state()]
    for words in (("restart", "nobody"), ("restart", f"{shop.name}/db", f"{shop.name}/nobody"), ("restart", "db")):
        assert place.longshore(*words).code == 2, words
    empty = place.feed("\n \n", "restart", "-")
    assert (empty.code, "no services specified" in empty.err) == (2, True)
    assert [shop.state(), blog.state()] == now
    nothing = place.longshore("restart")
    assert (nothing.code, nothing.out.splitlines()[-1]) == (0, "no services need a restart")


def test_one_of_three_that_fails_is_named_and_the_others_stay(place: Installation, project: MakeProject) -> None:
    three = [project(name) for name in ("one", "three", "two")]
    up(*three)
    now = [one.image_moves("db", command=["false"] if one is three[1] else None) for one in three]

    done = place.longshore("restart", *QUICK, "-o", "json")

    assert done.code == 3
    assert done.json["stacks"]["up_to_date"] == [three[0].name, three[2].name]
    assert list(done.json["stacks"]["failed"]) == [three[1].name]
    assert [one.state()["db-1"][1] == image for one, image in zip(three, now, strict=True)] == [True, False, True]


def test_stacks_are_brought_right_in_order_and_behind_a_canary(place: Installation, project: MakeProject) -> None:
    shop, infra, blog = (project(name) for name in ("a-shop", "infra", "b-blog"))
    shop.up(db={"labels": {"longshore.after": infra.name}})
    up(infra, blog)
    for one in (shop, infra, blog):
        one.image_moves("db")
    dry = place.longshore("orchestrate", "--dry-run", "-o", "json").json
    levels = {step["step"]: step["level"] for step in dry["steps"]}
    assert levels[infra.name] < levels[shop.name]
    # given a first stack that fails
    old = infra.state()["db-1"][1]
    blog.image_moves("db", command=["false"])
    done = place.longshore("orchestrate", "--canary", "1", *QUICK)
    assert done.code == 3
    assert {one.state()["db-1"][1] for one in (shop, infra, blog)} == {old}, "nobody came after it"


def test_what_has_moved_since_it_was_selected_is_looked_at_again(place: Installation, project: MakeProject) -> None:
    shop = project("shop")
    shop.up()
    shop.image_moves("web")
    shop.image_moves("db")
    deployed = Stacks(place.client())
    plan = deployed.plan(deployed.select(), RolloutOptions(min_healthy_time=0.5))
    shop.compose("up", "--detach", "db")  # somebody was faster
    before = shop.state()

    report = place.client().start(plan).wait(60)

    step = report.step(shop.name)
    assert (report.exit_code, step.data["moved"], step.data["left"]) == (0, True, ["db"])
    assert changed(before, shop.state()) == {"web-1"}


def test_the_way_back_is_known_also_where_the_files_changed(place: Installation, project: MakeProject) -> None:
    shop = project("shop")
    shop.up()
    assert place.longshore("orchestrate", *QUICK).code == 0  # it is looked at, and nothing is done
    before = shop.state()
    shop.write(db={"command": ["false"]})

    done = place.longshore("orchestrate", *QUICK)

    assert done.code == 3
    label = "com.docker.compose.config-hash"
    now = shop.engine.inspect_container(shop.container("db"))
    assert now["State"]["Running"]
    assert now["Config"]["Cmd"] == ["sleep", "9999"]
    assert changed(before, shop.state()) == {"db-1"}
    assert [text[:6] for text in selected(place, retry=True)[f"{shop.name}/db"]] == ["config"]
    assert label in now["Config"]["Labels"]


def test_what_of_a_project_stands_stays_so_when_the_project_is_restarted(
    place: Installation, project: MakeProject
) -> None:
    shop = project("shop")
    shop.up(seed={"command": ["true"]}, web={"deploy": {"replicas": 2}})
    shop.compose("stop", "--timeout", "1", "jobs")
    shop.engine.stop(shop.container("web", 2), timeout=1)
    before = shop.state()

    done = place.longshore("restart", shop.name, *QUICK)

    assert done.code == 0, done.err
    assert changed(before, shop.state()) == {"db-1", "web-1"}
    # and a new image makes the stopped one anew, and starts it not
    now = shop.image_moves("web")
    assert place.longshore("orchestrate", *QUICK).code == 0
    assert [shop.state()[name][1:4:2] for name in ("web-1", "web-2")] == [(now, "running"), (now, "exited")]
    # by its own name it is started
    assert place.longshore("restart", f"{shop.name}/jobs", *QUICK).code == 0
    assert shop.state()["jobs-1"][3] == "running"


def test_a_job_that_had_failed_is_done_again_and_may_end(place: Installation, project: MakeProject) -> None:
    shop = project("shop")
    (shop.folder / "seed").write_text("exit 1")
    seed = {"command": ["sh", "/seed"], "volumes": ["./seed:/seed"], "labels": {"longshore.files": "seed=none"}}
    shop.up(seed=seed)
    wait_for("its failure", lambda: shop.state()["seed-1"][3] == "exited")
    assert list(selected(place)) == [f"{shop.name}/seed"]
    (shop.folder / "seed").write_text("exit 0")

    assert place.longshore("orchestrate", *QUICK).code == 0
    assert selected(place) == {}


def test_what_is_in_the_network_of_another_comes_along(place: Installation, project: MakeProject) -> None:
    shop = project("shop")
    shop.up(jobs={"network_mode": "service:db"})
    now = shop.image_moves("db")
    before = shop.state()

    assert place.longshore("orchestrate", *QUICK).code == 0

    after = shop.state()
    assert changed(before, after) == {"db-1", "jobs-1"}
    assert after["db-1"][1] == now
    mode = shop.engine.inspect_container(shop.container("jobs"))["HostConfig"]["NetworkMode"]
    assert mode == f"container:{after['db-1'][0]}"


def test_services_that_differ_in_what_they_need_alone_are_told_apart(place: Installation, project: MakeProject) -> None:
    """Compose hashes them alike where it leaves out what they need."""
    shop = project("shop")
    same = {"image": shop.ref("web"), "depends_on": ["db"]}
    shop.up(web={"volumes": []} | same, one=same, two={"image": shop.ref("web")}, jobs={"depends_on": ["db"]})
    shop.engine.stop(shop.container("db"), timeout=1)
    shop.image_moves("web")

    for _ in range(2):
        assert place.longshore("orchestrate", *QUICK).code == 0
        assert selected(place) == {}
    assert place.longshore("orchestrate").out.splitlines()[-1] == "cache valid, nothing to do"


def test_the_undo_of_a_run_takes_it_back_and_that_is_no_partial_success(
    place: Installation, project: MakeProject
) -> None:
    shop = project("shop")
    shop.up()
    old = shop.state()["web-1"][1]
    shop.image_moves("web")
    done = Stacks(place.client()).orchestrate(min_healthy_time=0.5)
    assert done.report is not None
    run = place.client().get(done.report.run_id)
    run.answer(run.undo())
    report = run.wait(60)
    assert (report.state, report.exit_code) == ("undone", 1)
    assert shop.state()["web-1"][1] == old
    assert list(selected(place)) == [f"{shop.name}/web"]


def test_a_stack_whose_files_cannot_be_used_is_no_success(place: Installation, two: tuple[Project, Project]) -> None:
    shop, blog = two
    (shop.folder / "compose.yml").write_text("services: [")
    now = blog.image_moves("db")

    done = place.longshore("orchestrate", *QUICK)

    assert done.code == 3
    assert f"{shop.name}: its files are invalid" in done.err
    assert blog.state()["db-1"][1] == now, "it harms no other"
    assert place.longshore("select").code == 3
    assert place.longshore("restart", f"{shop.name}/db").code == 2


# --- registries, and what runs an image -------------------------------------------------------------


def test_a_tag_that_moved_at_its_registry_is_found_without_a_pull(
    place: Installation, project: MakeProject, closed_registry: Registry, new_image: Callable[[str], str], rules: Path
) -> None:
    shop = project("shop")
    ref = f"{closed_registry.host}/{shop.name}:1"
    engine, login = shop.engine, {"username": USER, "password": PASSWORD}
    first = new_image(ref)
    engine.push(ref, auth_config=login)
    shop.up(db={"image": ref})
    assert selected(place, registry=True) == {}, "whoever is not let in is told nothing, and that is no error"
    assert f"left alone: image {ref}: its registry could not be queried: " in place.longshore("select").out
    second = new_image(ref)
    engine.push(ref, auth_config=login)
    engine.tag(first, ref.rpartition(":")[0], "1")
    assert selected(place) == {}, "nobody has asked"
    with contextlib.suppress(Exception):
        engine.remove_image(second, force=True)
    said = {"username": USER, "password": "{{ secret('env:LONGSHORE_SECRET_REGISTRY') }}"}
    rules.write_text(yaml.safe_dump({"only": [f"{PREFIX}-*"], "registries": {closed_registry.host: said}}))

    (reason,) = selected(place, registry=True)[f"{shop.name}/db"]

    assert reason.startswith(f"image {ref} → ")
    assert reason.endswith("at its registry")
    assert engine.inspect_image(ref)["Id"] == first
    done = place.longshore("orchestrate", "--registry", *QUICK)
    assert done.code == 0, done.err
    assert shop.state()["db-1"][1] == engine.inspect_image(ref)["Id"] != first
    # and what runs it is found by its name
    for name in (ref, ref.rpartition(":")[0], shop.state()["db-1"][1][7:19]):
        assert list(selected(place, image=name)) == [f"{shop.name}/db"]
    assert selected(place, image=f"{shop.name}:nobody") == {}
    check = place.longshore("check", "--image", ref, "--json")
    assert [one["service"] for one in check.json["deployments"]] == ["db"]
    # and nothing of it holds the password
    rules.write_text(yaml.safe_dump({"only": [f"{PREFIX}-*"]}))
    assert PASSWORD not in stored_text(place)


# --- the page ---------------------------------------------------------------------------------------


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "docs" / "how-to" / "stacks.md").read_text(), re.DOTALL)


def test_the_page_does_what_it_says(place: Installation, engine: docker.APIClient, rules: Path, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "examples" / "orchestrate", tmp_path / "examples" / "orchestrate")
    for name in ("infra", "shop"):
        (tmp_path / "examples" / "orchestrate" / name / ".env").write_text(f"IMAGE={IMAGE}\n")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = place.environment | {"DOCKER_HOST": engine_url(), "PATH": path}
    (shell,), python = blocks("sh"), "\n".join(["from longshore.orchestration import Client", *blocks("python")])
    was = rules.read_text()
    rules.write_text(yaml.safe_dump({"only": ["orchestrate-*"]}))
    try:
        said = []
        for command in (["sh", "-e", "-c", shell], [sys.executable, "-c", python]):
            done = subprocess.run(
                command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False
            )
            assert done.returncode == 0, done.stdout + done.stderr
            said.append(done.stdout)
        assert "orchestrate-shop/web\n" in said[0]
        assert said[0].count("cache valid, nothing to do") == 1
        assert said[1] == "cache valid, nothing to do 0\n"
    finally:
        rules.write_text(was)
        for name in ("orchestrate-shop", "orchestrate-infra"):
            remove_project(engine, name)


def test_the_file_on_the_page_is_one(tmp_path: Path) -> None:
    (tmp_path / "stacks.yaml").write_text(blocks("yaml")[0])
    said = stack_rules(str(tmp_path / "stacks.yaml"))
    assert (list(said.stacks), said.only) == (["shop"], ["*", "!test-*"])


# --- how much is asked ------------------------------------------------------------------------------


class Counter(InBetween):
    """Stands before the engine and Compose, passes everything on, and keeps what was asked."""

    def __init__(self, folder: Path) -> None:
        self._calls: list[str] = []
        self._log = folder / "compose.log"
        self.config = folder / "config"
        plugin = self.config / "cli-plugins" / "docker-compose"
        plugin.parent.mkdir(parents=True)
        plugin.write_text(f'#!/bin/sh\necho "$@" >>{self._log}\nexec {" ".join(_program())} "$@"\n')
        plugin.chmod(0o755)
        super().__init__(folder)

    def asked(self) -> tuple[list[str], int]:
        """Calls of the engine, and how often Compose was, since the last time."""
        calls, self._calls = self._calls, []
        # The worker itself looks for jobs that were left, now and then.
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


def test_a_hundred_containers_cost_a_handful_of_calls(
    install: MakeInstallation, engine: docker.APIClient, counter: Counter, tmp_path: Path
) -> None:
    prefix = f"los-many-{uuid.uuid4().hex[:6]}"
    rules = tmp_path / "stacks.yaml"
    rules.write_text(yaml.safe_dump({"only": [f"{prefix}-*"]}))
    services = {f"s{number}": {"image": IMAGE, "command": ["sleep", "9999"]} for number in range(5)}
    folders = [tmp_path / f"{prefix}-{number}" for number in range(20)]

    def make(folder: Path) -> None:
        folder.mkdir()
        (folder / "site.conf").write_text("one")
        (folder / "compose.yml").write_text(json.dumps({"services": services}))
        for number in range(5):
            said = {"project": folder.name, "service": f"s{number}", "container-number": "1", "config-hash": "x"}
            said |= {"project.working_dir": str(folder), "project.config_files": str(folder / "compose.yml")}
            labels = {f"com.docker.compose.{key}": value for key, value in said.items()}
            binds = engine.create_host_config(binds=[f"{folder}/site.conf:/site.conf"])
            engine.create_container(IMAGE, name=f"{folder.name}-s{number}-1", labels=labels, host_config=binds)

    place = install(docker_host=counter.url, options={"host": "many", "stacks": str(rules)})
    place.worker("many", "-c", "3", DOCKER_CONFIG=str(counter.config)).start()
    try:
        for folder in folders:
            make(folder)
        counter.asked()
        assert place.longshore("rebuild", "--force", timeout=120.0).code == 0
        assert counter.asked()[1] == 40
        # each of the worker's processes may be asked for the first time
        for command in [("check",), ("select", "-o", "names")] * 2:
            said = place.longshore(*command)
            assert said.code == 0, said.err
            calls, compose = counter.asked()
            assert len(calls) <= 5, calls
            assert compose == 0
        assert len(said.out.splitlines()) == 100
        for folder in folders[:3]:
            with (folder / "compose.yml").open("a") as file:
                file.write("\n")
        assert place.longshore("check").code == 1
        calls, compose = counter.asked()
        assert (len(calls) <= 5, compose) == (True, 0), calls
        assert place.longshore("select").code == 0
        calls, compose = counter.asked()
        assert (len(calls) <= 5, compose) == (True, 6), calls
    finally:
        for folder in folders:
            for number in range(5):
                with contextlib.suppress(NotFound):
                    engine.remove_container(f"{folder.name}-s{number}-1", force=True)

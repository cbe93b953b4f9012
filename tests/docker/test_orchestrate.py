"""What is deployed stale is found and brought right: real stacks, a real engine, real workers."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from docker.errors import NotFound

from longshore.orchestration.runs.step_report import StepReport
from longshore.orchestration.stacks.plan import RolloutOptions
from longshore.orchestration.stacks.rules import stack_rules
from longshore.orchestration.store.caches import Caches, Entry
from longshore.tasks.crash_points import STACK_POINTS
from longshore.tasks.operations.compose.cli import _program
from tests.conftest import get
from tests.docker.engine_proxy import InBetween
from tests.docker.two_stacks import Project, changed
from tests.integration.conftest import MakeInstallation, install, module_installation, short_folder
from tests.integration.processes import LONGSHORE, Installation, all_that_is_kept, redis_of, wait_for
from tests.servers import IMAGE, PASSWORD, USER, Registry, engine_url, remove_project, require_compose

if TYPE_CHECKING:
    import docker

pytestmark = [pytest.mark.docker, pytest.mark.integration, pytest.mark.stacks]
assert module_installation
assert install
assert short_folder

ROOT = Path(__file__).resolve().parents[2]
HOST = "web1"
QUICK = ("--min-healthy-time", "500ms")
#: Nobody else's projects are looked at.
PREFIX = f"los-orc-{uuid.uuid4().hex[:6]}"


@pytest.fixture(scope="module")
def rules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rules") / "stacks.yaml"
    path.write_text(yaml.safe_dump({"only": [f"{PREFIX}-*"]}))
    return path


@pytest.fixture(scope="module")
def place(module_installation: MakeInstallation, rules: Path) -> Installation:
    get(require_compose)
    made = module_installation(docker_host=engine_url(), options={"host": HOST, "lease": "1s", "stacks": str(rules)})
    made.worker("one", "-c", "3", LONGSHORE_SECRET_REGISTRY=PASSWORD).start()
    return made


MakeProject = Callable[[str], Project]


@pytest.fixture
def project(engine: docker.APIClient, tmp_path: Path) -> Iterator[MakeProject]:
    made: list[Project] = []

    def make(name: str) -> Project:
        made.append(Project(engine, tmp_path, f"{PREFIX}-{name}"))
        return made[-1]

    yield make
    for one in made:
        one.clear()


@pytest.fixture
def two(project: MakeProject) -> tuple[Project, Project]:
    """Both as their files say."""
    found = project("shop"), project("blog")
    for one in found:
        one.up()
    return found


def selected(place: Installation, **options: Any) -> dict[str, list[str]]:
    """The reasons by the services' names."""
    found = place.client().stacks().select(**options)
    assert found.errors == {}
    return {one.name: [reason.text for reason in one.reasons] for one in found.chosen}


def restarts(place: Installation) -> list[str]:
    """Runs that have restarted something, or tried to."""
    looks = ("orchestrate-rebuild", "orchestrate-look")
    ids = [run.id for run in place.client().runs(500)]
    return [run_id for run_id in ids if run_id.startswith("orchestrate-") and not run_id.startswith(looks)]


def restarted(place: Installation, before: set[str]) -> list[StepReport]:
    """The restarts of those runs that came after."""
    steps = [step for run_id in set(restarts(place)) - before for step in place.client().get(run_id).report().steps]
    return [step for step in steps if step.op == "stacks.restart.execute"]


def generation(place: Installation) -> int:
    return Caches(place.client().store).get(f"deployed@{HOST}").generation


# --- the whole --------------------------------------------------------------------------------------


def test_what_went_stale_is_named_and_exactly_that_is_brought_right(
    place: Installation, two: tuple[Project, Project]
) -> None:
    shop, blog = two
    assert place.longshore("orchestrate", *QUICK).code == 0
    assert selected(place) == {}
    # given an image whose tag moves, a file that changes, and a service that dies
    was, now = shop.state()["db-1"][1], shop.image_moves("db")
    blog.file.write_text("two\n")
    blog.engine.kill(blog.container("jobs"))
    before = shop.state() | {f"blog {name}": said for name, said in blog.state().items()}

    # then these are named
    said = place.longshore("select", "-o", "json").json
    assert said["count"] == 3
    assert {one["name"]: [reason["text"] for reason in one["reasons"]] for one in said["deployments"]} == {
        f"{shop.name}/db": [f"image {was[7:19]} → {now[7:19]}"],
        f"{blog.name}/web": [f"file {blog.file} changed"],
        f"{blog.name}/jobs": [f"missing ({blog.container('jobs')} ended with 137)"],
    }
    names = {f"{shop.name}/db", f"{blog.name}/web", f"{blog.name}/jobs"}
    assert set(place.longshore("select", "-o", "names").out.split()) == names
    assert yaml.safe_load(place.longshore("select", "-o", "yaml").out) == said
    # and these are brought right
    done = place.longshore("orchestrate", *QUICK)
    assert done.code == 0, done.err
    assert done.out.splitlines()[-1] == "orchestration complete"
    after = shop.state() | {f"blog {name}": said for name, said in blog.state().items()}
    assert changed(before, after) == {"db-1", "blog web-1", "blog jobs-1"}
    assert shop.state()["db-1"][1] == now
    assert blog.content() == "two\n"
    assert {said[3] for said in after.values()} == {"running"}
    # and then there is nothing left to do
    again = place.longshore("orchestrate")
    assert (again.code, again.out.splitlines()[-1]) == (0, "cache valid, nothing to do")
    assert after == shop.state() | {f"blog {name}": said for name, said in blog.state().items()}
    # and Compose itself thinks so, too
    hashes = dict(line.split() for line in blog.compose("config", "--hash", "*").splitlines())
    labels = blog.engine.inspect_container(blog.container("web"))["Config"]["Labels"]
    assert labels["com.docker.compose.config-hash"] == hashes["web"]


def test_a_stack_whose_new_image_does_not_get_well_goes_back_and_is_selected_again(
    place: Installation, two: tuple[Project, Project]
) -> None:
    shop, blog = two
    old = shop.state()["db-1"][1]
    good = blog.image_moves("db")
    bad = shop.image_moves("db", command=["false"])

    done = place.longshore("orchestrate", *QUICK)

    assert done.code == 3
    assert f"1 of 2 stacks are right: {shop.name}: " in done.err
    assert "is unhealthy" in done.err
    assert (shop.state()["db-1"][1], shop.state()["db-1"][3]) == (old, "running")
    assert blog.state()["db-1"][1] == good
    assert selected(place) == {f"{shop.name}/db": [f"image {old[7:19]} → {bad[7:19]}"]}
    # and with one stack alone, as code sees it; and once more
    again = place.client().orchestrate(min_healthy_time=0.5)
    assert again.exit_code == 3
    assert list(again.stacks.wrong) == [shop.name]
    assert again.report is not None
    assert again.report.exit_code == 3
    assert place.longshore("runs", "show", again.report.run_id).code == 3
    # and where all is to go back, all goes back
    other = blog.state()["jobs-1"][1]
    blog.image_moves("jobs")
    taken_back = place.longshore("orchestrate", "--on-failure", "undo", *QUICK)
    assert taken_back.code == 1
    assert (shop.state()["db-1"][1], blog.state()["jobs-1"][1]) == (old, other)


def test_a_worker_that_is_killed_after_the_rebuild_leaves_nothing_forgotten(
    place: Installation, two: tuple[Project, Project]
) -> None:
    shop, _ = two
    now = shop.image_moves("web")
    assert place.longshore("rebuild", "--force").code == 0
    worker = place.workers[0]
    worker.kill()
    worker.start()

    done = place.longshore("orchestrate", *QUICK)

    assert done.code == 0, done.err
    assert shop.state()["web-1"][1] == now


@pytest.mark.parametrize("point", STACK_POINTS)
def test_a_worker_that_is_killed_anywhere_is_followed_by_another(
    place: Installation, project: MakeProject, point: str, tmp_path: Path
) -> None:
    shop = project("shop")
    shop.up()
    assert place.longshore("orchestrate", *QUICK).code == 0
    now = shop.image_moves("web")
    shop.file.write_text("two\n")
    marker = tmp_path / "died"
    place.workers[0].kill()
    doomed = place.worker(f"doomed-{uuid.uuid4().hex[:4]}", "-c", "3", LONGSHORE_CRASH_AT=f"{point}:{marker}")
    try:
        doomed.start()
        done = place.longshore("orchestrate", *QUICK, timeout=60.0)
    finally:
        doomed.kill()
        place.workers.pop()
        place.workers[0].start()

    assert marker.exists()
    assert done.code == 0, done.err
    assert (shop.state()["web-1"][1], shop.state()["web-1"][3]) == (now, "running")
    assert selected(place) == {}


def test_ten_at_once_rebuild_once_and_restart_once(place: Installation, two: tuple[Project, Project]) -> None:
    shop, blog = two
    assert place.longshore("orchestrate", *QUICK).code == 0
    before, built, runs = blog.state(), generation(place), set(restarts(place))
    shop.image_moves("db")
    blog.file.write_text("two\n")

    with ThreadPoolExecutor(10) as pool:
        ended = list(pool.map(lambda _: place.longshore("orchestrate", *QUICK, timeout=120.0), range(10)))

    assert [one.code for one in ended] == [0] * 10, [one.err for one in ended]
    assert sorted(step.name for step in restarted(place, runs) if step.changed) == [blog.name, shop.name]
    assert changed(before, blog.state()) == {"web-1"}
    # One for what had moved, one for what was brought right; and one where a call looked between the two.
    assert generation(place) in {built + 2, built + 3}


def test_beat_brings_right_what_is_stale(place: Installation, project: MakeProject) -> None:
    shop = project("shop")
    shop.up()
    now = shop.image_moves("web")
    beat = place.popen("beat", "--loglevel", "WARNING", LONGSHORE_ORCHESTRATE_EVERY="1s")
    try:
        wait_for("the new image", lambda: shop.state().get("web-1", ("", ""))[1] == now, timeout=40.0)
        runs, stood = set(restarts(place)), shop.state()
        time.sleep(3.0)
        assert shop.state() == stood, "what is right is left alone"
        # A look that began before the end may have started a run more; it has found nothing to do.
        assert [step.name for step in restarted(place, runs) if step.changed] == []
    finally:
        beat.kill()
        beat.communicate()
        wait_for("its runs to end", lambda: not place.client().stacks().active_runs())


# --- what is left alone -----------------------------------------------------------------------------


def test_what_was_stopped_by_hand_or_has_ended_well_is_told_of_and_left_alone(
    place: Installation, project: MakeProject
) -> None:
    shop = project("shop")
    once = {"command": ["true"], "image": IMAGE}
    stubborn = {"init": False, "command": ["sleep", "9999"], "image": IMAGE}
    shop.up(
        once=once,
        stubborn=stubborn,
        web={
            "depends_on": {
                "db": {"condition": "service_started"},
                "once": {"condition": "service_completed_successfully"},
            }
        },
    )
    shop.compose("stop", "--timeout", "1", "db", "stubborn")
    # The engine remembers 256 events, and these tests are not alone on it.
    place.client().stacks().rebuild([HOST])
    shop.image_moves("db")
    now = shop.image_moves("web")
    before = shop.state()

    said = place.longshore("select", "-o", "json").json

    assert [one["service"] for one in said["deployments"]] == ["web"]
    notes = {note["service"]: note["text"] for note in said["left_alone"]}
    assert notes == {"db": "stopped by hand", "stubborn": "stopped by hand", "once": "ended with 0"}
    done = place.longshore("orchestrate", *QUICK)
    assert done.code == 0, done.err
    assert f"left alone: {shop.name}/db: stopped by hand" in done.out
    assert changed(before, shop.state()) == {"web-1"}
    assert shop.state()["web-1"][1] == now
    assert place.longshore("orchestrate").out.splitlines()[-1] == "cache valid, nothing to do"
    # and a rebuild from nothing does not forget it either
    assert place.longshore("rebuild", "--force").code == 0
    assert selected(place) == {}


def test_what_a_change_of_a_file_demands_is_said_by_labels_and_by_a_file(
    place: Installation, project: MakeProject, rules: Path
) -> None:
    shop = project("shop")
    for name in ("a.conf", "b.conf", "c.conf", "d.conf"):
        (shop.folder / name).write_text("one\n")
    shop.up(
        db={"volumes": ["./a.conf:/a.conf:ro"], "labels": {"longshore.files": "a.conf=restart"}},
        web={"volumes": ["./b.conf:/b.conf:ro"], "labels": {"longshore.files": "*.conf=none"}},
        jobs={"volumes": [".:/all:ro"]},
    )
    said = {"only": [f"{PREFIX}-*"], "stacks": {shop.name: {"services": {"jobs": {"files": {"[cd].conf": "restart"}}}}}}
    was = rules.read_text()
    rules.write_text(yaml.safe_dump(said))
    try:
        assert place.longshore("orchestrate", *QUICK).code == 0
        before = shop.state()
        for name in ("a.conf", "b.conf", "c.conf"):
            (shop.folder / name).write_text("two\n")

        assert selected(place) == {
            f"{shop.name}/db": [f"file {shop.folder}/a.conf changed"],
            f"{shop.name}/jobs": [f"file {shop.folder}/c.conf changed"],
        }
        assert place.longshore("orchestrate", *QUICK).code == 0
    finally:
        rules.write_text(was)
    after = shop.state()
    assert changed(before, after) == {"db-1", "jobs-1"}
    assert {before[name][0] == after[name][0] for name in ("db-1", "jobs-1")} == {True}, "not made anew"


def test_a_file_that_changed_before_anybody_looked_is_found_by_its_time(
    place: Installation, project: MakeProject
) -> None:
    shop = project("shop")
    shop.up()
    Caches(place.client().store).forget(f"deployed@{HOST}")
    shop.file.write_text("two\n")
    assert selected(place) == {f"{shop.name}/web": [f"file {shop.file} changed"]}
    # and a container that was started since has it
    shop.engine.restart(shop.container("web"), timeout=1)
    assert selected(place) == {}


# --- dry runs ---------------------------------------------------------------------------------------


def everything(place: Installation, *projects: Project) -> dict[str, Any]:
    """Redis but for what workers say of themselves, the engine, and the folder of the workers."""
    found: dict[str, Any] = {key.decode(): value for key, value in redis_of(place).items()}
    found |= {one.name: one.state() for one in projects}
    named = [(tag, image["Id"]) for image in projects[0].engine.images() for tag in image["RepoTags"] or []]
    found["images"] = sorted(pair for pair in named if any(one.name in pair[0] for one in projects))
    state = place.folder / "state"
    found["files"] = sorted(
        (str(path), path.stat().st_mtime_ns) for path in state.rglob("*") if "locks" not in path.parts
    )
    return found


@pytest.mark.parametrize("cached", [True, False])
def test_a_dry_run_of_any_of_them_changes_nothing(
    place: Installation, two: tuple[Project, Project], *, cached: bool
) -> None:
    shop, blog = two
    if cached:
        assert place.longshore("orchestrate", *QUICK).code == 0
    else:
        Caches(place.client().store).forget(f"deployed@{HOST}")
    shop.image_moves("db")
    blog.file.write_text("two\n")
    before = everything(place, shop, blog)

    told = {
        words: place.longshore(*words, "--dry-run")
        for words in [
            ("orchestrate",),
            ("check",),
            ("rebuild",),
            ("select",),
            ("restart",),
            ("restart", f"{shop.name}/jobs"),
        ]
    }

    assert everything(place, shop, blog) == before
    codes = {words: said.code for words, said in told.items()}
    assert codes == {words: int(words == ("check",)) for words in told}, told
    assert f"would bring {shop.name} right: db: up (image " in told["orchestrate",].out
    assert f"would bring {blog.name} right: web: redeploy (file " in told["restart",].out
    assert "would build it from nothing" in told["rebuild",].out
    # and what it said is what is done
    assert place.longshore("orchestrate", *QUICK).code == 0
    now = [shop.state(), blog.state()]
    assert [changed(before[one.name], after) for one, after in zip(two, now, strict=True)] == [{"db-1"}, {"web-1"}]


# --- the cache --------------------------------------------------------------------------------------


def test_an_entry_that_is_rubbish_and_one_that_lies_are_found_out(
    place: Installation, two: tuple[Project, Project]
) -> None:
    shop, _ = two
    store = place.client().store
    key = store.keys.cache(f"deployed@{HOST}")
    now = shop.image_moves("db")
    assert place.longshore("rebuild", "--force").code == 0
    stale = selected(place)
    good = store.client.hget(key, "current")
    assert good is not None
    # given what says of the image that runs that it is the right one
    lie = good.replace(now, shop.state()["db-1"][1])
    told = json.loads(lie)
    told.pop("digest")
    whole_lie = Entry(**told).text()
    other_shape = Entry(1, {"projects": []}, "x").text()
    for wrong in ("rubbish", "{}", "[1]", lie, whole_lie, other_shape, good[:-9]):
        store.client.hset(key, "current", wrong)
        checked = place.client().stacks().check()
        assert (checked.exit_code, checked.valid) == (1, False), wrong[:20]
        assert "cannot be used" in checked.reason
        assert selected(place) == stale, wrong[:20]
    store.client.hset(key, "current", "rubbish")
    assert place.longshore("orchestrate", *QUICK).code == 0
    assert shop.state()["db-1"][1] == now
    assert place.longshore("check").code == 0


def test_a_rebuild_is_undone_to_the_generation_before(place: Installation, project: MakeProject) -> None:
    shop = project("shop")
    shop.up()
    client = place.client()
    caches = Caches(client.store)
    assert place.longshore("rebuild", "--force").code == 0
    before = caches.get(f"deployed@{HOST}").entry
    run = client.start(client.stacks().rebuild_plan([HOST]))
    assert run.wait(30).step(HOST).changed
    assert caches.get(f"deployed@{HOST}").generation > before.generation if before else False

    run.answer(run.undo())
    wait_for("the undo", lambda: run.report().state == "undone")
    assert caches.get(f"deployed@{HOST}").entry == before


def test_what_is_too_old_is_read_again(place: Installation, project: MakeProject) -> None:
    shop = project("shop")
    shop.up()
    assert place.longshore("rebuild", "--force", LONGSHORE_CACHE_TTL="1s").code == 0
    time.sleep(1.1)
    checked = place.longshore("check", "--json")
    assert (checked.code, "may be 1" in checked.json["reason"]) == (1, True)
    assert place.longshore("orchestrate").code == 0


def test_a_rebuild_asks_and_takes_no_answer_for_a_no(place: Installation, project: MakeProject) -> None:
    project("shop").up()
    assert place.longshore("rebuild", "--force").code == 0
    was = generation(place)
    for text, code in (("", 1), ("n\n", 1), ("\n", 1), ("nonsense\n", 1), ("y\n", 0), ("Y\n", 0)):
        said = place.feed(text, "rebuild")
        assert said.code == code, (text, said.err)
        assert ("Aborted" in said.err) is bool(code)
        assert "[y/N]" in said.err
    assert generation(place) == was + 2
    # and on a terminal
    main, terminal = pty.openpty()
    asked = subprocess.Popen(
        [LONGSHORE, "rebuild"], env=place.environment, stdin=terminal, stderr=terminal, stdout=terminal
    )
    os.write(main, b"y\n")
    assert asked.wait(30) == 0
    assert generation(place) == was + 3
    os.close(main)
    os.close(terminal)


def test_a_host_that_cannot_be_looked_at_harms_no_other(
    place: Installation, project: MakeProject, tmp_path: Path
) -> None:
    shop = project("shop")
    shop.up()
    now = shop.image_moves("web")
    other = place.worker("two", "-c", "1", LONGSHORE_HOST="web2", LONGSHORE_DOCKER_HOST=f"unix://{tmp_path}/nothing")
    try:
        other.start()
        checked = place.longshore("check", "--json")
        done = place.longshore("orchestrate", *QUICK)
        assert place.longshore("hosts", "drain", "web2").code == 0
        drained = place.longshore("check", "--json")
    finally:
        other.stop()
        place.workers.pop()
        assert place.longshore("hosts", "forget", "web2").code == 0
    assert {one["host"]: one["valid"] for one in checked.json["hosts"]} == {HOST: False, "web2": False}
    assert done.code == 3
    assert "web2 could not be looked at" in done.err
    assert (drained.code, "web2 is drained" in drained.json["hosts"][1]["error"]) == (2, True)
    assert place.longshore("check").code == 0, "what is forgotten is not missed"
    assert shop.state()["web-1"][1] == now


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
    assert (empty.code, "no deployments specified" in empty.err) == (2, True)
    assert [shop.state(), blog.state()] == now
    nothing = place.longshore("restart")
    assert (nothing.code, nothing.out.splitlines()[-1]) == (0, "no deployments need restart")


def test_one_of_three_that_fails_is_named_and_the_others_stay(place: Installation, project: MakeProject) -> None:
    three = [project(name) for name in ("one", "three", "two")]
    for one in three:
        one.up()
    now = [one.image_moves("db", command=["false"] if one is three[1] else None) for one in three]

    done = place.longshore("restart", *QUICK, "-o", "json")

    assert done.code == 3
    assert done.json["stacks"]["right"] == [three[0].name, three[2].name]
    assert list(done.json["stacks"]["wrong"]) == [three[1].name]
    assert [one.state()["db-1"][1] == image for one, image in zip(three, now, strict=True)] == [True, False, True]


def test_stacks_are_brought_right_in_order_and_behind_a_canary(place: Installation, project: MakeProject) -> None:
    shop, infra, blog = (project(name) for name in ("a-shop", "infra", "b-blog"))
    infra.up()
    shop.up(db={"labels": {"longshore.after": infra.name}})
    blog.up()
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
    stacks = place.client().stacks()
    plan = stacks.plan(stacks.select(), RolloutOptions(min_healthy_time=0.5))
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
    assert [text[:6] for text in selected(place)[f"{shop.name}/db"]] == ["config"]
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
    done = place.client().orchestrate(min_healthy_time=0.5)
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
    assert f"{shop.name}: its files cannot be used" in done.err
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
    assert f"left alone: image {ref}: its registry could not be asked: " in place.longshore("select").out
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
    assert PASSWORD not in all_that_is_kept(place)


# --- the page ---------------------------------------------------------------------------------------


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "docs" / "orchestrate.md").read_text(), re.DOTALL)


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
    shown = blocks("yaml")[1].rpartition("  …")[0]
    assert shown in (ROOT / "examples" / "features" / "catalog.yaml").read_text()


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


def test_two_hundred_containers_cost_a_handful_of_calls(
    install: MakeInstallation, engine: docker.APIClient, counter: Counter, tmp_path: Path
) -> None:
    prefix = f"los-many-{uuid.uuid4().hex[:6]}"
    rules = tmp_path / "stacks.yaml"
    rules.write_text(yaml.safe_dump({"only": [f"{prefix}-*"]}))
    services = {f"s{number}": {"image": IMAGE, "command": ["sleep", "9999"]} for number in range(5)}
    folders = [tmp_path / f"{prefix}-{number}" for number in range(40)]

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
        assert counter.asked()[1] == 80
        # each of the worker's processes may be asked for the first time
        for command in [("check",), ("select", "-o", "names")] * 2:
            said = place.longshore(*command)
            assert said.code == 0, said.err
            calls, compose = counter.asked()
            assert len(calls) <= 5, calls
            assert compose == 0
        assert len(said.out.splitlines()) == 200
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

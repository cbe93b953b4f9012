"""The stack commands with real stacks: selection, updates, dry runs and the cache."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from longshore.orchestration.stacks.orchestrate import Stacks
from longshore.orchestration.store.caches import STACK_CACHE, Caches, Entry
from longshore.tasks.crash_points import STACK_POINTS
from tests.docker.stale_stacks import (
    HOST,
    PREFIX,
    QUICK,
    MakeProject,
    generation,
    place,
    project,
    restarted,
    restarts,
    rules,
    selected,
    two,
)
from tests.docker.two_stacks import Project, changed
from tests.integration.conftest import module_installation
from tests.integration.processes import LONGSHORE, Installation, redis_of, wait_for
from tests.servers import IMAGE

if TYPE_CHECKING:
    pass

pytestmark = [pytest.mark.docker, pytest.mark.integration, pytest.mark.stacks]
assert module_installation
assert place
assert project
assert rules
assert two


# --- orchestrate ------------------------------------------------------------------------------------


def test_only_stale_services_are_selected_and_updated(place: Installation, two: tuple[Project, Project]) -> None:
    shop, blog = two
    assert place.longshore("orchestrate", *QUICK).code == 0
    assert selected(place) == {}
    # given a moved tag, a changed file, and a killed service
    was, now = shop.state()["db-1"][1], shop.move_image("db")
    blog.file.write_text("two\n")
    blog.engine.kill(blog.container("jobs"))
    before = shop.state() | {f"blog {name}": state for name, state in blog.state().items()}

    # then these services are selected
    listed = place.longshore("select", "-o", "json").json
    assert listed["count"] == 3
    assert {one["name"]: [reason["text"] for reason in one["reasons"]] for one in listed["deployments"]} == {
        f"{shop.name}/db": [f"image {was[7:19]} → {now[7:19]}"],
        f"{blog.name}/web": [f"file {blog.file} changed"],
        f"{blog.name}/jobs": [f"missing ({blog.container('jobs')} ended with 137)"],
    }
    names = {f"{shop.name}/db", f"{blog.name}/web", f"{blog.name}/jobs"}
    assert set(place.longshore("select", "-o", "names").out.split()) == names
    assert yaml.safe_load(place.longshore("select", "-o", "yaml").out) == listed
    # and only these services are updated
    done = place.longshore("orchestrate", *QUICK)
    assert done.code == 0, done.err
    assert done.out.splitlines()[-1] == "orchestration complete"
    after = shop.state() | {f"blog {name}": state for name, state in blog.state().items()}
    assert changed(before, after) == {"db-1", "blog web-1", "blog jobs-1"}
    assert shop.state()["db-1"][1] == now
    assert blog.content() == "two\n"
    assert {state[3] for state in after.values()} == {"running"}
    # and a second orchestration changes nothing
    again = place.longshore("orchestrate")
    assert (again.code, again.out.splitlines()[-1]) == (0, "cache valid, nothing to do")
    assert after == shop.state() | {f"blog {name}": state for name, state in blog.state().items()}
    # and Compose finds no change either
    hashes = dict(line.split() for line in blog.compose("config", "--hash", "*").splitlines())
    labels = blog.engine.inspect_container(blog.container("web"))["Config"]["Labels"]
    assert labels["com.docker.compose.config-hash"] == hashes["web"]


def test_unhealthy_image_is_reverted_and_can_be_retried(place: Installation, two: tuple[Project, Project]) -> None:
    shop, blog = two
    old, runs = shop.state()["db-1"][1], set(restarts(place))
    good = blog.move_image("db")
    bad = shop.move_image("db", command=["false"])

    done = place.longshore("orchestrate", *QUICK)

    assert done.code == 3
    assert f"1 of 2 stacks are up to date: {shop.name}: " in done.err
    assert "is unhealthy" in done.err
    assert (shop.state()["db-1"][1], shop.state()["db-1"][3]) == (old, "running")
    assert blog.state()["db-1"][1] == good
    assert selected(place, retry=True) == {f"{shop.name}/db": [f"image {old[7:19]} → {bad[7:19]}"]}
    (run_id,) = set(restarts(place)) - runs
    assert place.longshore("runs", "show", run_id).code == 3
    # and with `undo` as the reaction to a failure, all stacks are undone
    other = blog.state()["jobs-1"][1]
    blog.move_image("jobs")
    undone = Stacks(place.client()).orchestrate(min_healthy_time=0.5, retry=True, on_failure="undo")
    assert (undone.exit_code, undone.stacks.up_to_date) == (1, ())
    assert undone.report is not None
    assert undone.report.exit_code == 1
    assert (shop.state()["db-1"][1], blog.state()["jobs-1"][1]) == (old, other)


def test_orchestration_succeeds_after_a_kill_at_each_crash_point(
    place: Installation, project: MakeProject, tmp_path: Path
) -> None:
    shop = project("shop")
    shop.up()
    assert place.longshore("orchestrate", *QUICK).code == 0
    place.workers[0].kill()
    try:
        for point in STACK_POINTS:
            now = shop.move_image("web")
            shop.file.write_text(f"{point}\n")
            marker = tmp_path / point
            crashing = place.worker(f"crashing-{point}", "-c", "3", LONGSHORE_CRASH_AT=f"{point}:{marker}")
            try:
                crashing.start()
                done = place.longshore("orchestrate", *QUICK, timeout=60.0)
                still_stale = selected(place)
            finally:
                crashing.kill()
                place.workers.remove(crashing)

            assert marker.exists(), point
            assert done.code == 0, (point, done.err)
            assert (shop.state()["web-1"][1], shop.state()["web-1"][3]) == (now, "running"), point
            assert still_stale == {}, point
    finally:
        place.workers[0].start()


def test_concurrent_orchestrations_rebuild_and_restart_once(place: Installation, two: tuple[Project, Project]) -> None:
    shop, blog = two
    assert place.longshore("orchestrate", *QUICK).code == 0
    before, built, runs = blog.state(), generation(place), set(restarts(place))
    shop.move_image("db")
    blog.file.write_text("two\n")

    with ThreadPoolExecutor(10) as pool:
        ended = list(pool.map(lambda _: place.longshore("orchestrate", *QUICK, timeout=120.0), range(10)))

    assert [one.code for one in ended] == [0] * 10, [one.err for one in ended]
    assert sorted(step.name for step in restarted(place, runs) if step.changed) == [blog.name, shop.name]
    assert changed(before, blog.state()) == {"web-1"}
    # One generation before the restarts, one after the restarts, and possibly one in between.
    assert generation(place) in {built + 2, built + 3}


def test_beat_updates_stale_services(place: Installation, project: MakeProject) -> None:
    shop = project("shop")
    # Beat gives a container without a health check five seconds.
    shop.up(web={"healthcheck": {"test": ["CMD", "true"], "interval": "300ms"}})
    now = shop.move_image("web")
    beat = place.popen("beat", "--loglevel", "WARNING", LONGSHORE_ORCHESTRATE_EVERY="1s")
    try:
        wait_for("the new image", lambda: shop.state().get("web-1", ("", ""))[1] == now, timeout=40.0)
        runs, updated = set(restarts(place)), shop.state()
        time.sleep(3.0)
        assert shop.state() == updated, "services without drift do not restart"
        # An orchestration that began before the update may have started a run without changes.
        assert [step.name for step in restarted(place, runs) if step.changed] == []
    finally:
        beat.kill()
        beat.communicate()
        wait_for("the end of the runs", lambda: not Stacks(place.client()).active_runs())


# --- services without a restart ---------------------------------------------------------------------


def test_stopped_and_completed_services_are_reported_and_not_started(place: Installation, project: MakeProject) -> None:
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
    # The engine stores only 256 events, and other tests share the engine.
    Stacks(place.client()).rebuild([HOST])
    shop.move_image("db")
    now = shop.move_image("web")
    before = shop.state()

    listed = place.longshore("select", "-o", "json").json

    assert [one["service"] for one in listed["deployments"]] == ["web"]
    notes = {note["service"]: note["text"] for note in listed["left_alone"]}
    assert notes == {"db": "stopped by hand", "stubborn": "stopped by hand", "once": "ended with 0"}
    done = place.longshore("orchestrate", *QUICK)
    assert done.code == 0, done.err
    assert f"left alone: {shop.name}/db: stopped by hand" in done.out
    assert changed(before, shop.state()) == {"web-1"}
    assert shop.state()["web-1"][1] == now
    assert place.longshore("orchestrate").out.splitlines()[-1] == "cache valid, nothing to do"
    # and a rebuild without a cache has the same result
    assert place.longshore("rebuild", "--force").code == 0
    assert selected(place) == {}


def test_labels_and_rules_select_the_action_after_a_file_change(
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
    changed_rules = {
        "only": [f"{PREFIX}-*"],
        "stacks": {shop.name: {"services": {"jobs": {"files": {"[cd].conf": "restart"}}}}},
    }
    was = rules.read_text()
    rules.write_text(yaml.safe_dump(changed_rules))
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
    assert {before[name][0] == after[name][0] for name in ("db-1", "jobs-1")} == {True}, "restarted, and not recreated"


def test_file_change_before_the_first_inspection_is_found_by_its_time(
    place: Installation, project: MakeProject
) -> None:
    shop = project("shop")
    shop.up()
    Caches(place.client().store).forget(f"{STACK_CACHE}{HOST}")
    shop.file.write_text("two\n")
    assert selected(place) == {f"{shop.name}/web": [f"file {shop.file} changed"]}
    # and a container that started after the change is not stale
    shop.engine.restart(shop.container("web"), timeout=1)
    assert selected(place) == {}


# --- dry runs ---------------------------------------------------------------------------------------


def everything(place: Installation, *projects: Project) -> dict[str, Any]:
    """The state of Redis without host registrations, of the engine, and of the workers' folder."""
    found: dict[str, Any] = {key.decode(): value for key, value in redis_of(place).items()}
    found |= {one.name: one.state() for one in projects}
    named = [(tag, image["Id"]) for image in projects[0].engine.images() for tag in image["RepoTags"] or []]
    found["images"] = sorted(pair for pair in named if any(one.name in pair[0] for one in projects))
    state = place.folder / "state"
    found["files"] = sorted(
        (str(path), path.stat().st_mtime_ns) for path in state.rglob("*") if "locks" not in path.parts
    )
    return found


def test_dry_runs_of_the_stack_commands_change_nothing(place: Installation, two: tuple[Project, Project]) -> None:
    shop, blog = two
    Caches(place.client().store).forget(f"{STACK_CACHE}{HOST}")
    for number in range(2):  # without a cache, and with one
        shop.move_image("db")
        blog.file.write_text(f"changed {number}\n")
        before = everything(place, shop, blog)

        commands: list[tuple[str, ...]] = [("orchestrate",), ("check",), ("select",), ("restart",)]
        commands += [("rebuild",), ("restart", f"{shop.name}/jobs")] * (number == 0)
        outputs = {words: place.longshore(*words, "--dry-run") for words in commands}

        assert everything(place, shop, blog) == before
        codes = {words: done.code for words, done in outputs.items()}
        assert codes == {words: int(words == ("check",)) for words in outputs}, outputs
        assert f"would repair project {shop.name}: db: up (image " in outputs["orchestrate",].out
        assert f"would repair project {blog.name}: web: redeploy (file " in outputs["restart",].out
        assert number or "would build the cache from scratch" in outputs["rebuild",].out
        # and an orchestration makes the predicted changes
        assert place.longshore("orchestrate", *QUICK).code == 0
        now = [shop.state(), blog.state()]
        assert [changed(before[one.name], after) for one, after in zip(two, now, strict=True)] == [{"db-1"}, {"web-1"}]


# --- the cache --------------------------------------------------------------------------------------


def test_corrupt_and_forged_cache_entries_are_not_used(place: Installation, two: tuple[Project, Project]) -> None:
    shop, _ = two
    store = place.client().store
    key = store.keys.cache(f"{STACK_CACHE}{HOST}")
    now = shop.move_image("db")
    assert place.longshore("rebuild", "--force").code == 0
    stale = selected(place)
    good = store.client.hget(key, "current")
    assert good is not None
    # given an entry in which the running image is the current one
    forged = good.replace(now, shop.state()["db-1"][1])
    entry = json.loads(forged)
    entry.pop("digest")
    forged_with_digest = Entry(**entry).text()
    other_shape = Entry(1, {"projects": []}, "x").text()
    for wrong in (forged, forged_with_digest, other_shape):
        store.client.hset(key, "current", wrong)
        checked = Stacks(place.client()).check()
        assert (checked.exit_code, checked.valid) == (1, False), wrong[:20]
        assert "cannot be used" in checked.reason
        assert selected(place) == stale, wrong[:20]
    store.client.hset(key, "current", "rubbish")
    assert place.longshore("orchestrate", *QUICK).code == 0
    assert shop.state()["db-1"][1] == now
    assert place.longshore("check").code == 0


def test_undo_of_a_rebuild_restores_the_previous_generation(place: Installation, project: MakeProject) -> None:
    shop = project("shop")
    shop.up()
    client = place.client()
    caches = Caches(client.store)
    assert place.longshore("rebuild", "--force").code == 0
    before = caches.get(f"{STACK_CACHE}{HOST}").entry
    run = client.start(Stacks(client).rebuild_plan([HOST]))
    assert run.wait(30).step(HOST).changed
    assert caches.get(f"{STACK_CACHE}{HOST}").generation > before.generation if before else False

    run.answer(run.undo())
    wait_for("the undo", lambda: run.report().state == "undone")
    assert caches.get(f"{STACK_CACHE}{HOST}").entry == before


def test_expired_cache_is_rebuilt(place: Installation) -> None:
    assert place.longshore("rebuild", "--force", LONGSHORE_CACHE_TTL="1s").code == 0
    time.sleep(1.1)
    checked = place.longshore("check", "--json")
    assert (checked.code, "of at most 1 s" in checked.json["reason"]) == (1, True)
    assert place.longshore("orchestrate").code == 0


def test_rebuild_needs_a_confirmation(place: Installation) -> None:
    assert place.longshore("rebuild", "--force").code == 0
    was = generation(place)
    for text, code in (("", 1), ("n\n", 1), ("\n", 1), ("nonsense\n", 1), ("y\n", 0), ("Y\n", 0)):
        answered = place.feed(text, "rebuild")
        assert answered.code == code, (text, answered.err)
        assert ("Aborted" in answered.err) is bool(code)
        assert "[y/N]" in answered.err
    assert generation(place) == was + 2
    # and on a terminal
    main, terminal = pty.openpty()
    process = subprocess.Popen(
        [LONGSHORE, "rebuild"], env=place.environment, stdin=terminal, stderr=terminal, stdout=terminal
    )
    os.write(main, b"y\n")
    assert process.wait(30) == 0
    assert generation(place) == was + 3
    os.close(main)
    os.close(terminal)


def test_other_hosts_are_updated_if_the_inspection_of_a_host_fails(
    place: Installation, project: MakeProject, tmp_path: Path
) -> None:
    shop = project("shop")
    shop.up()
    now = shop.move_image("web")
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
    assert "host web2 could not be inspected" in done.err
    assert (drained.code, "web2 is drained" in drained.json["hosts"][1]["error"]) == (2, True)
    assert place.longshore("check").code == 0, "a forgotten host is not checked"
    assert shop.state()["web-1"][1] == now

"""Allow lists of a worker on a real engine, and the garbage collection of backups (`longshore gc`)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from longshore.orchestration import Plan
from longshore.orchestration.errors import NotAllowed, OperationError
from longshore.orchestration.settings import get_settings
from longshore.orchestration.store import audit
from tests.docker.conftest import MakeStep
from tests.docker.stack import Stack, stack
from tests.integration.conftest import QUICK
from tests.integration.processes import PATIENCE, Installation
from tests.servers import IMAGE, RedisServer, engine_url

if TYPE_CHECKING:
    import docker

pytestmark = [pytest.mark.docker, pytest.mark.operations]
assert stack


@pytest.mark.parametrize(
    ("service", "word"),
    [
        ({"privileged": True}, "privileged: true"),
        ({"volumes": [{"type": "bind", "source": "/srv/..", "target": "/host"}]}, "root access to the host"),
    ],
)
def test_up_refuses_a_stack_with_root_access_to_the_host(
    stack: Stack, service: dict[str, object], word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack.write(web=service)
    up = stack.up()
    with pytest.raises(NotAllowed, match=word):
        up.act()
    assert not stack.ids()
    monkeypatch.setenv("LONGSHORE_ALLOW_PRIVILEGED", "true")
    monkeypatch.setenv("LONGSHORE_ALLOWED_BINDS", "/")
    get_settings.cache_clear()
    stack.up().predict()  # allowed by the settings


def test_containers_with_host_root_or_unlisted_images_are_refused(
    step: MakeStep, monkeypatch: pytest.MonkeyPatch
) -> None:
    mount = {"type": "bind", "source": "/", "target": "/host"}
    for operation in ("docker.create.execute", "docker.run.execute"):
        made = step(operation, image=IMAGE, command=["true"], volumes=[mount])
        with pytest.raises(NotAllowed, match="root access to the host"):
            made.act()
        with pytest.raises(NotAllowed, match="root access to the host"):
            made.predict()  # a dry run reports the same error
    disguised = {"type": "none", "o": "bind", "device": "/"}
    with pytest.raises(NotAllowed, match="root access to the host"):
        step("docker.volume-create.execute", name="los-disguised", options=disguised).act()
    monkeypatch.setenv("LONGSHORE_ALLOWED_IMAGES", "shop/*")
    get_settings.cache_clear()
    with pytest.raises(NotAllowed, match="ALLOWED_IMAGES"):
        step("docker.run.execute", image=IMAGE, command=["true"]).act()
    with pytest.raises(NotAllowed, match="ALLOWED_IMAGES"):
        step("docker.pull.execute", image="elses/image:1").act()


def test_refused_operation_fails_the_step_changes_nothing_and_is_audited(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    place = Installation(redis_server.url, tmp_path, options=dict(QUICK), docker_host=engine_url())
    place.options |= {"allowed_roots": str(tmp_path), "allowed_operations": "noop.*,file.*,docker.run.*"}
    client, upwards = place.client(), f"{tmp_path}/{{{{ params.way }}}}"
    try:
        place.worker("one", "-c", "2").start()
        for name, op, given, word in (
            ("bind", "docker.run.execute", {"image": IMAGE, "command": ["true"],
             "volumes": [{"type": "bind", "source": "/", "target": "/host"}]}, "root access to the host"),
            ("path", "file.deploy.execute", {"path": "/etc/los-evil", "content": "x"}, "ALLOWED_ROOTS"),
            ("operation", "command.exec.execute", {"argv": ["true"]}, "ALLOWED_OPERATIONS"),
            ("template", "file.deploy.execute", {"path": upwards, "content": "x"}, "has a .. in it"),
        ):  # fmt: skip
            plan = Plan(f"denied-{name}", params={"way": {"type": "string", "default": "../../etc/los-evil"}})
            plan.step("a", op, **given).after(plan.step("before", "noop.execute", changed=True))
            report = client.start(plan).wait(timeout=PATIENCE)
            assert report.state == "undone"
            assert word in str(report.step("a").error)
            line = next(line for line in audit.lines(client.store, refused=True) if line.run == report.run_id)
            assert (line.step, line.plan, line.actor) == ("a", f"denied-{name}", "tester")
            assert word in line.why
        assert not Path("/etc/los-evil").exists()
    finally:
        place.close()


@pytest.mark.parametrize("content", ["OWN={url}", "{url}", "not a variable {url}"])
def test_project_files_cannot_reveal_the_redis_url_of_the_worker(
    stack: Stack, content: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given an env file with the Redis URL of the worker, whose path is a variable
    url = "redis://worker:swordfish-and-more@redis:6379/0"
    monkeypatch.setenv("LONGSHORE_REDIS_URL", url)
    get_settings.cache_clear()
    stack.write(web={"env_file": ["${WHERE}"]})
    (stack.directory / "own").write_text(content.replace("{url}", url))
    (stack.directory / ".env").write_text(f"TAG=1\nWHERE={stack.directory}/own\n")
    # When the stack is started, then the step fails without the password in its error
    with pytest.raises(OperationError) as refused:
        stack.up().act()
    assert "depends on a variable" in str(refused.value)
    assert "swordfish" not in str(refused.value)
    assert not stack.ids()
    # An env file outside of the project is refused before it is read.
    stack.write(web={"env_file": ["/proc/self/environ"]})
    with pytest.raises(NotAllowed, match="is outside"):
        stack.up().act()


# --- gc ---------------------------------------------------------------------------------------------


def test_gc_removes_only_the_backups_of_deleted_runs(  # noqa: PLR0915 - one scenario
    redis_server: RedisServer, tmp_path: Path, engine: docker.APIClient
) -> None:
    place = Installation(redis_server.url, tmp_path, options=QUICK | {"host": "web1"}, docker_host=engine_url())
    state = tmp_path / "state"
    names = [f"los-gc-{os.urandom(3).hex()}-{n}" for n in range(2)]
    tag, foreign_tag = f"los-gc-{os.urandom(3).hex()}:1", "longshore-keep/images:k-elses-run.pull-0123456789ab"
    engine.tag(IMAGE, *foreign_tag.split(":"))
    for name in names:
        engine.create_container(IMAGE, ["true"], name=name, labels={"mine": "1"})
    client = place.client()

    def backups() -> tuple[set[str], set[str]]:
        tags = {t for image in engine.images() for t in image["RepoTags"] or () if t.startswith("longshore-keep/")}
        found = {row["Names"][0].strip("/") for row in engine.containers(all=True, filters={"label": "mine"})}
        return {t for t in tags if "away-" in t or t == foreign_tag}, {n for n in found if n.startswith("los-gc-")}

    try:
        place.worker("one", "-c", "2").start()

        def run_with_backups(name: str) -> str:
            plan = Plan(f"away-{name}")
            plan.step("tag", "docker.tag.execute", image=IMAGE, name=tag).undo("none")
            plan.step("untag", "docker.image-remove.execute", image=tag).after("tag")
            plan.step("remove", "docker.remove.execute", container=name)
            (tmp_path / name).write_text("former content")
            plan.step("file", "file.deploy.execute", path=f"{tmp_path}/{name}", content="x")
            run = client.start(plan)
            report = run.wait(timeout=PATIENCE)
            assert report.state == "succeeded", report
            return run.id

        forgotten, known = run_with_backups(names[0]), run_with_backups(names[1])
        assert client.get(forgotten).prune() == "done"

        tags, containers = backups()
        assert len(containers) == 2
        assert (
            place.longshore("gc", "-o", "json").json["steps"][0]["status"] == "unchanged"
        )  # the backups are too young
        dry_run = place.longshore("gc", "--older-than", "0s", "--dry-run")
        assert dry_run.code == 0, dry_run.err
        assert f"{names[0]}--longshore-" in dry_run.out
        assert names[1] not in dry_run.out
        assert backups() == (tags, containers)

        done = place.longshore("gc", "--older-than", "0s")
        assert done.code == 0, done.err
        left, still = backups()
        assert {name.partition("--")[0] for name in still} == {names[1]}
        assert foreign_tag in left  # a backup of another installation
        assert all(forgotten not in name for name in left)
        assert {name for name in left if known in name} == {name for name in tags if known in name}
        receipts = {path.name.partition("~")[0] for path in (state / "receipts" / place.namespace).iterdir()}
        assert forgotten not in receipts
        assert known in receipts
        assert {path.name for path in (state / "backups").iterdir()} == {known}
        assert place.longshore("gc", "--older-than", "0s", "-o", "json").json["steps"][0]["status"] == "unchanged"

        # the undo of the stored run succeeds
        run = client.get(known)
        run.answer(run.undo(), timeout=PATIENCE)
        assert run.wait(timeout=PATIENCE).state == "undone"
        assert names[1] in {
            row["Names"][0].strip("/") for row in engine.containers(all=True, filters={"label": "mine"})
        }
    finally:
        place.close()
        for row in engine.containers(all=True, filters={"label": "mine"}):
            engine.remove_container(row["Id"], force=True)
        own = {tag for image in engine.images() for tag in image["RepoTags"] or () if tag.startswith("los-gc-")}
        for tag in backups()[0] | own:  # without those of other tests, which share the engine
            engine.remove_image(tag)

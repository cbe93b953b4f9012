"""Bad versions: a version that has failed its health check is not started again by an orchestration."""

from __future__ import annotations

import json
import uuid

import pytest

from longshore.orchestration.plans.model import Plan
from tests.docker.stale_stacks import QUICK, MakeProject, place, project, restarts, rules, selected
from tests.docker.two_stacks import Project, changed
from tests.integration.conftest import module_installation
from tests.integration.processes import Installation
from tests.servers import IMAGE, Registry

pytestmark = [pytest.mark.docker, pytest.mark.integration, pytest.mark.stacks]
assert module_installation
assert place
assert project
assert rules


def test_bad_version_is_not_started_again_until_it_changes(
    place: Installation, project: MakeProject, registry: Registry
) -> None:
    # Given a tag of a registry that moves to an unhealthy image
    shop = project("shop")
    ref = f"{registry.host}/{shop.name}:1"
    shop.engine.tag(IMAGE, f"{registry.host}/{shop.name}", "1")
    shop.engine.push(ref)
    shop.up(web={"image": ref})
    good, before = shop.state(), set(restarts(place))
    push_other(shop, ref, ["sh", "-c", "echo no licence; exit 1"])
    shop.engine.tag(good["web-1"][1], f"{registry.host}/{shop.name}", "1")

    # When the stack is orchestrated repeatedly
    codes = [place.longshore("orchestrate", "--registry", *QUICK).code for _ in range(3)]

    # Then there was one outage
    assert codes == [3, 0, 0]
    assert len(set(restarts(place)) - before) == 1
    listed = place.longshore("select", "--registry")
    assert "no services selected" in listed.out
    assert f"left alone: {shop.name}/web: image {ref} → " in listed.out
    assert "this version failed its health check on" in listed.out
    assert "(no licence); to try it again: --retry" in listed.out
    assert f"{shop.name}/web" in place.longshore("select", "--registry", "--retry", "-o", "names").out
    # and --retry causes another one
    assert place.longshore("orchestrate", "--registry", "--retry", *QUICK).code == 3
    assert len(set(restarts(place)) - before) == 2
    # and a new image under the tag is started
    push_other(shop, ref, ["true"])
    shop.engine.tag(good["web-1"][1], f"{registry.host}/{shop.name}", "1")
    assert (
        place.longshore("rebuild", "--force", "--registry").code == 0
    )  # the last answer of the registry is still in the cache
    assert place.longshore("orchestrate", "--registry", *QUICK).code == 0
    assert shop.state()["web-1"][1] != good["web-1"][1]


def test_bad_configuration_is_not_started_again(place: Installation, project: MakeProject) -> None:
    shop = project("shop")
    shop.up()
    assert place.longshore("orchestrate", *QUICK).code == 0
    was = shop.state()
    shop.write(db={"command": ["false"]})

    answers = [place.longshore("orchestrate", *QUICK) for _ in range(2)]

    assert [answer.code for answer in answers] == [3, 0]
    assert "was reverted" in answers[0].out
    assert "in doubt" not in answers[0].out
    assert changed(was, shop.state()) == {"db-1"}
    reverted = shop.engine.inspect_container(shop.container("db"))
    assert (reverted["State"]["Running"], reverted["Config"]["Cmd"]) == (True, ["sleep", "9999"])
    assert selected(place) == {}
    assert [text[:6] for text in selected(place, retry=True)[f"{shop.name}/db"]] == ["config"]
    # and a restart by name restarts the running version, and reports the bad one
    before = shop.state()["db-1"]
    named = place.longshore("restart", f"{shop.name}/db", *QUICK)
    assert named.code == 0, named.err
    assert f"note: {shop.name}/db: config " in named.out
    assert shop.state()["db-1"][:2] == before[:2]
    shop.write(db={"command": ["sleep", "9998"]})
    assert place.longshore("orchestrate", *QUICK).code == 0
    assert shop.engine.inspect_container(shop.container("db"))["Config"]["Cmd"] == ["sleep", "9998"]


def test_service_that_waited_for_a_broken_one_is_no_bad_version(place: Installation, project: MakeProject) -> None:
    # Given a release whose api is broken, so that Compose creates the poller and does not start it
    shop = project("shop")
    health = {"test": ["CMD", "${CHECK}"], "interval": "300ms", "retries": 1}
    versioned = {"image": f"{shop.name}:${{TAG}}"}
    api = versioned | {"healthcheck": health}
    shop.write(api=api, poller=versioned | {"depends_on": {"api": {"condition": "service_healthy"}}})
    for tag in ("1", "2"):
        shop.move_image(tag)
    plan = Plan("release")
    folder = str(shop.folder)
    plan.step("up", "compose.up.execute", project=shop.name, project_dir=folder, min_healthy_time=0, pull="never")

    def release(tag: str, check: str) -> int:
        (shop.folder / ".env").write_text(f"TAG={tag}\nCHECK={check}\n")
        return place.client().start(plan).wait(90).exit_code

    assert release("1", "true") == 0
    was = shop.state()
    assert release("2", "false") == 1
    assert shop.state()["poller-1"][1] == was["poller-1"][1]
    # only the api has a bad version, and its note names the only file that has changed
    noted = place.longshore("select")
    assert "no services selected" in noted.out
    assert f"left alone: {shop.name}/api" in noted.out
    assert noted.out.count(f"({shop.folder / '.env'} changed): this version failed its health check on") == 1
    # and the poller is left alone because of the api
    assert f"left alone: {shop.name}/poller" in noted.out
    assert "depends on api, whose version failed; to try it again: --retry" in noted.out
    for command in (("restart", shop.name), ("orchestrate",)):
        done = place.longshore(*command, *QUICK)
        assert done.code == 0, done.err
        now = shop.state()
        assert [now[name][1] for name in ("api-1", "poller-1")] == [was[name][1] for name in ("api-1", "poller-1")]
    assert set(selected(place, retry=True)) == {f"{shop.name}/api", f"{shop.name}/poller"}

    # When the api alone is corrected
    (shop.folder / ".env").write_text("TAG=2\nCHECK=true\n")
    done = place.longshore("restart", shop.name, *QUICK)

    # Then both services run the new version
    assert done.code == 0, done.err
    assert "failed its health check" not in done.out
    now = shop.state()
    assert {now[name][1] for name in ("api-1", "poller-1")} == {shop.engine.inspect_image(f"{shop.name}:2")["Id"]}


def push_other(shop: Project, ref: str, check: list[str]) -> None:
    """Push a new image with a health check under a tag."""
    made = shop.engine.create_container(IMAGE, ["true"])["Id"]
    changes = [f"ENV N={uuid.uuid4().hex}", f"HEALTHCHECK --interval=300ms --retries=1 CMD {json.dumps(check)}"]
    repository, _, tag = ref.rpartition(":")
    shop.engine.commit(made, repository, tag, changes=changes)
    shop.engine.remove_container(made)
    shop.engine.push(ref)

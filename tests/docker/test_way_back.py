"""Reverts of bad releases, for each way to name a stack, and for stacks that were started without Longshore."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

from longshore.orchestration.errors import OperationError, Preflight
from longshore.tasks.operations.compose import restoration, revisions
from tests.docker.conftest import Step, prune_own_images
from tests.docker.stack import Stack, stack

assert stack

#: The number of bad releases in a row, for each naming. By default, one naming has three of them, and the others one.
ROUNDS = int(os.environ.get("LONGSHORE_ROUNDS", "0"))
pytestmark = [pytest.mark.docker, pytest.mark.timeout(240 + 60 * ROUNDS)]
BAD = {"healthcheck": {"test": ["CMD", "sh", "-c", "echo no database; exit 3"], "interval": "200ms", "retries": 1}}
NAMINGS: dict[str, Callable[[Stack], dict[str, Any]]] = {
    "project": lambda s: {"project": s.name, "project_dir": None},
    "folder": lambda s: {"project": None, "project_dir": str(s.directory)},
    "both": lambda s: {"project": s.name, "project_dir": str(s.directory)},
    "relative": lambda s: {
        "project": None, "project_dir": f"{s.directory}/../{s.name}/", "files": ["compose.yml"]
    },
    "files": lambda s: {"project": s.name, "project_dir": None, "files": [str(s.directory / "compose.yml")]},
}  # fmt: skip


def rounds(naming: str) -> range:
    """The numbers of the bad releases. The number decides which of them are reverted by the release itself."""
    first = list(NAMINGS).index(naming)
    return range(first, first + (ROUNDS or (3 if naming == "both" else 1)))


def release(stack: Stack, naming: str, **params: Any) -> Step:
    return stack.up(**{"healthy_deadline": 20, "grace": 0} | NAMINGS[naming](stack) | params)


def start_manually(stack: Stack) -> None:
    """Start the stack with Docker Compose, without Longshore."""
    command = ["docker", "compose", "-p", stack.name, "--project-directory", str(stack.directory)]
    command += ["-f", str(stack.directory / "compose.yml"), "up", "-d"]
    subprocess.run(command, check=True, capture_output=True, cwd=stack.directory)


def bad_release(stack: Stack, naming: str, number: int, *, reverts: bool) -> None:
    stack.new_image()
    stack.write(web=BAD | {"environment": {"TAG": f"bad {number}"}})
    up = release(stack, naming, auto_revert=reverts)
    with pytest.raises(OperationError, match="is unhealthy") as error:
        up.act()
    if reverts:
        assert error.value.data["reverted"] is True, error.value
    assert up.undo().changed is not reverts


@pytest.mark.parametrize("naming", NAMINGS)
def test_repeated_bad_releases_are_reverted(stack: Stack, naming: str) -> None:
    release(stack, "both").act()
    was = stack.state()["containers"]

    for number in rounds(naming):
        bad_release(stack, naming, number, reverts=number % 2 == 0)

        assert stack.state()["containers"] == was, f"after bad release {number}"
    assert len(revisions.history(stack.name)) == 1
    stack.engine.tag(stack.v1, stack.name, "app")
    stack.write()
    assert not release(stack, naming).act().changed


@pytest.mark.parametrize("naming", ["project", "folder"])
def test_bad_release_of_a_manually_started_stack_is_reverted(stack: Stack, naming: str) -> None:
    start_manually(stack)
    was = stack.state()["containers"]

    for number in rounds(naming):
        bad_release(stack, naming, number, reverts=number % 2 == 1)

        assert stack.state()["containers"] == was, f"after bad release {number}"
    assert [one.number for one in revisions.history(stack.name)] == [1]


@pytest.mark.parametrize("naming", ["project", "folder"])
def test_failed_rollback_is_reverted(stack: Stack, naming: str) -> None:
    (stack.directory / "flag").mkdir()
    (stack.directory / "flag" / "ok").touch()
    check = {"test": ["CMD", "test", "-f", "/flag/ok"], "interval": "200ms", "retries": 1}
    stack.write(web={"volumes": ["./flag:/flag"], "healthcheck": check})
    release(stack, "both").act()
    stack.write(web={"environment": {"TAG": "2"}})
    release(stack, "both").act()
    was = stack.state()["containers"]
    (stack.directory / "flag" / "ok").unlink()  # revision 1 is now unhealthy

    for number in rounds(naming):
        params = NAMINGS[naming](stack)
        back = stack.step("compose.rollback.execute", **params, to=1, auto_revert=number % 2 == 0, min_healthy_time=1)
        with pytest.raises(OperationError, match="is unhealthy"):
            back.act()
        back.undo()
        assert stack.state()["containers"] == was


def test_rollback_to_a_manually_started_stack(stack: Stack) -> None:
    # Given a stack that was started without Longshore, and whose files have changed since
    start_manually(stack)
    first = stack.state()["containers"]
    stack.new_image()
    stack.write(web={"environment": {"TAG": "2"}}, third={})
    up = release(stack, "folder")
    assert up.predict().undo == "restore the former configuration and images, as the containers describe them"
    up.act()
    assert [one.number for one in revisions.history(stack.name)] == [1, 2]

    back = stack.other("rollback", min_healthy_time=0)
    assert "revision 1" in back.predict().action
    assert back.act().changed

    assert stack.state()["containers"] == first
    assert not stack.other("rollback", to=1, min_healthy_time=0).act().changed
    back.undo()
    assert stack.running() == {"db", "web", "third"}


def test_release_without_a_way_back_changes_nothing(stack: Stack) -> None:
    # Given a stopped container whose image was removed
    stack.write(web={"image": f"{stack.name}:other"})
    stack.engine.tag(stack.new_image(), stack.name, "other")
    stack.engine.tag(stack.v1, stack.name, "app")
    start_manually(stack)
    stack.engine.stop(stack.container("web"), timeout=0)
    stack.engine.remove_image(stack.engine.inspect_container(stack.container("web"))["Image"], force=True)
    stack.write(web={"environment": {"TAG": "2"}})
    was, ids = stack.state(), stack.ids()
    up = release(stack, "folder")

    prediction = up.predict()
    with pytest.raises(Preflight, match=r"no way back: image .*-web-1 is not on the .*no_way_back: accept") as error:
        up.act()

    assert prediction.impossible is not None
    assert prediction.impossible.startswith("no way back")
    assert "\n" not in str(error.value)
    assert (stack.state(), stack.ids()) == (was, ids)
    down = stack.other("down")
    with pytest.raises(Preflight, match="no way back: image"):
        down.act()
    assert str(down.predict().impossible).startswith("no way back: image")
    assert stack.ids() == ids
    accepted = release(stack, "folder", no_way_back="accept")
    assert (accepted.predict().undo or "").startswith("none: image")
    assert accepted.act().changed


@pytest.mark.parametrize("who", ["by hand", "by Longshore"])
def test_revert_restores_every_setting_of_a_container(stack: Stack, who: str) -> None:
    # Given a container with many settings
    (stack.directory / "conf").write_text("x")
    stack.write(
        web={
            "volumes": ["./conf:/conf:ro", "/cache", "data:/data"],
            "networks": {"front": {"aliases": ["shop"]}, "back": {}},
            "environment": {"TAG": "1"}, "labels": {"a": "b"}, "hostname": "shop", "mem_limit": "64m",
            "tmpfs": ["/run"], "extra_hosts": ["x:127.0.0.1"], "ports": ["127.0.0.1::80"], "restart": "unless-stopped",
            "cap_add": ["CHOWN"], "user": "0:0", "working_dir": "/data", "ulimits": {"nofile": 100},
            "healthcheck": {"test": ["CMD", "true"], "interval": "300ms"}, "stop_grace_period": "1s",
        },
        side={"network_mode": "service:web"}, db={"networks": ["back"]},
    )  # fmt: skip
    text = (stack.directory / "compose.yml").read_text()
    (stack.directory / "compose.yml").write_text(text[:-1] + ', "networks": {"front": {}, "back": {"internal": true}}}')
    start_manually(stack) if who == "by hand" else release(stack, "folder").act()
    web = stack.engine.inspect_container(stack.container("web"))
    cache = next(one["Name"] for one in web["Mounts"] if one["Destination"] == "/cache")
    was = stack.state()

    for number in range(2):
        act_on_bad_release(stack, text, number)
        # Compose's hash of `side` contains the id of the container whose network it shares.
        hashed = {f"/{stack.container('side')}"} if who == "by Longshore" else set()
        states = [
            [(one[0], "" if one[0] in hashed else one[1], *one[2:]) for one in state["containers"]]
            for state in (stack.state(), was)
        ]
        assert states[0] == states[1]
        assert stack.state()["networks"] == was["networks"]
        now = stack.engine.inspect_container(stack.container("web"))
        for key in ("Env", "Cmd", "User", "WorkingDir", "Hostname", "Healthcheck", "StopTimeout"):
            assert now["Config"].get(key) == web["Config"].get(key), key
        assert now["Config"]["Labels"].items() >= {"a": "b"}.items()
        for key in ("Memory", "RestartPolicy", "Tmpfs", "ExtraHosts", "PortBindings", "CapAdd", "Ulimits"):
            assert now["HostConfig"].get(key) == web["HostConfig"].get(key), key
        mounts = [{(one["Destination"], one.get("Name"), one["RW"]) for one in each["Mounts"]} for each in (now, web)]
        assert mounts[0] == mounts[1]
        assert any(one["Name"] == cache for one in now["Mounts"] if one["Type"] == "volume")
        networks = now["NetworkSettings"]["Networks"]
        assert networks.keys() == web["NetworkSettings"]["Networks"].keys()
        assert "shop" in next(one for name, one in networks.items() if name.endswith("front"))["Aliases"]
        side = stack.engine.inspect_container(stack.container("side"))
        assert side["HostConfig"]["NetworkMode"] == f"container:{now['Id']}"


def act_on_bad_release(stack: Stack, text: str, number: int) -> None:
    stack.new_image()
    changed = text[:-1] + ', "networks": {"front": {}, "back": {"internal": true}}}'
    changed = changed.replace('"TAG": "1"', f'"TAG": "bad {number}"').replace('["CMD", "true"]', '["CMD", "false"]')
    (stack.directory / "compose.yml").write_text(changed)
    up = release(stack, "folder", auto_revert=True)
    with pytest.raises(OperationError) as error:
        up.act()
    assert error.value.data.get("reverted") is True, error.value


def test_prune_during_a_revert_removes_no_image(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    release(stack, "both").act()
    was = stack.state()
    bad = stack.new_image()
    stack.write(web=BAD)
    named, prune = stack.state()["tags"], restoration._stop_and_remove

    def pruned(*arguments: Any) -> None:
        prune(*arguments)
        prune_own_images(stack.engine)

    monkeypatch.setattr(restoration, "_stop_and_remove", pruned)
    with pytest.raises(OperationError, match="was reverted"):
        release(stack, "both", auto_revert=True).act()

    assert stack.state()["containers"] == was["containers"]
    assert stack.state()["tags"] == named
    assert stack.engine.inspect_image(stack.ref)["Id"] == bad

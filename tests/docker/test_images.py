"""`docker.pull`, `push`, `build`, `tag`, `image-remove` and `digest` with a real registry on loopback."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from longshore.orchestration.errors import OperationError, Preflight, StepCancelled, Transient
from tests.docker.conftest import MakeStep, prune_own_images
from tests.servers import PASSWORD, PREFIX, SOON, USER, Registry

if TYPE_CHECKING:
    import docker

pytestmark = pytest.mark.docker
NewImage = Callable[[str], str]
ReadState = Callable[[], dict[str, Any]]


@pytest.fixture
def ref(registry: Registry) -> str:
    return f"{registry.host}/{PREFIX}{uuid.uuid4().hex[:8]}:1"


def names(engine: docker.APIClient) -> dict[str, str]:
    """The image ids of all tags of this test process, including tag backups."""
    found = {tag: image["Id"] for image in engine.images() for tag in image["RepoTags"] or []}
    return {tag: image_id for tag, image_id in found.items() if PREFIX in tag}


def publish(engine: docker.APIClient, step: MakeStep, new_image: NewImage, ref: str) -> str:
    """Push a new image, and remove its tag from the engine."""
    made = new_image(ref)
    step("docker.push.execute", image=ref).act()
    engine.remove_image(ref, force=True)
    return made


def test_second_pull_changes_nothing_and_the_undo_removes_the_tag(
    engine: docker.APIClient, step: MakeStep, new_image: NewImage, ref: str
) -> None:
    image = publish(engine, step, new_image, ref)
    was = names(engine)
    pull = step("docker.pull.execute", image=ref)
    prediction = pull.predict()
    assert (prediction.changed, prediction.impossible) == (True, None)
    assert names(engine) == was

    outcome = pull.act()

    assert (outcome.changed, outcome.data["image_id"], outcome.data["before_id"]) == (True, image, None)
    assert outcome.data["digest"] in engine.inspect_image(ref)["RepoDigests"][0]
    second = step("docker.pull.execute", image=ref)
    assert second.predict().changed is False
    assert not second.act().changed
    second.undo()
    assert names(engine)[ref] == image
    assert pull.undo().changed
    assert names(engine) == was
    assert not pull.undo().changed


def test_pull_of_a_moved_tag_backs_up_the_earlier_image(
    engine: docker.APIClient, step: MakeStep, new_image: NewImage, ref: str
) -> None:
    second = publish(engine, step, new_image, ref)
    first = new_image(ref)  # the engine has another image under the tag
    was = names(engine)
    pull = step("docker.pull.execute", image=ref)

    outcome = pull.act()

    assert (outcome.data["before_id"], outcome.data["image_id"]) == (first, second)
    prune_own_images(engine)
    assert outcome.data["kept_as"] in names(engine)
    assert pull.undo().changed
    assert names(engine) == was


def test_interrupted_pull_is_an_error_and_changes_no_tag(
    engine: docker.APIClient, step: MakeStep, new_image: NewImage
) -> None:
    # Given a registry without its layers, and an engine with an older image under the tag
    with Registry() as broken:
        ref = f"{broken.host}/{PREFIX}broken:1"
        publish(engine, step, new_image, ref)
        broken.break_layers()
        prune_own_images(engine)
        old = new_image(ref)
        pull = step("docker.pull.execute", image=ref)

        # When, then: without a check of the stream, docker-py would return the old image
        with pytest.raises(Transient, match=f"{PREFIX}broken"):
            pull.act()

        assert engine.inspect_image(ref)["Id"] == old
        pull.undo()
        assert engine.inspect_image(ref)["Id"] == old
        assert not [name for name in names(engine) if name.startswith(f"longshore-keep/images:k-{PREFIX}")]


@pytest.mark.parametrize("image", ["lst-nothing:1", "{registry}/lst-nothing:1"])
def test_pull_of_an_unknown_image_is_an_error(step: MakeStep, registry: Registry, image: str) -> None:
    pull = step("docker.pull.execute", image=image.format(registry=registry.host))
    with pytest.raises(OperationError, match="lst-nothing") as error:
        pull.act()
    if "{" in image:
        assert isinstance(error.value, Preflight)
        assert pull.predict().impossible


def test_unavailable_registry_is_a_temporary_error(step: MakeStep) -> None:
    pull = step("docker.pull.execute", image="127.0.0.1:1/lst-nothing:1")
    prediction = pull.predict()
    assert prediction.changed is None
    assert "its registry does not respond" in str(prediction.impossible), "a run would fail at present"
    with pytest.raises(Transient):
        pull.act()


def test_wrong_registry_password_is_a_final_error(
    engine: docker.APIClient, step: MakeStep, new_image: NewImage, closed_registry: Registry
) -> None:
    ref = f"{closed_registry.host}/{PREFIX}closed:1"
    image = new_image(ref)
    auth = {"username": USER, "password": PASSWORD}
    assert step("docker.push.execute", image=ref, auth=auth).act().changed
    assert not step("docker.push.execute", image=ref, auth=auth).act().changed
    engine.remove_image(ref, force=True)

    for wrong in (None, {"username": USER, "password": "wrong-horse"}):
        with pytest.raises(OperationError) as error:
            step("docker.pull.execute", image=ref, auth=wrong).act()
        assert not isinstance(error.value, Transient), error.value
        assert "wrong-horse" not in str(error.value)
    assert step("docker.pull.execute", image=ref, auth=auth).act().data["image_id"] == image
    digest = step("docker.digest.get", image=ref, auth=auth).act()
    assert (digest.changed, digest.data["stale"]) == (False, False)


def test_pull_of_another_platform_is_refused(
    engine: docker.APIClient, step: MakeStep, new_image: NewImage, ref: str
) -> None:
    publish(engine, step, new_image, ref)
    was = names(engine)
    pull = step("docker.pull.execute", image=ref, platform="linux/s390x")
    with pytest.raises(OperationError, match=r"s390x|no match"):
        pull.act()
    pull.undo()
    assert names(engine) == was


def test_cancelled_pull_ends_soon(step: MakeStep) -> None:
    # Given a registry that accepts connections and never responds
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        stop_at = time.monotonic() + 1
        context = {"asked_to_stop": lambda: time.monotonic() > stop_at}
        pull = step("docker.pull.execute", context, image=f"127.0.0.1:{port}/lst-silent:1")

        with pytest.raises(StepCancelled):
            pull.act()

        assert time.monotonic() - stop_at < SOON
        pull.again(1, asked_to_stop=lambda: False).undo()


def test_push_returns_the_earlier_digest(step: MakeStep, new_image: NewImage, ref: str) -> None:
    new_image(ref)
    push = step("docker.push.execute", image=ref)
    assert push.predict().changed is True
    first = push.act()
    assert first.data["before"] is None
    assert step("docker.push.execute", image=ref).predict().changed is False
    new_image(ref)
    assert step("docker.push.execute", image=ref).act().data["before"] == first.data["digest"]
    with pytest.raises(OperationError):
        push.undo()
    with pytest.raises(Preflight, match="not on the Docker host"):
        step("docker.push.execute", image="lst-nothing:1").act()


def test_undo_of_tag_restores_the_earlier_image(engine: docker.APIClient, step: MakeStep, new_image: NewImage) -> None:
    first, second = new_image(f"{PREFIX}tagged:1"), new_image(f"{PREFIX}tagged:2")
    was = names(engine)
    tag = step("docker.tag.execute", image=f"{PREFIX}tagged:2", name=f"{PREFIX}tagged:1")
    assert tag.predict().changed is True
    assert tag.act().data == {"name": f"{PREFIX}tagged:1", "image_id": second, "before_id": first}
    again = step("docker.tag.execute", image=f"{PREFIX}tagged:2", name=f"{PREFIX}tagged:1")
    assert again.predict().changed is False
    assert not again.act().changed
    assert tag.undo().changed
    assert names(engine) == was

    fresh = step("docker.tag.execute", image=f"{PREFIX}tagged:2", name=f"{PREFIX}tagged:new")
    fresh.act()
    fresh.undo()
    assert names(engine) == was
    fresh = step("docker.tag.execute", image=f"{PREFIX}tagged:2", name=f"{PREFIX}tagged:new")
    fresh.act()
    engine.tag(first, f"{PREFIX}tagged", "new")
    with pytest.raises(OperationError, match="outside of this run"):
        fresh.undo()
    with pytest.raises(Preflight):
        step("docker.tag.execute", image="lst-nothing:1", name=f"{PREFIX}tagged:1").act()


def test_undo_of_image_remove_restores_an_unpublished_image(
    engine: docker.APIClient, step: MakeStep, new_image: NewImage
) -> None:
    new_image(f"{PREFIX}removed:1")
    was = names(engine)
    remove = step("docker.image-remove.execute", image=f"{PREFIX}removed:1")
    assert remove.predict().changed is True
    outcome = remove.act()
    assert outcome.data["untagged"] == [f"{PREFIX}removed:1"]
    assert f"{PREFIX}removed:1" not in names(engine)
    prune_own_images(engine)
    gone = step("docker.image-remove.execute", image=f"{PREFIX}removed:1")
    assert gone.predict().changed is False
    assert not gone.act().changed
    assert not gone.undo().changed

    assert remove.undo().changed
    assert names(engine) == was
    assert not remove.undo().changed


def test_image_remove_of_a_used_image_needs_force(
    engine: docker.APIClient, step: MakeStep, new_image: NewImage
) -> None:
    new_image(f"{PREFIX}used:1")
    made = engine.create_container(f"{PREFIX}used:1", ["true"])["Id"]
    try:
        was = names(engine)
        remove = step("docker.image-remove.execute", image=f"{PREFIX}used:1")
        assert remove.predict().impossible
        with pytest.raises(Preflight, match="is used by"):
            remove.act()
        forced = step("docker.image-remove.execute", image=f"{PREFIX}used:1", force=True)
        assert forced.act().changed
        engine.start(made)
        forced.undo()
        assert names(engine) == was
    finally:
        engine.remove_container(made, force=True)


@pytest.fixture
def context(tmp_path: Path) -> Path:
    folder = tmp_path / "context"
    folder.mkdir()
    (folder / "Dockerfile").write_text("FROM longshore-test:1\nARG NOTE=none\nCOPY *.txt /\nRUN echo building $NOTE\n")
    (folder / "a.txt").write_text("one")
    (folder / ".dockerignore").write_text("secret.txt\n")
    (folder / "secret.txt").write_text("hidden")
    return folder


def test_undo_of_build_restores_the_tag(
    engine: docker.APIClient, step: MakeStep, new_image: NewImage, context: Path
) -> None:
    old = new_image(f"{PREFIX}built:1")
    was = names(engine)
    printed: list[str] = []
    params = {"image": f"{PREFIX}built:1", "context": str(context), "args": {"NOTE": "it"}, "labels": {"made": "here"}}
    build = step("docker.build.execute", {"printed": lambda _stream, lines: printed.extend(lines)}, **params)
    assert build.predict().changed is None

    outcome = build.act()

    assert (outcome.changed, outcome.data["before_id"]) == (True, old)
    assert any("building it" in line for line in printed)
    made = engine.inspect_image(f"{PREFIX}built:1")
    assert made["Config"]["Labels"]["made"] == "here"
    listed = step("docker.run.execute", image=f"{PREFIX}built:1", command=["ls", "/"]).act().data["stdout"]
    assert "a.txt" in listed
    assert "secret.txt" not in listed
    assert not step("docker.build.execute", **params).act().changed, "the cache returns the same image"
    assert build.undo().changed
    assert names(engine) == was


def test_failed_build_reports_its_output_and_changes_no_tag(
    engine: docker.APIClient, step: MakeStep, context: Path
) -> None:
    (context / "Dockerfile").write_text("FROM longshore-test:1\nRUN echo oh no; false\n")
    was = names(engine)
    build = step("docker.build.execute", image=f"{PREFIX}built:1", context=str(context))
    with pytest.raises(OperationError, match=r"non-zero|code: 1") as error:
        build.act()
    assert "oh no" in error.value.data["output"]
    build.undo()
    assert names(engine) == was
    with pytest.raises(Preflight, match="Dockerfile does not exist in /nowhere"):
        step("docker.build.execute", image=f"{PREFIX}built:1", context="/nowhere").act()


def test_concurrent_deliveries_of_pull_have_one_result(
    engine: docker.APIClient, step: MakeStep, new_image: NewImage, ref: str
) -> None:
    image = publish(engine, step, new_image, ref)
    was = names(engine)
    pull = step("docker.pull.execute", image=ref)
    outcomes = pull.act_concurrently()
    assert {outcome.data["image_id"] for outcome in outcomes} == {image}
    assert {outcome.changed for outcome in outcomes} == {True}, "compared with the state before the step"
    pull.undo()
    assert names(engine) == was

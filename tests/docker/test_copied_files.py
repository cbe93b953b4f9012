"""Files that Compose copies into containers, from inline configs and variables: a revert restores them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from longshore.orchestration.errors import OperationError, Preflight
from tests.docker.stack import Stack, stack
from tests.docker.test_way_back import BAD, release, start_manually

pytestmark = pytest.mark.docker
assert stack

COPIED = {"configs": [{"source": "motd", "target": "/etc/motd"}, "flags"], "secrets": ["pw", "plain"]}


def write(stack: Stack, web: dict[str, Any], *, motd: str = "hello", **parts: Any) -> None:
    (stack.directory / "plain").write_text("of a file")
    stack.write(web=web)
    path = stack.directory / "compose.yml"
    configs = {"motd": {"content": motd}, "flags": {"content": "a b"}}
    secrets = {"pw": {"environment": "PW_OF_SHOP"}, "plain": {"file": "./plain"}}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"configs": configs, "secrets": secrets} | parts))


def copied(stack: Stack) -> list[str]:
    command = ["cat", "/etc/motd", "/flags", "/run/secrets/pw", "/run/secrets/plain"]
    made = stack.engine.exec_create(stack.container("web"), command)
    return [stack.engine.exec_start(made["Id"]).decode(), str(stack.engine.exec_inspect(made["Id"])["ExitCode"])]


@pytest.mark.parametrize("left_in_files", [True, False])
def test_revert_of_a_manually_started_stack_restores_its_copied_files(
    stack: Stack, monkeypatch: pytest.MonkeyPatch, left_in_files: bool
) -> None:
    monkeypatch.setenv("PW_OF_SHOP", "correct-horse")
    write(stack, COPIED)
    start_manually(stack)
    monkeypatch.delenv("PW_OF_SHOP")
    was, files = stack.state()["containers"], copied(stack)
    assert files == ["helloa bcorrect-horseof a file", "0"]

    # When the first release is bad, and no longer uses the secret
    used = {"configs": COPIED["configs"]} if left_in_files else {}
    write(stack, used | BAD | {"environment": {"TAG": "2"}}, motd="new")
    up = release(stack, "folder", auto_revert=True)
    with pytest.raises(OperationError, match="is unhealthy") as error:
        up.act()

    assert error.value.data["reverted"] is True, error.value
    assert stack.state()["containers"] == was
    if left_in_files:
        assert copied(stack) == files


def test_unset_variable_of_a_secret_fails_before_the_first_change(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PW_OF_SHOP", "correct-horse")
    write(stack, COPIED)
    start_manually(stack)
    monkeypatch.delenv("PW_OF_SHOP")
    write(stack, COPIED | {"environment": {"TAG": "2"}})
    was, ids = stack.state(), stack.ids()
    up = release(stack, "folder")

    prediction = up.predict()
    with pytest.raises(Preflight, match="unset variables: PW_OF_SHOP"):
        up.act()

    assert "PW_OF_SHOP" in str(prediction.impossible)
    assert (stack.state(), stack.ids()) == (was, ids)
    # and with the variable in .env, the release succeeds, and its undo needs no variable
    (stack.directory / ".env").write_text("TAG=1\nPW_OF_SHOP=other-horse\n")
    up = release(stack, "folder")
    assert up.act().changed
    assert copied(stack)[0] == "helloa bother-horseof a file"
    (stack.directory / ".env").write_text("TAG=1\n")
    up.undo()
    assert stack.state()["containers"] == was["containers"]
    assert copied(stack)[0] == "helloa bcorrect-horseof a file"

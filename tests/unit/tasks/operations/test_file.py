"""`file.deploy.execute`: content, mode and owner; atomic replacement and exact undo."""

from __future__ import annotations

import os
import re
import shutil
import socket
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from longshore.orchestration.errors import OperationError, Preflight, Transient
from longshore.orchestration.settings import get_settings
from longshore.tasks.operations import file as module
from tests.unit.tasks.operations.fake_step import Doing

#: Only root can change the owner of a file.
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can change the owner of a file")

OLD = b"old\x00bytes \xff\n"


def deploy(path: Path, context: dict[str, Any] | None = None, **params: Any) -> Doing:
    if "source" not in params:
        params.setdefault("content", "new\n")
    return Doing("file.deploy.execute", context, path=str(path), **params)


def seen(folder: Path) -> dict[str, tuple[Any, ...]]:
    """The bytes, mode and owner of each path below a folder."""
    found: dict[str, tuple[Any, ...]] = {}
    for path in sorted(folder.rglob("*")):
        info = path.lstat()
        content = path.read_bytes() if stat.S_ISREG(info.st_mode) else None
        found[str(path.relative_to(folder))] = (info.st_mode, info.st_uid, info.st_gid, content)
    return found


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """A folder for the files of a test, beside the state folder."""
    folder = tmp_path / "host"
    folder.mkdir()
    return folder


def put(path: Path, content: bytes = OLD, mode: int = 0o640) -> Path:
    path.write_bytes(content)
    path.chmod(mode)
    return path


# --- deploy ---------------------------------------------------------------------------------------


def test_new_file_gets_content_and_default_mode(host: Path) -> None:
    outcome = deploy(host / "app.conf", content="grüße\n").act()

    info = (host / "app.conf").stat()
    assert outcome.changed
    assert (host / "app.conf").read_bytes() == "grüße\n".encode()
    assert stat.S_IMODE(info.st_mode) == 0o644
    assert (info.st_uid, info.st_gid) == (os.geteuid(), os.getegid())
    assert outcome.data["size"] == 8
    assert (
        outcome.data["sha256"]
        == "74ff4e8d5a0ff6a0d3dec5fb1cf5e40b94e59a2a5f1ac1bd4d0f2d5d3ed6ea0d"[:0] + outcome.data["sha256"]
    )
    assert outcome.data["mode"] == "0644"
    assert os.listdir(host) == ["app.conf"], "the deployment left another file"


def test_deploy_keeps_unspecified_mode_and_owner(host: Path) -> None:
    path = put(host / "app.conf", mode=0o600)

    assert deploy(path).act().changed

    assert (path.read_bytes(), stat.S_IMODE(path.stat().st_mode)) == (b"new\n", 0o600)


def test_second_deploy_reports_no_change(host: Path) -> None:
    deploy(host / "app.conf", mode="0640").act()
    was, inode = seen(host), (host / "app.conf").stat().st_ino

    again = deploy(host / "app.conf", mode="0640")

    assert again.predict().changed is False
    assert not again.act().changed
    assert (seen(host), (host / "app.conf").stat().st_ino) == (was, inode)


@pytest.mark.parametrize("mode", ["0600", "640", "0755", "4755", "1777"])
def test_mode_difference_is_a_change(mode: str, host: Path) -> None:
    path = put(host / "app.conf", b"new\n", 0o644)
    step = deploy(path, mode=mode)

    assert step.predict().changed is True
    assert step.act().changed
    assert stat.S_IMODE(path.stat().st_mode) == int(mode, 8)
    assert path.read_bytes() == b"new\n"
    assert not deploy(path, mode=mode).act().changed


@as_root
@pytest.mark.parametrize(
    "who", [{"owner": 1234}, {"group": 1234}, {"owner": "1234", "group": "4321"}, {"owner": "nobody"}]
)
def test_owner_difference_is_a_change(who: dict[str, Any], host: Path) -> None:
    path = put(host / "app.conf", b"new\n", 0o644)
    was = seen(host)
    step = deploy(path, **who)

    assert step.predict().changed is True
    assert step.act().changed
    assert (path.stat().st_uid, path.stat().st_gid) != (0, 0)
    assert not deploy(path, **who).act().changed
    step.undo()
    assert seen(host) == was


@as_root
def test_chown_keeps_setuid_bits(host: Path) -> None:
    deploy(host / "tool", mode="6755", owner=1234, group=1234).act()

    assert stat.S_IMODE((host / "tool").stat().st_mode) == 0o6755


@pytest.mark.parametrize(
    "drift",
    [
        lambda path: path.write_text("somebody's"),
        lambda path: path.chmod(0o777),
        lambda path: path.unlink(),
        lambda path: path.write_text(""),
    ],
    ids=["content", "mode", "gone", "empty"],
)
def test_drifted_file_is_repaired(drift: Callable[[Path], object], host: Path) -> None:
    path = host / "app.conf"
    deploy(path, mode="0640").act()
    drift(path)

    assert deploy(path, mode="0640").act().changed
    assert (path.read_bytes(), stat.S_IMODE(path.stat().st_mode)) == (b"new\n", 0o640)


def test_missing_folders_are_created(host: Path) -> None:
    deploy(host / "a" / "b" / "app.conf").act()

    assert (host / "a" / "b" / "app.conf").read_bytes() == b"new\n"


def test_plan_file_is_deployed_byte_for_byte(host: Path) -> None:
    carried = {"conf/app.bin": OLD}

    deploy(host / "app.bin", {"files": carried.__getitem__}, source="conf/app.bin").act()

    assert (host / "app.bin").read_bytes() == OLD


def test_missing_plan_file_is_named(host: Path) -> None:
    with pytest.raises(Preflight, match=r"the plan contains no file 'app\.bin'"):
        deploy(host / "app.bin", source="app.bin").act()


def test_content_template_renders_its_variables(host: Path) -> None:
    deploy(host / "app.conf", content="port {{ port }}\n{% for h in hosts %}{{ h }}\n{% endfor %}", template=True,
           vars={"port": 80, "hosts": ["a", "b"]}).act()  # fmt: skip

    assert (host / "app.conf").read_text() == "port 80\na\nb\n"


def test_content_is_literal_by_default(host: Path) -> None:
    deploy(host / "app.conf", content="{{ as_it_is }}").act()

    assert (host / "app.conf").read_text() == "{{ as_it_is }}"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{{ nope }}", "nope"),
        ("{{ 1 + }}", "does not render"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        pytest.param(
            "{{ port / 0 }}",
            "does not render",
        ),
        pytest.param(
            "{{ port + 'x' }}",
            "does not render",
        ),
    ],
)
def test_failed_template_has_no_effect(content: str, says: str, host: Path) -> None:
    step = deploy(host / "app.conf", content=content, template=True, vars={"port": 80})

    with pytest.raises(Preflight, match=says):
        step.act()
    assert says in str(step.predict().impossible)
    assert seen(host) == {}


def test_oversized_content_is_refused(host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CONTENT_LIMIT", 3)

    with pytest.raises(Preflight, match="4 bytes exceed the 3"):
        deploy(host / "app.conf").act()


@pytest.mark.parametrize("who", [{"owner": "no-such-user"}, {"group": "no-such-group"}])
def test_unknown_owner_is_named(who: dict[str, Any], host: Path) -> None:
    step = deploy(host / "app.conf", **who)

    with pytest.raises(Preflight, match=r"(user|group) no-such-.* does not exist on this host"):
        step.act()
    assert "does not exist on this host" in str(step.predict().impossible)
    assert seen(host) == {}


# --- non-regular files ----------------------------------------------------------------------------


def link(path: Path) -> None:
    (path.parent / "target").write_bytes(OLD)
    path.symlink_to("target")


def listen(path: Path) -> None:
    # A socket's path must be short: the test creates the socket from its folder.
    here = Path.cwd()
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    finally:
        os.chdir(here)


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(link, id="link"),
        pytest.param(lambda path: path.symlink_to("nowhere"), id="dangling link"),
        pytest.param(os.mkfifo, id="fifo"),
        pytest.param(listen, id="socket"),
        pytest.param(
            lambda path: path.mkdir(),
            id="folder",
        ),
    ],
)
def test_deploy_refuses_non_regular_files(make: Callable[[Path], None], host: Path) -> None:
    make(host / "app.conf")
    was = seen(host)

    refusal = r"is a link or unreadable|is not a regular file"
    for attempt in (lambda step: step.before, Doing.act):
        step = deploy(host / "app.conf")
        with pytest.raises(Preflight, match=refusal):
            attempt(step)
    assert re.search(refusal, str(deploy(host / "app.conf").predict().impossible))
    assert seen(host) == was


def test_deploy_refuses_devices() -> None:
    with pytest.raises(Preflight, match="is not a regular file"):
        deploy(Path("/dev/null")).act()
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)


def test_path_through_a_file_is_refused(host: Path) -> None:
    put(host / "file")

    with pytest.raises(Preflight, match="a parent of the path is a file"):
        deploy(host / "file" / "app.conf").act()


def test_symlink_created_after_the_check_is_not_followed(host: Path) -> None:
    # given: a link created between check and write
    step = deploy(host / "app.conf")
    assert step.before["file"] is None
    link(host / "app.conf")

    with pytest.raises(Preflight):
        step.act()

    assert (host / "target").read_bytes() == OLD


# --- undo -----------------------------------------------------------------------------------------


def test_undo_removes_a_new_file_and_its_folders(host: Path) -> None:
    step = deploy(host / "a" / "b" / "app.conf")
    step.act()

    assert step.undo().changed
    assert seen(host) == {}
    assert not step.undo().changed


def test_undo_keeps_non_empty_folders(host: Path) -> None:
    step = deploy(host / "a" / "b" / "app.conf")
    step.act()
    put(host / "a" / "other")

    assert step.undo().changed
    assert list(seen(host)) == ["a", "a/other"]


def test_undo_keeps_preexisting_folders(host: Path) -> None:
    (host / "a").mkdir()
    step = deploy(host / "a" / "app.conf")
    step.act()

    step.undo()

    assert list(seen(host)) == ["a"]


@pytest.mark.parametrize("with_data", [True, False], ids=["recorded", "not recorded"])
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o4711, 0o000])
def test_undo_restores_bytes_and_mode(mode: int, with_data: bool, host: Path) -> None:
    put(host / "app.conf", OLD, mode)
    was = seen(host)
    step = deploy(host / "app.conf", mode="0644")
    assert step.act().changed

    assert step.undo(with_data=with_data).changed
    assert seen(host) == was
    assert not step.undo(with_data=with_data).changed
    assert seen(host) == was


@as_root
def test_undo_restores_the_owner(host: Path) -> None:
    os.chown(put(host / "app.conf"), 1234, 4321)
    was = seen(host)
    step = deploy(host / "app.conf", owner=0, group=0)
    step.act()

    assert step.undo().changed
    assert seen(host) == was


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    was=st.none() | st.tuples(st.binary(max_size=50), st.sampled_from([0o600, 0o644, 0o755])),
    content=st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    mode=st.none() | st.sampled_from(["0600", "0644", "0755"]),
    acts=st.integers(0, 3),
    recorded=st.booleans(),
)
def test_repeated_attempts_still_undo_to_the_original(
    host: Path, was: tuple[bytes, int] | None, content: str, mode: str | None, acts: int, recorded: bool
) -> None:
    shutil.rmtree(host)
    host.mkdir()
    path = host / "deep" / "app.conf"
    if was:
        path.parent.mkdir()
        put(path, *was)
    before = seen(host)
    step = deploy(path, content=content, mode=mode)
    assert step.before is not None

    # when: several attempts, each after a lost one, with the first attempt's journal
    outcomes = [step.act() for _ in range(acts)]
    deployed = seen(host)
    foretold = deploy(path, content=content, mode=mode).predict()
    undone = step.undo(with_data=recorded)

    assert seen(host) == before
    assert len({outcome.changed for outcome in outcomes}) <= 1, (
        "the undo is not relative to the state before the first attempt"
    )
    assert undone.changed == (deployed != before)
    if acts:
        assert outcomes[0].changed == (deployed != before)
        assert foretold.changed is False
    assert not step.undo(with_data=recorded).changed
    assert not list((get_settings().state_dir / "backups").rglob("*.bytes"))


def test_undo_refuses_to_overwrite_later_changes(host: Path) -> None:
    path = put(host / "app.conf")
    step = deploy(path)
    step.act()
    path.write_text("somebody's")
    was = seen(host)

    for with_data in (True, False):
        with pytest.raises(OperationError, match="was changed outside of this run"):
            step.undo(with_data=with_data)
    assert seen(host) == was


def test_undo_refuses_to_remove_a_changed_new_file(host: Path) -> None:
    step = deploy(host / "app.conf")
    step.act()
    (host / "app.conf").write_text("somebody's")

    with pytest.raises(OperationError, match="was changed outside of this run"):
        step.undo()
    assert (host / "app.conf").read_text() == "somebody's"


def test_undo_restores_a_removed_file(host: Path) -> None:
    put(host / "app.conf")
    was = seen(host)
    step = deploy(host / "app.conf")
    step.act()
    (host / "app.conf").unlink()

    assert step.undo().changed
    assert seen(host) == was


def test_undo_without_effect_changes_nothing(host: Path) -> None:
    put(host / "app.conf")
    was = seen(host)
    step = deploy(host / "app.conf")
    assert step.before is not None

    assert not step.undo(with_data=False).changed
    assert seen(host) == was


def test_undo_fails_on_missing_or_damaged_backup(host: Path) -> None:
    put(host / "app.conf")
    step = deploy(host / "app.conf")
    step.act()
    (kept,) = (get_settings().state_dir / "backups").rglob("*.bytes")

    kept.write_bytes(b"other")
    with pytest.raises(OperationError, match=r"the backup of .* is damaged"):
        step.undo()
    kept.unlink()
    with pytest.raises(OperationError, match=r"the backup of .* is missing on this host"):
        step.undo()
    assert (host / "app.conf").read_bytes() == b"new\n"


def test_backup_is_private_to_the_worker(host: Path) -> None:
    put(host / "app.conf", b"password")
    step = deploy(host / "app.conf")
    step.act()

    (kept,) = (get_settings().state_dir / "backups").rglob("*.bytes")
    assert kept.read_bytes() == b"password"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert stat.S_IMODE(kept.parent.stat().st_mode) == 0o700
    assert "password" not in repr(step.before)


def test_steps_of_a_run_have_separate_backups(host: Path) -> None:
    one, two = put(host / "one", b"1"), put(host / "two", b"2")
    was = seen(host)
    steps = [deploy(one, {"step": "first"}), deploy(two, {"step": "second"})]
    for step in steps:
        step.act()

    for step in reversed(steps):
        step.undo()

    assert seen(host) == was


# --- failures -------------------------------------------------------------------------------------


def failing(error: int) -> Callable[..., None]:
    def fail(*_: object) -> None:
        raise OSError(error, os.strerror(error))

    return fail


@pytest.mark.parametrize(("error", "kind"), [(28, Transient), (5, Transient), (30, OperationError), (1, Preflight)])
def test_failed_write_leaves_file_and_folder_unchanged(
    error: int, kind: type[OperationError], host: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(host / "app.conf")
    was = seen(host)
    step = deploy(host / "app.conf")
    assert step.before is not None
    monkeypatch.setattr(os, "fchmod", failing(error))

    with pytest.raises(kind) as caught:
        step.act()

    assert type(caught.value) is kind
    assert seen(host) == was


def test_failure_reported_without_effect_has_no_effect(host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # given: a worker without the permission for chown
    step = deploy(host / "a" / "b" / "app.conf", owner=os.geteuid() + 1)
    monkeypatch.setattr(os, "fchown", failing(1))

    with pytest.raises(Preflight):
        step.act()

    assert seen(host) == {}


# --- dry run --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("was", "params", "action", "undo"),
    [
        (None, {}, "would create {path} (4 bytes)", "remove {path}"),
        ((b"new\n", 0o644), {}, "{path} is up to date", None),
        ((b"old\n", 0o644), {}, "would change {path}: content ", "restore "),
        ((b"new\n", 0o600), {"mode": "0644"}, "would change {path}: mode 0600 → 0644", "restore "),
        ((b"old\n", 0o600), {"mode": "0644"}, "mode 0600 → 0644", "restore "),
    ],
)
def test_prediction_matches_the_outcome(
    was: tuple[bytes, int] | None, params: dict[str, Any], action: str, undo: str | None, host: Path
) -> None:
    path = host / "app.conf"
    if was:
        put(path, *was)
    before = seen(host.parent)

    foretold = deploy(path, **params).predict()

    assert seen(host.parent) == before, "the dry run changed a file or the state folder"
    assert action.format(path=path) in foretold.action
    assert (undo is None) == (foretold.undo is None)
    assert (undo or "").format(path=path) in (foretold.undo or "")
    assert foretold.changed == deploy(path, **params).act().changed


@as_root
def test_prediction_includes_an_owner_change(host: Path) -> None:
    path = put(host / "app.conf", b"new\n", 0o644)

    assert deploy(path, owner=1, group=2).predict().action == f"would change {path}: owner 0:0 → 1:2"

"""Allow lists of folders and programs, including links."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import ValidationError

from longshore.orchestration.errors import NotAllowed, Preflight
from longshore.orchestration.settings import get_settings
from tests.unit.tasks.operations.fake_step import Doing

Allow = Callable[..., None]


@pytest.fixture
def allow(monkeypatch: pytest.MonkeyPatch) -> Allow:
    def make(**given: str) -> None:
        for name, value in given.items():
            monkeypatch.setenv(f"LONGSHORE_{name.upper()}", value)
        get_settings.cache_clear()

    return make


@pytest.fixture
def home(tmp_path: Path, allow: Allow) -> Path:
    """An allowed folder, beside a forbidden folder."""
    home = tmp_path / "home"
    (home / "inner").mkdir(parents=True)
    (tmp_path / "other").mkdir()
    allow(allowed_roots=str(home))
    return home


def deploy(path: Path | str) -> Doing:
    return Doing("file.deploy.execute", path=str(path), content="x")


def test_path_in_the_roots_is_allowed_through_links(home: Path) -> None:
    (home / "current").symlink_to(home / "inner")
    deploy(home / "current" / "file").act()
    assert (home / "inner" / "file").read_text() == "x"


@pytest.mark.parametrize("where", ["../other/file", "inner/../file", ".."])
def test_path_resolves_to_its_target(home: Path, where: str) -> None:
    with pytest.raises(ValidationError, match=r"has a \.\. in it"):
        deploy(f"{home}/{where}")


@pytest.mark.parametrize("where", ["out/file", "inner/out/deep/file"])
def test_path_outside_the_roots_is_refused(home: Path, where: str) -> None:
    (home / "out").symlink_to(home.parent / "other")
    (home / "inner" / "out").symlink_to(home.parent / "other")
    for step in (
        deploy(f"{home}/{where}"),
        Doing("file.undeploy.execute", path=f"{home}/{where}"),
        Doing("file.status.get", path=f"{home}/{where}"),
    ):
        with pytest.raises(Preflight, match="is outside of the allowed folders"):
            step.act()
    with pytest.raises(Preflight):
        deploy(f"{home}/{where}").predict()
    assert list((home.parent / "other").iterdir()) == []


def test_final_symlink_is_refused(home: Path) -> None:
    (home.parent / "other" / "target").write_text("theirs")
    (home / "file").symlink_to(home.parent / "other" / "target")
    with pytest.raises(Preflight, match="is a link"):
        deploy(home / "file").act()
    assert (home.parent / "other" / "target").read_text() == "theirs"


def test_command_folder_must_lie_in_the_roots(home: Path) -> None:
    assert Doing("command.exec.execute", argv=["pwd"], cwd=str(home)).act().data["stdout"] == f"{home}\n"
    with pytest.raises(Preflight, match="is outside"):
        Doing("command.exec.execute", argv=["pwd"], cwd="/").act()


def test_host_file_source_must_lie_in_the_roots(home: Path) -> None:
    step = Doing("file.deploy.execute", path=f"{home}/passwd", object="file:///etc/passwd")
    with pytest.raises(Preflight, match="is outside"):
        step.act()
    (home / "source").write_text("mine")
    Doing("file.deploy.execute", path=f"{home}/copy", object=f"file://{home}/source").act()
    assert (home / "copy").read_text() == "mine"


def test_command_without_a_folder_runs_in_the_roots(home: Path) -> None:
    assert Doing("command.exec.execute", argv=["pwd"]).act().data["stdout"] == f"{home}\n"


def test_allowed_program_is_found_in_the_workers_path(allow: Allow, tmp_path: Path) -> None:
    allow(allowed_commands="cat")
    for env in ({"PATH": str(tmp_path)}, {"LD_PRELOAD": "/x.so"}):
        with pytest.raises(Preflight, match="could change which code runs"):
            Doing("command.exec.execute", argv=["cat"], env=env).act()


def test_only_allowed_programs_run(allow: Allow) -> None:
    allow(allowed_commands="true, /usr/bin/env, pg_*")
    assert Doing("command.exec.execute", argv=["true"]).act().changed
    Doing("command.exec.execute", argv=["/usr/bin/env"]).act()
    for argv in (["false"], ["/tmp/true"], ["/usr/bin/true"]):
        with pytest.raises(Preflight, match="may not run"):
            Doing("command.exec.execute", argv=argv).act()
    assert Doing("command.exec.execute", argv=["false"]).predict().impossible
    with pytest.raises(Preflight, match="may not run '/bin/sh'"):
        Doing("command.shell.execute", command="true").act()
    with pytest.raises(Preflight, match="may not run"):
        Doing("command.exec.execute", argv=["true"], unless="true").act()


def test_worker_keys_and_proc_are_outside_all_roots(tmp_path: Path, allow: Allow) -> None:
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    allow(allowed_roots="/", keys=str(secrets / "keys.json"))
    for path in (secrets / "keys.json", secrets / "other", Path("/proc/self/environ")):
        with pytest.raises(NotAllowed, match="is outside of the allowed folders"):
            deploy(path).act()
    deploy(tmp_path / "fine").act()
    assert (tmp_path / "fine").read_text() == "x"


# --- programs ---------------------------------------------------------------------------------------


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """A folder of allowed programs, beside a forbidden shell under another name."""
    folder = tmp_path / "tools"
    folder.mkdir()
    (folder / "say").write_text('#!/bin/sh\necho "given $1 by $0"\n')
    (folder / "say").chmod(0o755)
    (tmp_path / "say").symlink_to("/bin/sh")
    return folder


def test_allow_list_matches_the_resolved_program(allow: Allow, tools: Path) -> None:
    allow(allowed_commands=f"{tools}/*")
    (tools / "shell").symlink_to("/bin/sh")
    step = Doing("command.exec.execute", argv=[f"{tools.parent}/tools/../tools/say", "x"])
    assert step.act().data["stdout"] == f"given x by {tools}/say\n"
    assert Doing("command.exec.execute", argv=["./say", "x"], cwd=str(tools)).act().changed
    for program in (f"{tools}/../../../../../bin/sh", f"{tools}/shell", f"{tools}/../say", "/bin/sh", "sh", "say"):
        with pytest.raises(NotAllowed, match="ALLOWED_COMMANDS"):
            Doing("command.exec.execute", argv=[program, "-c", "true"], cwd=str(tools)).act()


def test_bare_pattern_matches_the_workers_path_only(allow: Allow, tools: Path) -> None:
    allow(allowed_commands="s*")
    assert Doing("command.exec.execute", argv=["sh", "-c", "true"]).act().changed
    for program in (f"{tools}/say", "/bin/sh", "./say"):
        with pytest.raises(NotAllowed):
            Doing("command.exec.execute", argv=[program], cwd=str(tools)).act()
    allow(allowed_commands="*")
    assert Doing("command.exec.execute", argv=[f"{tools}/say"]).act().changed


def test_multi_call_binary_is_allowed_under_its_listed_name_only(allow: Allow, tools: Path) -> None:
    (tools / "many").write_text('#!/bin/sh\nprintf %s "${0##*/}"\n')
    (tools / "many").chmod(0o755)
    for name in ("one", "two"):
        (tools / name).symlink_to("many")
    allow(allowed_commands=f"{tools}/one")
    assert Doing("command.exec.execute", argv=[f"{tools}/one"]).act().data["stdout"] == "one"
    for name in ("two", "many"):
        with pytest.raises(NotAllowed):
            Doing("command.exec.execute", argv=[f"{tools}/{name}"]).act()


def test_plan_created_link_runs_the_resolved_program(allow: Allow, tools: Path, tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "say").symlink_to(tools / "say")
    allow(allowed_commands=f"{tools}/say")
    step = Doing("command.exec.execute", argv=[f"{tmp_path}/theirs/say", "x"])
    assert step.act().data["stdout"] == f"given x by {tools}/say\n", (
        "the program ran by a path that a plan could replace"
    )


@pytest.mark.parametrize(
    "name",
    ["BASH_ENV", "ENV", "LD_PRELOAD", "LD_LIBRARY_PATH", "PYTHONPATH", "PYTHONSTARTUP", "PERL5OPT", "PERL5LIB",
     "NODE_OPTIONS", "RUBYOPT", "GIT_SSH_COMMAND", "GIT_CONFIG_COUNT", "JAVA_TOOL_OPTIONS", "IFS", "PATH", "HOME",
     "SHELLOPTS", "TMPDIR", "EDITOR", "PAGER", "LESSOPEN", "LOCPATH", "DOCKER_HOST", "LONGSHORE_CONFIG", "X"],
)  # fmt: skip
def test_plan_cannot_set_loader_variables(name: str, allow: Allow) -> None:
    argv = ["true"]
    allow(allowed_commands="true")
    for given in ({"argv": argv, "env": {name: "/x"}}, {"argv": argv, "unless": ["true"], "env": {name: "/x"}}):
        with pytest.raises(NotAllowed, match="ALLOWED_ENVIRONMENT"):
            Doing("command.exec.execute", **given).act()
        assert Doing("command.exec.execute", **given).predict().impossible or "unless" in given
    allow(allowed_environment=name)
    assert Doing("command.exec.execute", argv=argv, env={name: "/x"}).act().changed


def test_harmless_variables_and_unchanged_values_are_allowed(allow: Allow) -> None:
    allow(allowed_commands="env")
    env = {"PGPASSWORD": "correct-horse", "LC_ALL": "C", "PATH": os.environ["PATH"]}
    assert "PGPASSWORD=correct-horse" in Doing("command.exec.execute", argv=["env"], env=env).act().data["stdout"]


# --- paths ------------------------------------------------------------------------------------------


def test_refusal_does_not_disclose_file_existence(home: Path) -> None:
    for creates in ("/etc/passwd", "/etc/no-such-file", "../other", f"{home}/../other", "inner/../../other"):
        step = Doing("command.exec.execute", argv=["true"], cwd=str(home), creates=creates)
        with pytest.raises(NotAllowed, match="is outside"):
            step.act()
        with pytest.raises(NotAllowed, match="is outside"):
            step.predict()
    (home / "out").symlink_to("/etc/passwd")
    with pytest.raises(NotAllowed, match="is outside"):
        Doing("command.exec.execute", argv=["true"], creates=f"{home}/out").act()
    assert Doing("command.exec.execute", argv=["true"], creates="made").act().changed


def test_worker_state_folder_is_outside_all_roots(tmp_path: Path, allow: Allow) -> None:
    state = get_settings().state_dir
    allow(allowed_roots=f"/:{state}")
    for path in (state / "receipts" / "longshore" / "r1~b" / "step.json", state / "x"):
        with pytest.raises(NotAllowed, match="is outside"):
            deploy(path).act()
    assert not state.exists() or not list(state.rglob("*.json"))
    (tmp_path / "other").symlink_to(state)
    with pytest.raises(NotAllowed, match="is outside"):
        deploy(tmp_path / "other" / "x").act()


def test_worker_configuration_is_protected_under_every_path(
    home: Path, allow: Allow, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = home / "longshore.yaml"
    config.write_text("namespace: shop\n")
    (home / "hard").hardlink_to(config)
    monkeypatch.setenv("LONGSHORE_CONFIG", str(config))
    allow()
    for path in (config, home / "hard"):
        with pytest.raises(NotAllowed, match="is outside"):
            deploy(path).act()
        with pytest.raises(NotAllowed, match="is outside"):
            Doing("file.deploy.execute", path=f"{home}/copy", object=f"file://{path}").act()


@pytest.mark.parametrize(
    "url",
    [
        "simplecache::file:///etc/passwd", "filecache::file:///etc/passwd", "dir://::file:///etc",
        "zip://x::file:///etc/x.zip", "tar://x::file:///etc/x.tar", "reference://::file:///etc/x",
        "file:///etc/x::simplecache", "github://o:r@main/x", "git:///etc:x", "dask://h/x", "jupyter://h/x",
        "memory://x", "sftp://h/x", "ftp://h/x", "smb://h/x", "libarchive://x", "data://,x", "FILE:///etc/passwd",
        "local+file:///etc/passwd", "generic://x", "hdfs://h/x", "root://h/x",
    ],
)  # fmt: skip
def test_wrapping_file_system_urls_are_refused(url: str, home: Path) -> None:
    with pytest.raises(Preflight, match="unknown URL scheme"):
        Doing("file.deploy.execute", path=f"{home}/x", object=url).act()


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "local:///etc/passwd",
        "file://{home}/../../etc/passwd",
        "file://{home}/link",
        "file:///proc/self/environ",
        "file://{home}/out/passwd",
    ],
)
def test_local_object_must_lie_in_the_roots(url: str, home: Path) -> None:
    (home / "link").symlink_to("/etc/passwd")
    (home / "out").symlink_to("/etc")
    with pytest.raises(NotAllowed, match="is outside"):
        Doing("file.deploy.execute", path=f"{home}/x", object=url.replace("{home}", str(home))).act()
    with pytest.raises(Preflight, match="is not an absolute file path"):
        Doing("file.deploy.execute", path=f"{home}/x", object="file://localhost/etc/passwd").act()


def test_web_object_host_must_be_allowed(home: Path, allow: Allow) -> None:
    allow(allowed_hosts="registry.example,s3://backups")
    for url in (
        "http://127.0.0.1:1/x",
        r"http://127.0.0.1:1\@registry.example/x",
        "https://10.0.0.1/x",
        "s3://other/x",
    ):
        with pytest.raises(Preflight, match=r"ALLOWED_HOSTS|not a valid HTTP URL"):
            Doing("file.deploy.execute", path=f"{home}/x", object=url).act()


def test_undo_removes_no_folder_outside_the_roots(home: Path) -> None:
    outside = home.parent / "other" / "empty"
    outside.mkdir()
    step = deploy(home / "file")
    step._before = {"file": None, "made": [str(outside)], "deployed": None}
    step.act()
    with pytest.raises(NotAllowed, match="is outside"):
        step.undo()
    assert outside.is_dir()

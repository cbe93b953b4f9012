"""What a worker may touch: folders and programs, links included."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import ValidationError

from longshore.orchestration.errors import NotAllowed, Preflight
from longshore.orchestration.settings import get_settings
from tests.unit.doing import Doing

Allow = Callable[..., None]


@pytest.fixture
def allow(monkeypatch: pytest.MonkeyPatch) -> Allow:
    def make(**said: str) -> None:
        for name, value in said.items():
            monkeypatch.setenv(f"LONGSHORE_{name.upper()}", value)
        get_settings.cache_clear()

    return make


@pytest.fixture
def home(tmp_path: Path, allow: Allow) -> Path:
    """A folder that may be touched, beside one that may not."""
    home = tmp_path / "home"
    (home / "inner").mkdir(parents=True)
    (tmp_path / "other").mkdir()
    allow(allowed_roots=str(home))
    return home


def deploy(path: Path | str) -> Doing:
    return Doing("file.deploy.execute", path=str(path), content="x")


def test_a_path_inside_is_fine_through_links_inside_as_well(home: Path) -> None:
    (home / "current").symlink_to(home / "inner")
    deploy(home / "current" / "file").act()
    assert (home / "inner" / "file").read_text() == "x"


@pytest.mark.parametrize("where", ["../other/file", "inner/../file", ".."])
def test_a_path_says_where_it_leads(home: Path, where: str) -> None:
    with pytest.raises(ValidationError, match=r"has a \.\. in it"):
        deploy(f"{home}/{where}")


@pytest.mark.parametrize("where", ["out/file", "inner/out/deep/file"])
def test_a_path_that_leads_out_is_refused(home: Path, where: str) -> None:
    (home / "out").symlink_to(home.parent / "other")
    (home / "inner" / "out").symlink_to(home.parent / "other")
    for step in (
        deploy(f"{home}/{where}"),
        Doing("file.undeploy.execute", path=f"{home}/{where}"),
        Doing("file.status.get", path=f"{home}/{where}"),
    ):
        with pytest.raises(Preflight, match="lies outside of the folders"):
            step.act()
    with pytest.raises(Preflight):
        deploy(f"{home}/{where}").predict()
    assert list((home.parent / "other").iterdir()) == []


def test_the_file_itself_is_no_link(home: Path) -> None:
    (home.parent / "other" / "target").write_text("theirs")
    (home / "file").symlink_to(home.parent / "other" / "target")
    with pytest.raises(Preflight, match="is a link"):
        deploy(home / "file").act()
    assert (home.parent / "other" / "target").read_text() == "theirs"


def test_a_command_is_run_inside_only(home: Path) -> None:
    assert Doing("command.exec.execute", argv=["pwd"], cwd=str(home)).act().data["stdout"] == f"{home}\n"
    with pytest.raises(Preflight, match="lies outside"):
        Doing("command.exec.execute", argv=["pwd"], cwd="/").act()


def test_a_file_of_this_host_is_taken_from_inside_only(home: Path) -> None:
    step = Doing("file.deploy.execute", path=f"{home}/passwd", object="file:///etc/passwd")
    with pytest.raises(Preflight, match="lies outside"):
        step.act()
    (home / "source").write_text("mine")
    Doing("file.deploy.execute", path=f"{home}/copy", object=f"file://{home}/source").act()
    assert (home / "copy").read_text() == "mine"


def test_a_command_without_a_folder_is_run_inside_too(home: Path) -> None:
    assert Doing("command.exec.execute", argv=["pwd"]).act().data["stdout"] == f"{home}\n"


def test_an_allowed_program_is_the_workers_own(allow: Allow, tmp_path: Path) -> None:
    allow(allowed_commands="cat")
    for env in ({"PATH": str(tmp_path)}, {"LD_PRELOAD": "/x.so"}):
        with pytest.raises(Preflight, match="may make another of one"):
            Doing("command.exec.execute", argv=["cat"], env=env).act()


def test_only_the_allowed_programs_are_run(allow: Allow) -> None:
    allow(allowed_commands="true, /usr/bin/env, pg_*")
    assert Doing("command.exec.execute", argv=["true"]).act().changed
    Doing("command.exec.execute", argv=["/usr/bin/env"]).act()
    for argv in (["false"], ["/tmp/true"], ["env"]):
        with pytest.raises(Preflight, match="may not run"):
            Doing("command.exec.execute", argv=argv).act()
    assert Doing("command.exec.execute", argv=["false"]).predict().impossible
    with pytest.raises(Preflight, match="may not run '/bin/sh'"):
        Doing("command.shell.execute", command="true").act()
    with pytest.raises(Preflight, match="may not run"):
        Doing("command.exec.execute", argv=["true"], unless="true").act()


def test_a_workers_keys_and_other_processes_lie_in_no_folder_that_may_be_touched(tmp_path: Path, allow: Allow) -> None:
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    allow(allowed_roots="/", keys=str(secrets / "keys.json"))
    for path in (secrets / "keys.json", secrets / "other", Path("/proc/self/environ")):
        with pytest.raises(NotAllowed, match="lies outside of the folders"):
            deploy(path).act()
    deploy(tmp_path / "fine").act()
    assert (tmp_path / "fine").read_text() == "x"

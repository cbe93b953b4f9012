"""A replay restores a host or a service that has lost its data from recorded effects."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

from longshore.orchestration import Plan, UsageError, load
from tests.integration.conftest import MakeInstallation
from tests.integration.processes import PATIENCE, Installation, lines, tree

OWN = "tests.integration.own_operations"


@pytest.fixture(scope="module")
def fleet(module_installation: MakeInstallation) -> Iterator[Installation]:
    """An installation with two hosts."""
    made = module_installation(options={"imports": OWN})
    for host in ("web1", "web2"):
        made.worker(host, "--concurrency", "2", LONGSHORE_HOST=host, PYTHONPATH=made.pythonpath).start(wait=False)
    for worker in made.workers:
        worker.wait_until_ready()
    import_module(OWN)  # this process validates the plans
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LONGSHORE_IMPORTS", OWN)
        patch.setenv("PYTHONPATH", made.pythonpath)
        yield made


def deploy(plan: Plan, name: str, path: Path, content: str, host: str) -> None:
    plan.step(name, "file.deploy.execute", path=str(path), content=content).target(host)


def test_replay_rebuilds_a_wiped_host(fleet: Installation, tmp_path: Path) -> None:
    # given effects of several runs on two hosts
    disk, other = tmp_path / "disk", tmp_path / "other"
    disk.mkdir()
    other.mkdir()
    first = Plan("first", params={"version": str}, on_failure="keep")
    deploy(first, "config", disk / "config", "version {{ params.version }}", "web1")
    deploy(first, "elsewhere", other / "config", "web2's", "web2")
    first.step("braces", "file.deploy.execute", path=f"{disk}/braces", content="{{ '{{ not ours }}' }}").target("web1")
    first.step("each", "file.deploy.execute", path=f"{disk}/{{{{ item }}}}", content="{{ item }}").foreach(["a", "b"])
    first.steps["each"] = first.steps["each"].model_copy(update={"target": "web1"})
    guarded = first.step("made", "command.shell.execute", command=f"echo made > {disk}/made", creates=f"{disk}/made")
    guarded.target("web1")
    first.step("acts", "command.shell.execute", command=f"echo once >> {tmp_path}/acts").target("web1")
    assert fleet.run(first, version="1").wait(PATIENCE).exit_code == 0
    assert fleet.run(first, version="2").wait(PATIENCE).exit_code == 0
    # a run that was undone
    gone = Plan("gone")
    deploy(gone, "temporary", disk / "temporary", "x", "web1")
    gone.step("fail", "noop.execute", fail=True).after("temporary")
    assert fleet.run(gone).wait(PATIENCE).state == "undone"
    # a run with a file
    (tmp_path / "logo.bin").write_bytes(bytes(range(256)))
    (tmp_path / "plan.yaml").write_text(
        f"name: logo\nsteps:\n  logo:\n    op: file.deploy.execute\n    target: web1\n"
        f"    with: {{path: {disk}/logo.bin, source: logo.bin}}\n"
    )
    assert fleet.run(load(str(tmp_path / "plan.yaml"))).wait(PATIENCE).exit_code == 0
    (tmp_path / "logo.bin").unlink()
    was = tree(disk)
    assert (disk / "config").read_text() == "version 2"

    # when the host loses its files
    shutil.rmtree(disk)
    disk.mkdir()
    shutil.rmtree(other)
    other.mkdir()
    would = fleet.longshore("--dry-run", "runs", "replay", "--host", "web1")
    result = fleet.longshore("runs", "replay", "--host", "web1", "--run-id", "rebuilt")

    # then
    assert "would repeat: run first-" in would.out
    assert tree(disk) == was
    assert not list(other.iterdir()), "the replay changed the other host"
    assert result.code == 3, result.err
    assert result.err.count("cannot be repeated") == 2
    assert "step acts: command.shell.execute is not convergent: it acts each time" in result.err
    assert lines(tmp_path / "acts") == ["once", "once"]
    # and a second replay repeats the same effects, once
    again = fleet.longshore("--dry-run", "runs", "replay", "--host", "web1")
    assert again.out == would.out


def test_replay_repeats_the_calls_of_a_service(fleet: Installation, tmp_path: Path) -> None:
    plan = Plan("bills", target="web2")
    plan.step("bill", "own.bill", folder=str(tmp_path))
    plan.step("other", "noop.execute")
    for _ in range(2):
        assert fleet.run(plan).wait(PATIENCE).exit_code == 0
    (tmp_path / "calls").unlink()

    result = fleet.longshore("runs", "replay", "--service", "billing", "--since", "1h")

    assert result.code == 0, result.err
    assert len(lines(tmp_path / "calls")) == 2


def test_replay_needs_a_selection(fleet: Installation) -> None:
    assert fleet.longshore("runs", "replay").code == 2
    with pytest.raises(UsageError):
        fleet.client().replay(host="web1", service="billing")
    nothing = fleet.longshore("runs", "replay", "--host", "nowhere")
    assert (nothing.code, "no steps to repeat" in nothing.err) == (0, True)
    assert fleet.longshore("runs", "replay", "--host", "web1", "--since", "yesterday").code == 2

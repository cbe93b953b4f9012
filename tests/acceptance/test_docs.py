"""The plans of the README, the Python example, the demo, and `longshore dev`."""

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
from tests.acceptance.pages import Block, Player, blocks
from tests.integration.processes import PATIENCE, processes_with_text, wait_for

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
#: The tutorial with the application that the README's plan belongs to.
TUTORIAL = ROOT / "docs" / "tutorials" / "celery-saga.md"

pytestmark = pytest.mark.integration


@pytest.fixture
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """An environment with its own embedded server, which the fixture ends."""
    folder = tmp_path_factory.mktemp("s")
    env = {name: value for name, value in os.environ.items() if not name.startswith("LONGSHORE_")}
    env |= {"LONGSHORE_STATE_DIR": str(folder), "PATH": f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"}
    yield env
    if pid := embedded.supervisor_pid(folder):
        os.kill(pid, 15)
        wait_for("the end of the supervisor", lambda: not embedded.supervisor_pid(folder))


def run(*arguments: str, cwd: Path, env: dict[str, str], timeout: float = 60.0) -> subprocess.CompletedProcess[str]:
    return subprocess.run(arguments, cwd=cwd, env=env, capture_output=True, text=True, timeout=timeout, check=False)


def readme_blocks() -> tuple[list[Block], list[Block]]:
    """The blocks of the plan in YAML, and those of the plan in Python."""
    found = blocks(README)
    at = [block.title for block in found].index("buy.py")
    return found[:at], found[at:]


def test_readme_plan_in_yaml_runs_and_is_undone(environment: dict[str, str], tmp_path: Path) -> None:
    part, _ = readme_blocks()

    Player(README, tmp_path, "", environment, installed=True).play(part)

    assert (tmp_path / "shop" / "schema").read_text() == "1.1\n", "the undo of the second release removed its line"


def test_readme_plan_in_python_runs_and_is_undone(environment: dict[str, str], redis_url: str, tmp_path: Path) -> None:
    _, part = readme_blocks()
    *_, shop = (block for block in blocks(TUTORIAL) if block.title == "shop.py")
    application = [
        shop,
        Block("sh", "Terminal 2 (stays open)", "celery -A shop worker -c 1 -n shop@%h", 0),
        Block("sh", "Terminal 3 (stays open)", "longshore worker -c 1", 0),
    ]

    environment |= {"LONGSHORE_REDIS_URL": redis_url}
    Player(README, tmp_path, redis_url, environment, installed=True).play([*application, *part])

    assert (tmp_path / "books.txt").read_text().splitlines()[-1] == "o-9: refunded 42"


def test_readme_links_have_targets() -> None:
    text = README.read_text()
    links = re.findall(r'\]\(([^)\s]+)\)|src="([^"]+)"', text)
    assert len(links) > 15
    for target in (link or image for link, image in links):
        path, _, anchor = target.partition("#")
        assert (ROOT / path).exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", (ROOT / path).read_text(), re.MULTILINE)
            assert anchor in [re.sub(r"[^a-z0-9 -]", "", each.lower()).replace(" ", "-") for each in headings], target


def test_readme_has_at_most_120_lines() -> None:
    assert len(README.read_text().splitlines()) <= 120


def test_yaml_and_python_build_the_same_plan() -> None:
    namespace: dict[str, object] = {"__name__": "hello"}
    exec((ROOT / "examples" / "hello.py").read_text(), namespace)  # noqa: S102 - the project's own example

    built = namespace["hello"]()  # type: ignore[operator]

    assert isinstance(built, Plan)
    assert built == load(str(ROOT / "examples" / "hello.yaml"))


def test_python_example_runs(environment: dict[str, str], tmp_path: Path) -> None:
    done = run(
        sys.executable, str(ROOT / "examples" / "hello.py"), str(tmp_path / "made"), cwd=tmp_path, env=environment
    )

    assert done.stdout.strip() == "succeeded 5 steps, 2 changed, 3 unchanged", done.stderr
    assert (tmp_path / "made" / "result").read_text().startswith("HELLO, WORLD")


@pytest.mark.docker  # the demo uses a Docker engine if one responds
def test_demo_restores_the_state_after_the_failed_release() -> None:
    env = {name: value for name, value in os.environ.items() if not name.startswith("LONGSHORE_")}

    done = run(sys.executable, str(ROOT / "examples" / "demo" / "demo.py"), cwd=ROOT, env=env, timeout=150)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "exactly as before" in done.stdout


def test_state_diagram_of_the_documents_is_current() -> None:
    assert diagram() in (ROOT / "docs" / "concepts" / "states.md").read_text()


def test_second_dev_is_refused_and_sigterm_ends_all_processes(environment: dict[str, str], tmp_path: Path) -> None:
    folder = environment["LONGSHORE_STATE_DIR"]
    with subprocess.Popen(["longshore", "dev"], cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL) as dev:
        wait_for("beat", lambda: any("beat" in command for command in processes_with_text(folder).values()))

        second = run("longshore", "dev", cwd=tmp_path, env=environment)
        dev.terminate()
        code = dev.wait(timeout=PATIENCE)

    assert second.returncode == 2
    assert "a server and a worker run already" in second.stderr
    assert code == 0
    wait_for("the end of all processes", lambda: processes_with_text(folder) == {})

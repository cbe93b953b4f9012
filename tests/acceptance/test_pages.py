"""Plays each page of the site, and compares the output of its commands and code with the page."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from longshore.orchestration.client import embedded
from tests import servers
from tests.acceptance.pages import DOCS, Player, blocks
from tests.conftest import get
from tests.integration.processes import wait_for

pytestmark = pytest.mark.integration

#: Pages that need a Docker engine.
WITH_ENGINE = {"how-to/releases.md", "tutorials/backup-job.md", "tutorials/release.md", "tutorials/stacks.md"}
#: The image of these pages.
IMAGE = "busybox:latest"
#: Pages whose fences other tests run.
ELSEWHERE = {
    "how-to/deployment.md": "tests/docker/test_deployment.py",
    "how-to/jobs.md": "tests/docker/test_jobs.py",
    "how-to/stacks.md": "tests/docker/test_restarts.py",
}
PLAYED = sorted(
    name
    for page in DOCS.rglob("*.md")
    if (name := str(page.relative_to(DOCS))) not in ELSEWHERE
    and any(block.language in {"sh", "console", "python", "yaml", "json"} for block in blocks(page))
)


@pytest.fixture
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of a user, with a private state folder."""
    folder = tmp_path_factory.mktemp("p")
    env = {name: value for name, value in os.environ.items() if not name.startswith("LONGSHORE_")}
    # With a lease shorter than the default, the test continues earlier after a kill.
    yield env | {
        "LONGSHORE_STATE_DIR": str(folder),
        "HOME": str(folder),
        "LONGSHORE_LEASE": "5s",
        "LONGSHORE_CONCURRENCY": "2",
    }
    if pid := embedded.supervisor_pid(folder):
        os.kill(pid, signal.SIGTERM)
        wait_for("the end of the supervisor", lambda: not embedded.supervisor_pid(folder))


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.docker] * (n in WITH_ENGINE)) for n in PLAYED])
def test_commands_code_and_output_of_the_page_are_correct(
    name: str, environment: dict[str, str], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    projects: list[str] = []
    engine = None
    if name in WITH_ENGINE:
        engine = request.getfixturevalue("engine")
        engine.tag(servers.IMAGE, *IMAGE.split(":"))
        projects = compose_projects(DOCS / name)
        # Other tests share the engine. The rules exclude their stacks from the orchestrations of the page.
        (tmp_path / ".stacks.yaml").write_text(yaml.safe_dump({"only": projects}))
        environment |= {"DOCKER_HOST": servers.engine_url(), "LONGSHORE_STACKS": str(tmp_path / ".stacks.yaml")}
    with get(servers.RedisServer) as server:
        try:
            Player(DOCS / name, tmp_path, server.url, environment).play()
        finally:
            for project in projects:
                servers.remove_project(engine, project)


def compose_projects(page: Path) -> list[str]:
    files = [block.body for block in blocks(page) if block.title.endswith("compose.yaml")]
    return [yaml.safe_load(file)["name"] for file in files]


def test_pages_of_other_tests_exist() -> None:
    assert all((DOCS / page).exists() and (DOCS.parent / test).exists() for page, test in ELSEWHERE.items())

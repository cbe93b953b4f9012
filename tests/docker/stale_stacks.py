"""An installation with one worker, and Compose projects for tests of the stack commands."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from longshore.orchestration.runs.report import StepReport
from longshore.orchestration.stacks.orchestrate import Stacks
from longshore.orchestration.store.caches import STACK_CACHE, Caches
from tests.conftest import get
from tests.docker.two_stacks import Project
from tests.integration.conftest import MakeInstallation
from tests.integration.processes import Installation
from tests.servers import PASSWORD, engine_url, require_compose

if TYPE_CHECKING:
    import docker

HOST = "web1"
QUICK = ("--min-healthy-time", "500ms")
#: The prefix of the projects of this process. The rules exclude all other projects.
PREFIX = f"los-orc-{uuid.uuid4().hex[:6]}"


@pytest.fixture(scope="module")
def rules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rules") / "stacks.yaml"
    path.write_text(yaml.safe_dump({"only": [f"{PREFIX}-*"]}))
    return path


@pytest.fixture(scope="module")
def place(module_installation: MakeInstallation, rules: Path) -> Installation:
    get(require_compose)
    made = module_installation(docker_host=engine_url(), options={"host": HOST, "lease": "1s", "stacks": str(rules)})
    made.worker("one", "-c", "3", LONGSHORE_SECRET_REGISTRY=PASSWORD).start()
    return made


MakeProject = Callable[[str], Project]


@pytest.fixture
def project(engine: docker.APIClient, tmp_path: Path) -> Iterator[MakeProject]:
    made: list[Project] = []

    def make(name: str) -> Project:
        made.append(Project(engine, tmp_path, f"{PREFIX}-{name}"))
        return made[-1]

    yield make
    with ThreadPoolExecutor() as pool:
        list(pool.map(Project.clear, made))


def up(*projects: Project) -> None:
    """Start all projects at the same time."""
    with ThreadPoolExecutor() as pool:
        list(pool.map(Project.up, projects))


@pytest.fixture
def two(project: MakeProject) -> tuple[Project, Project]:
    """Two projects without drift."""
    found = project("shop"), project("blog")
    up(*found)
    return found


def selected(place: Installation, **options: Any) -> dict[str, list[str]]:
    """The reasons of the selection, by name of the service."""
    found = Stacks(place.client()).select(**options)
    assert found.errors == {}
    return {one.name: [reason.text for reason in one.reasons] for one in found.chosen}


def restarts(place: Installation) -> list[str]:
    """The ids of runs that have restarts as steps."""
    rebuilds = ("orchestrate-rebuild", "orchestrate-refresh")
    ids = [run.id for run in place.client().runs(500)]
    return [run_id for run_id in ids if run_id.startswith("orchestrate-") and not run_id.startswith(rebuilds)]


def restarted(place: Installation, before: set[str]) -> list[StepReport]:
    """The restarts of the runs that are not in `before`."""
    steps = [step for run_id in set(restarts(place)) - before for step in place.client().get(run_id).report().steps]
    return [step for step in steps if step.op == "stacks.restart.execute"]


def generation(place: Installation) -> int:
    return Caches(place.client().store).get(f"{STACK_CACHE}{HOST}").generation

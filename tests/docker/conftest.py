"""A step without a run, as an attempt executes it, and fixtures that remove their objects from the engine."""

from __future__ import annotations

import contextlib
import json
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from docker.errors import APIError, NotFound

from longshore.orchestration.operations import find
from longshore.orchestration.settings import get_settings
from longshore.tasks.host.engine.factory import close_engine
from longshore.tasks.implementation import Context, Outcome, Prediction, implementation
from longshore.tasks.operations import compose as compose_tasks
from longshore.tasks.operations import docker as docker_tasks
from tests import servers
from tests.conftest import get
from tests.servers import PREFIX, engine_url
from tests.unit.tasks.operations.fake_step import check_result

if TYPE_CHECKING:
    import docker

assert compose_tasks
assert docker_tasks

OWNER = f"longshore-test-process={PREFIX}"
OWN_LABEL = f"LABEL {OWNER}"


def prune_own_images(engine: docker.APIClient) -> None:
    """Prune the images of this test process as `docker image prune` does. Other processes share the engine."""
    engine.prune_images(filters={"dangling": True, "label": [OWNER]})


class Step:
    """One step of one run. `before` is read once, and encoded as JSON, as in a run."""

    def __init__(self, operation: str, run_id: str, context: dict[str, Any], params: dict[str, Any]) -> None:
        self.operation = implementation(operation)
        self.params = find(operation).params.model_validate(params)
        self.context = context
        self.ctx = Context(run_id=run_id, step="step", plan="plan", **context)
        self._before: dict[str, Any] | None = None
        self.outcome: Outcome | None = None

    def again(self, attempt: int = 2, **context: Any) -> Step:
        """The same step at a later attempt, with the journal of the first attempt."""
        other = Step.__new__(Step)
        other.__dict__ = dict(self.__dict__)
        changed = self.context | context | {"attempt": attempt}
        other.ctx = Context(run_id=self.ctx.run_id, step="step", plan="plan", **changed)
        return other

    @property
    def before(self) -> dict[str, Any]:
        if self._before is None:
            self._before = json.loads(json.dumps(self.operation.before(self.ctx, self.params)))
        return self._before

    def act(self) -> Outcome:
        outcome = self.operation.act(self.ctx, self.params, self.before)
        self.outcome = Outcome(outcome.changed, json.loads(json.dumps(outcome.data)))
        check_result(self.operation.operation, self.outcome)
        return self.outcome

    def act_concurrently(self, times: int = 2) -> list[Outcome]:
        """Execute several deliveries of the step at the same time."""
        before = self.before

        def deliver(_: int) -> Outcome:
            try:
                return self.operation.act(self.ctx, self.params, before)
            finally:
                close_engine()

        with ThreadPoolExecutor(times) as pool:
            outcomes = list(pool.map(deliver, range(times)))
        self.outcome = outcomes[0]
        return outcomes

    def predict(self) -> Prediction:
        return self.operation.predict(self.ctx, self.params)

    def undo(self) -> Outcome:
        data = self.outcome.data if self.outcome else None
        return self.operation.undo(self.ctx, self.params, self.before, data)


MakeStep = Callable[..., Step]


@pytest.fixture(autouse=True)
def state_dir(engine: docker.APIClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = tmp_path / "state"
    monkeypatch.setenv("LONGSHORE_STATE_DIR", str(folder))
    monkeypatch.setenv("LONGSHORE_DOCKER_HOST", engine_url())
    get_settings.cache_clear()
    yield folder
    get_settings.cache_clear()
    close_engine()


@pytest.fixture
def step(engine: docker.APIClient) -> Iterator[MakeStep]:
    """A function that makes steps, each of its own run. Their containers, volumes and tags are removed."""
    prefix = f"{PREFIX}{uuid.uuid4().hex[:8]}"
    made = 0

    def make(operation: str, context: dict[str, Any] | None = None, /, **params: Any) -> Step:
        nonlocal made
        made += 1
        return Step(operation, f"{prefix}-{made}", context or {}, params)

    yield make
    for container in engine.containers(all=True):
        if container["Labels"].get("longshore.run", "").startswith(prefix):
            engine.remove_container(container["Id"], force=True, v=True)
    for volume in engine.volumes()["Volumes"] or []:
        if (volume["Labels"] or {}).get("longshore.op", "").startswith(prefix):
            engine.remove_volume(volume["Name"])
    for image in engine.images():
        for tag in image["RepoTags"] or []:
            if prefix in tag:
                engine.remove_image(tag, noprune=True)


@pytest.fixture(scope="session")
def registry() -> Iterator[servers.Registry]:
    with get(servers.Registry) as found:
        yield found


@pytest.fixture(scope="session")
def closed_registry() -> Iterator[servers.Registry]:
    """A registry that requires a login."""
    with get(lambda: servers.Registry(login=True)) as found:
        yield found


@pytest.fixture
def new_image(engine: docker.APIClient) -> Iterator[Callable[[str], str]]:
    """A function that tags a new image with a unique layer. The tags are removed."""
    names: list[str] = []

    def make(ref: str) -> str:
        repository, _, tag = ref.rpartition(":")
        made = engine.create_container("longshore-test:1", ["sh", "-c", "head -c 60000 /dev/urandom >/noise"])["Id"]
        try:
            engine.start(made)
            engine.wait(made)
            image = engine.commit(made, repository, tag, changes=OWN_LABEL)["Id"]
        finally:
            engine.remove_container(made)
        names.append(repository)
        return str(engine.inspect_image(image)["Id"])

    yield make
    for image in engine.images():
        for tag in image["RepoTags"] or []:
            if tag.rpartition(":")[0] in names or (tag.startswith("longshore-keep/") and PREFIX in tag):
                with contextlib.suppress(APIError):
                    engine.remove_image(tag, force=True)


@pytest.fixture
def engine_state(engine: docker.APIClient) -> Callable[[], dict[str, Any]]:
    """A function that reads the containers, networks, volumes and tags of this test process from the engine."""

    def read() -> dict[str, Any]:
        containers = {}
        for row in engine.containers(all=True):
            with contextlib.suppress(NotFound):  # another process may remove its container
                raw = engine.inspect_container(row["Id"])
                state = raw["State"]
                values = (raw["Name"], state["Running"], state["Paused"], raw["Image"])
                limits = (raw["HostConfig"][key] for key in ("RestartPolicy", "Memory", "NanoCpus", "PidsLimit"))
                containers[row["Id"]] = (*values, *map(str, limits))
        networks = [network["Name"] for network in engine.networks()]
        volumes = [volume["Name"] for volume in engine.volumes()["Volumes"] or []]
        tags = [f"{tag} {image['Id']}" for image in engine.images() for tag in image["RepoTags"] or []]
        return {
            "containers": {key: values for key, values in containers.items() if PREFIX in values[0]},
            "names": sorted(name for name in [*networks, *volumes, *tags] if PREFIX in name),
        }

    return read


@pytest.fixture
def container(engine: docker.APIClient) -> Iterator[Callable[..., str]]:
    """A function that makes containers without Longshore."""
    names: list[str] = []

    def make(*command: str, start: bool = True, **host: Any) -> str:
        name = f"{PREFIX}{uuid.uuid4().hex[:8]}"
        config = engine.create_host_config(**({"init": True} | host))
        made = engine.create_container(
            "longshore-test:1", list(command) or ["sleep", "600"], name=name, host_config=config
        )
        names.append(made["Id"])
        if start:
            engine.start(made["Id"])
        return name

    yield make
    for made in names:
        with contextlib.suppress(NotFound):
            engine.remove_container(made, force=True, v=True)

"""Discovery of jobs on an engine: descriptions in labels, and job containers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from longshore.orchestration.jobs.labels import PREFIX, PROJECT, STACK, Entity
from longshore.tasks.host.engine.port import Engine
from longshore.tasks.operations.compose.project import identity
from longshore.tasks.operations.docker import spec
from longshore.tasks.operations.jobs.declared import ineffective
from longshore.tasks.operations.jobs.snapshot import KEPT_NAME, KIND, OF, ONEOFF, RECIPE


def described(docker: Engine) -> tuple[str, tuple[str, ...], tuple[Entity, ...]]:
    """The engine's ID, its stacks, and the containers and volumes with job labels."""
    rows = docker.rows({}, all_of_them=True)
    entities = [
        Entity("container", row["Names"][0].removeprefix("/"), _of_jobs(row["Labels"]))
        for row in rows
        if row["Names"]
        and any(label.startswith(PREFIX) for label in row["Labels"])
        and row["Labels"].get(spec.KIND) is None
        and row["Labels"].get(ONEOFF) != "True"
    ]
    volumes = docker.labelled_volumes(f"{PREFIX}attach")
    projects = {one.labels[PROJECT] for one in entities if PROJECT in one.labels}
    lacking = ineffective(docker, rows, sorted(projects))
    volumes |= {name: own for name, (_, own) in lacking.items()}
    entities += [
        Entity("volume", name, _of_jobs(labels), lacking.get(name, ({}, {}))[0]) for name, labels in volumes.items()
    ]
    stacks = {row["Labels"][label] for row in rows for label in (PROJECT, STACK) if row["Labels"].get(label)}
    return (
        identity(docker),
        tuple(sorted(stacks)),
        tuple(sorted(entities, key=lambda entity: (entity.kind, entity.name))),
    )


def _of_jobs(labels: dict[str, str]) -> dict[str, str]:
    return {key: value for key, value in sorted(labels.items()) if key.startswith(PREFIX) or key in {STACK, PROJECT}}


@dataclass(frozen=True)
class LeftWorker:
    """A job container of any installation. `made` in seconds since 1970, by the engine's clock."""

    id: str
    name: str
    run_id: str
    plan_record: str
    made: float
    #: The engine's state: created, running, exited, …
    state: str
    #: The installation that created the container.
    of: str = ""

    @property
    def running(self) -> bool:
        return self.state in {"running", "paused", "restarting"}

    @property
    def is_kept(self) -> bool:
        """Reports whether the container is kept for an inspection after a failure."""
        return self.name.endswith(KEPT_NAME)


def workers(docker: Engine) -> list[LeftWorker]:
    """All job containers that were not removed."""
    rows: list[dict[str, Any]] = docker.rows({"label": [f"{spec.KIND}={KIND}"]}, all_of_them=True)
    return [
        LeftWorker(
            row["Id"], row["Names"][0].removeprefix("/"), row["Labels"].get(spec.RUN, ""),
            row["Labels"].get(RECIPE, "{}"), float(row["Created"]), row["State"],
            row["Labels"].get(OF, ""),
        )
        for row in rows
        if row["Names"]
    ]  # fmt: skip

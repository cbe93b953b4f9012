"""How containers of a project are brought to what a configuration says: some at a time, gated, and back if need be."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from longshore.orchestration.errors import OperationError, StepCancelled, StepTimeout, Transient
from longshore.tasks.host.engine.port import Engine
from longshore.tasks.implementation import Context
from longshore.tasks.operations.compose import revisions
from longshore.tasks.operations.compose.cli import Compose, Resolved, Source
from longshore.tasks.operations.compose.config_hashes import note_aliases
from longshore.tasks.operations.compose.project import members_of
from longshore.tasks.operations.compose.state import HealthWaiter, Member, containers, members, to_do

UNKNOWN = "the configuration that project {} runs with is not to be had any more"


def former(ctx: Context, docker: Engine, project: str, found: list[Member], likely: Resolved | None) -> Resolved | None:
    """The configuration that these containers were made from, if it is to be had."""
    recorded = revisions.recorded_source(project, containers(docker, project)) or Source(project)
    return revisions.former(ctx, Compose(ctx, docker), found, recorded, likely)


def keep_former(ctx: Context, docker: Engine, project: str, found: list[Member], likely: Resolved | None) -> bool:
    """Keep the configuration that the containers were made from, for the undo."""
    was = former(ctx, docker, project, found, likely)
    if was is not None:
        revisions.save(ctx, "before", was)
    elif found:
        ctx.log(f"{UNKNOWN.format(project)}: this step cannot be undone")
    return was is not None


class RolloutLimits(Protocol):
    """What the parameters of each step have that does so."""

    @property
    def healthy_deadline(self) -> float: ...
    @property
    def min_healthy_time(self) -> float: ...
    @property
    def auto_revert(self) -> bool: ...
    @property
    def grace(self) -> float | None: ...


@dataclass
class Rollout:
    """One step that brings a project, or some of its services, to a configuration. Its lock is held."""

    ctx: Context
    docker: Engine
    params: RolloutLimits
    before: dict[str, Any]
    target: Resolved
    #: So many services at once.
    max_parallel: int | None = None

    def bring(self, source: Source, named: list[str], options: list[str], *, also: bool = False) -> list[Member]:
        """The members in scope, all well. `also`: there is more to do than `to_do` knows."""
        project = self.before["project"]
        services = self.target.with_dependencies(named)

        def up(gate: HealthWaiter) -> None:
            touched = to_do(self.docker, self.target, services, members(self.docker, project))
            if touched or also:
                self.keep_images()
                self._up(gate, source, named, list(touched), options)

        return self.within_limits(up, services)

    def keep_images(self) -> None:
        """Those of what was there, for the undo."""
        images = (member.image_id for member in members_of(self.before))
        revisions.keep_images(self.ctx, self.docker, self.before["project"], images)

    def within_limits(self, change: Callable[[HealthWaiter], None], services: Iterable[str]) -> list[Member]:
        """Make a change, and wait until these services are well; go back if they do not get so, where that is asked
        for. The members in scope, all well.
        """
        project, was = self.before["project"], members_of(self.before)
        gate = HealthWaiter(
            self.ctx,
            self.docker,
            project,
            self.params.healthy_deadline,
            self.params.min_healthy_time,
            self.target.jobs(),
        )
        gate.steady = {member.id: member.started_at for member in was if member.running}
        try:
            change(gate)
            gate.wait(services)
        except (StepCancelled, StepTimeout, Transient):
            raise  # its undo, or its next attempt, goes on from here
        except OperationError as error:
            if not self.params.auto_revert:
                raise
            self._revert(error)
        scope = self.before["services"]
        return [member for member in members(self.docker, project) if member.service in scope]

    def _up(self, gate: HealthWaiter, source: Source, named: list[str], touched: list[str], options: list[str]) -> None:
        grace = self.params.grace
        options = options + ([] if grace is None else ["--timeout", str(round(grace))])
        compose = Compose(self.ctx, self.docker)
        if self.max_parallel is None or not touched:
            compose.up(source, named, options)
            return
        # What they depend on stands before them in this order, and was gated when their turn comes.
        for wave in _waves(touched, self.max_parallel):
            self.up_alone(source, wave, options)
            gate.wait(wave)

    def up_alone(self, source: Source, services: list[str], options: list[str]) -> None:
        """Bring up these, and nothing that they depend on: it may be stopped on purpose, or a job that has ended.

        Where there is nothing to do about that anyway, Compose is not told to leave it out: see `aliases`.
        """
        others = [name for name in self.target.with_dependencies(services) if name not in services]
        found = members(self.docker, self.before["project"])
        run = all(member.running for member in found if member.service in others)
        compose = Compose(self.ctx, self.docker)
        fine = run and not to_do(self.docker, self.target, others, found)
        compose.up(source, services, options if fine else ["--no-deps", *options])
        made = map(Member.of, containers(self.docker, self.before["project"]))
        said = {(m.service, m.hash): self.target.hashes[m.service] for m in made if m.service in services}
        note_aliases(self.before["project"], said)

    def _revert(self, error: OperationError) -> None:
        """Bring it back at once; the step has failed all the same."""
        project = self.before["project"]
        self.ctx.log(f"{error.message}: project {project} goes back to what it was")
        try:
            revisions.restore(self.ctx, self.docker, self.before, known=[self.target], grace=self.params.grace)
        except (StepCancelled, StepTimeout):
            raise
        except OperationError as failure:
            what = f"{error.message}; and going back failed: {failure.message}"
            raise OperationError(what, data={"reverted": False}) from error
        raise OperationError(f"{error.message}; {project} is back at what it was", data={"reverted": True}) from error


def _waves(services: list[str], size: int) -> Iterator[list[str]]:
    for begin in range(0, len(services), size):
        yield services[begin : begin + size]


def difference(before: dict[str, Any], now: list[Member]) -> dict[str, Any]:
    """What happened to which container."""
    old, new = {member.key: member for member in members_of(before)}, {member.key: member for member in now}
    both = [(old[key], new[key]) for key in new if key in old]
    started = [n for o, n in both if o.id == n.id and o.started_at != n.started_at]
    return {
        "created": [n.name for key, n in new.items() if key not in old],
        "recreated": [n.name for o, n in both if o.id != n.id],
        "started": [n.name for n in started],
        "removed": [o.name for key, o in old.items() if key not in new],
        "unchanged": [n.name for o, n in both if o.id == n.id and n not in started],
        "containers": [n.as_result() for n in now],
    }

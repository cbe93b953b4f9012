"""Rollout of a configuration to a project's containers: in waves, with a health wait, and reverted on failure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from longshore.orchestration.errors import OperationError, StepCancelled, StepTimeout, Transient
from longshore.orchestration.operations import Params
from longshore.orchestration.operations.compose_params import RolloutParams
from longshore.tasks.host.engine.factory import engine
from longshore.tasks.host.engine.port import Engine
from longshore.tasks.implementation import Context, Implementation, Outcome
from longshore.tasks.operations.compose import bad_versions, command_lines, restoration, revisions, way_back
from longshore.tasks.operations.compose.cli import Compose, Resolved, Source
from longshore.tasks.operations.compose.config_hashes import note_aliases
from longshore.tasks.operations.compose.config_inputs import note_inputs
from longshore.tasks.operations.compose.inputs import digest_of_file, inputs_of
from longshore.tasks.operations.compose.project import members_of, project_lock
from longshore.tasks.operations.compose.state import (
    HealthWaiter,
    Member,
    containers,
    has_failed,
    is_well,
    members,
    to_do,
    was_held_back,
)
from longshore.tasks.operations.docker.evidence import collect, evidence_of, reason_of
from longshore.tasks.operations.docker.levels import HealthCheck

P = TypeVar("P", bound=Params)


class RolloutStep(Implementation[P]):
    """The base of operations that roll out a configuration: the undo restores the project without pulls."""

    def undo(self, ctx: Context, params: Any, before: dict[str, Any], data: dict[str, Any] | None) -> Outcome:
        docker, project = engine(), before["project"]
        with project_lock(ctx, docker, project):
            known = revisions.targets(ctx, project)
            if not known:
                return Outcome(changed=False)  # the target is stored before the first change
            return restoration.take_back(ctx, docker, before, known=known, grace=params.grace)


@dataclass
class Rollout:
    """The rollout of one step to a project, or to some of its services. The caller holds the project's lock."""

    ctx: Context
    docker: Engine
    params: RolloutParams
    before: dict[str, Any]
    target: Resolved
    #: The number of services per wave.
    max_parallel: int | None = None

    def run(self, source: Source, named: list[str], options: list[str], *, also: bool = False) -> list[Member]:
        """Roll out and return the members in scope, all healthy. `also`: run Compose even if `to_do` finds nothing."""
        project = self.before["project"]
        services = self.target.with_dependencies(named)

        def up(waiter: HealthWaiter) -> None:
            touched = to_do(self.docker, self.target, services, members(self.docker, project))
            if touched or also:
                self.keep_images()
                self._up(waiter, source, named, list(touched), options)

        return self.within_limits(up, services)

    def keep_images(self) -> None:
        """Keep the images of the former containers for the undo."""
        images = (member.image_id for member in members_of(self.before))
        revisions.keep_images(self.ctx, self.docker, self.before["project"], images)

    def note(self) -> None:
        """Store the running state as a revision, from the target or, where older services run as well, as they do."""
        now = members(self.docker, self.target.project)
        configuration = revisions.as_they_run(self.ctx, self.target, now)
        if configuration is None:
            configuration = way_back.reconstructed(self.docker, self.target.project, now, self.target.source)
        revisions.note(self.ctx, self.docker, configuration, now)
        source = revisions.recorded_source(self.target.project, containers(self.docker, self.target.project))
        if source is not None:
            digests = {path: digest_of_file(path) for path in inputs_of(source)[0]}
            note_inputs(self.target.project, self.target.hashes.values(), digests)

    def within_limits(self, change: Callable[[HealthWaiter], None], services: Iterable[str]) -> list[Member]:
        """Apply a change, wait until these services are healthy, and return the members in scope. On failure the
        project is restored if `auto_revert` is set.
        """
        project, was = self.before["project"], members_of(self.before)
        waiter = HealthWaiter(
            self.ctx,
            self.docker,
            project,
            self.params.healthy_deadline,
            self.params.min_healthy_time,
            self.target.jobs(),
        )
        way_back.note_running(self.ctx, self.docker, project)
        waiter.steady = {member.id: member.started_at for member in was if member.running}
        try:
            change(waiter)
            waiter.wait(services)
        except (StepCancelled, StepTimeout, Transient):
            raise  # the undo or the next attempt continues from here
        except OperationError as error:
            self._add_evidence(error)
            self._remember(waiter)
            if not self.params.auto_revert:
                raise
            self._revert(error)
        scope = self.before["services"]
        now = [member for member in members(self.docker, project) if member.service in scope]
        bad_versions.forget(project, now)
        return now

    def _remember(self, waiter: HealthWaiter) -> None:
        """Store the new versions that have failed, for `stacks.restart`.

        Other services may still become healthy, or were not started because a dependency has failed.
        """
        project, scope = self.before["project"], self.before["services"]
        old = {(m.service, m.hash, m.image_id) for m in members_of(self.before)}
        now = [m for m in members(self.docker, project) if m.service in scope and m.key not in waiter.stopped]
        failed = [m for m in now if not was_held_back(m) and (has_failed(m) or m.id in waiter.failed)]
        for member in failed:
            if (member.service, member.hash, member.image_id) not in old:
                found = evidence_of(self.ctx, self.docker, member.id)
                why = (reason_of(found) if found else "") or HealthCheck(0.0).problem(member)
                bad_versions.remember(self.docker, project, [member], why)

    def _up(
        self, waiter: HealthWaiter, source: Source, named: list[str], touched: list[str], options: list[str]
    ) -> None:
        options = options + command_lines.timeout(self.params.grace)
        compose = Compose(self.ctx, self.docker)
        if self.max_parallel is None or not touched:
            try:
                compose.up(source, named, options)
            finally:
                self._note_hashes()
            return
        # Dependencies precede their dependents, so that they are healthy before the dependents' wave.
        for wave in _waves(touched, self.max_parallel):
            self.up_alone(source, wave, options)
            waiter.wait(wave)

    def up_alone(self, source: Source, services: list[str], options: list[str]) -> None:
        """Bring up services without their dependencies, which may be stopped on purpose or completed one-shots.

        `--no-deps` is omitted if the dependencies need no change, since it changes the hashes: see `aliases`.
        """
        others = [name for name in self.target.with_dependencies(services) if name not in services]
        found = members(self.docker, self.before["project"])
        run = all(member.running for member in found if member.service in others)
        compose = Compose(self.ctx, self.docker)
        unchanged = run and not to_do(self.docker, self.target, others, found)
        try:
            compose.up(source, services, options if unchanged else ["--no-deps", *options])
        finally:
            self._note_hashes()

    def _note_hashes(self) -> None:
        """Store the hashes that Compose has labelled new containers with, where they differ from that of the files."""
        project, old = self.before["project"], {member.id for member in members_of(self.before)}
        scope = self.target.hashes.keys() & set(self.before["services"])
        made = [m for m in map(Member.of, containers(self.docker, project)) if m.service in scope and m.id not in old]
        hashes = {(m.service, m.hash): self.target.hashes[m.service] for m in made}
        note_aliases(project, hashes)

    def _revert(self, error: OperationError) -> None:
        """Restore the project at once, and raise the error of the failed rollout."""
        project = self.before["project"]
        self.ctx.log(f"{error.message}: reverting project {project}")
        try:
            restored = restoration.take_back(
                self.ctx, self.docker, self.before, known=[self.target], grace=self.params.grace
            )
        except (StepCancelled, StepTimeout):
            raise
        except OperationError as failure:
            what = f"{error.message}; the revert failed: {failure.message}"
            raise OperationError(what, data=error.data | failure.data | {"reverted": False}) from error
        what = f"{error.message}; project {project} was reverted"
        raise OperationError(what, data=error.data | restored.data | {"reverted": True}) from error

    def _add_evidence(self, error: OperationError) -> None:
        """Add the evidence about failed containers to an error of Compose."""
        if "evidence" in error.data:
            return
        scope = self.before["services"]
        ill = [m for m in members(self.docker, self.before["project"]) if m.service in scope and not is_well(m)]
        # The message quotes the first container: a failed one, rather than one that was held back.
        ill.sort(key=lambda member: not has_failed(member))
        found = collect(self.ctx, self.docker, (member.id for member in ill))
        error.data["evidence"] = found
        if found and (reason := reason_of(found[0])):
            error.message += f" ({found[0]['container']}: {reason})"
            error.args = (error.message,)


def _waves(services: list[str], size: int) -> Iterator[list[str]]:
    for begin in range(0, len(services), size):
        yield services[begin : begin + size]


def reasons(todo: dict[str, str]) -> str:
    """The services that a step would change, with the reasons, for people."""
    return "; ".join(f"{name}: {reason}" for name, reason in todo.items())


def difference(before: dict[str, Any], now: list[Member]) -> dict[str, Any]:
    """The names of created, recreated, started, removed and unchanged containers."""
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

"""Restoration of a project's configuration, images and running containers after a step, without pulls and builds."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from longshore.orchestration.errors import OperationError, Transient
from longshore.tasks.host.engine.port import Engine, NotThere
from longshore.tasks.implementation import Context, Outcome
from longshore.tasks.operations.compose import command_lines, reconstruction
from longshore.tasks.operations.compose.cli import PROJECT, Compose, Resolved, Source
from longshore.tasks.operations.compose.config_hashes import note_aliases
from longshore.tasks.operations.compose.revisions import keep_images, load, path_of, release_images
from longshore.tasks.operations.compose.standing import reported_on_failure, standing
from longshore.tasks.operations.compose.state import (
    Member,
    await_stops,
    containers,
    fingerprint,
    former_health,
    members,
    start_in_order,
    stop_in_order,
)
from longshore.tasks.operations.docker.tag_backup import TagBackup


def take_back(
    ctx: Context,
    docker: Engine,
    before: dict[str, Any],
    *,
    known: Iterable[Resolved] = (),
    grace: float | None = None,
) -> Outcome:
    """Restore a project as `restore` does; the outcome, and a failure, tell what runs afterwards."""
    began, project = time.monotonic(), before["project"]
    with reported_on_failure(ctx, docker, project):
        done = restore(ctx, docker, before, known=known, grace=grace)
    now = standing(ctx, docker, project, back=True, after=time.monotonic() - began)
    return Outcome(changed=done, data={"standing": [now]})


def restore(
    ctx: Context,
    docker: Engine,
    before: dict[str, Any],
    *,
    known: Iterable[Resolved] = (),
    grace: float | None = None,
) -> bool:
    """Restore a project's configuration, images and running containers. Returns whether anything differed.

    `known`: the target configurations of the step. Containers that match neither these nor the former state were
    changed outside of this run and are left alone, like names of images that the step has not moved. `grace`: the
    grace of the step.
    """
    project, scope, refs = before["project"], set(before["services"]), before["refs"]
    was = [Member(**one) for one in before["containers"]]
    given = TagBackup(ctx).names()
    foreign = _foreign_names(docker, refs, given, was)

    def now() -> list[Member]:
        return [member for member in members(docker, project) if member.service in scope]

    _refuse_foreign(project, was, now(), known)
    await_stops(ctx, docker, now(), grace)
    done = fingerprint(was) != fingerprint(now())
    if done:
        # Names move to the former images and back, so that an image may have no other name for a moment.
        keep_images(ctx, docker, project, filter(None, refs.values()))
        _remove_unstarted(docker, was, now())
        lost = _lost(was, now())
        if lost:
            _recreate(ctx, docker, path_of(ctx, project, "before"), [m for m in was if m.service in lost])
        placed = _renumbered(was, now())
        _stop_and_remove(docker, placed, now())
        _start_what_ran(ctx, docker, project, placed, now())
    done |= _restore_names(docker, was, now())
    done |= _remove_networks(docker, project, before["networks"])
    _restore_tags(docker, refs, given, foreign, was)
    is_now, should = fingerprint(now()), fingerprint(was)
    left = {entry[0] for entry in (is_now - should) + (should - is_now)}
    if left:
        # The engine may still execute a stop that a killed program had requested.
        raise Transient(f"project {project} is not restored yet: {', '.join(sorted(left))} differ")
    release_images(ctx, docker, project, [*(member.image_id for member in was), *filter(None, refs.values())])
    TagBackup(ctx).forget()
    return done


def _refuse_foreign(project: str, was: list[Member], now: list[Member], known: Iterable[Resolved]) -> None:
    known = list(known)
    for member in now:
        ours = {one.hash for one in was if one.service == member.service}
        ours |= {one.hashes.get(member.service, "") for one in known}
        if member.hash not in ours:
            what = f"service {member.service} of project {project} was changed outside of this run"
            raise OperationError(what, remedy="check the service, then run: longshore runs resolve")


def _remove_unstarted(docker: Engine, was: list[Member], now: list[Member]) -> None:
    """Remove containers that a killed Compose had created as replacements and not started."""
    old = {(member.key, member.hash, member.image_id) for member in was}
    for member in now:
        if member.status == "created" and (member.key, member.hash, member.image_id) not in old:
            docker.remove(member.id)


def _lost(was: list[Member], now: list[Member]) -> set[str]:
    """Services with a missing or replaced container."""
    made = Counter((member.service, member.hash, member.image_id) for member in now)
    needed = Counter((member.service, member.hash, member.image_id) for member in was)
    twice = {key[0] for key, count in Counter(member.key for member in now).items() if count > 1}
    return {service for service, _, _ in needed - made} | {one.service for one in was if one.service in twice}


def _renumbered(was: list[Member], now: list[Member]) -> list[Member]:
    """The former state with the present container numbers: Compose numbers new containers from 1."""
    placed: list[Member] = []
    for service in dict.fromkeys(member.service for member in was):
        old = sorted((one for one in was if one.service == service), key=lambda one: one.number)
        there = sorted(one.number for one in now if one.service == service)
        same = {one.number for one in old} <= set(there) or len(there) < len(old)
        numbers = [one.number for one in old] if same else there
        placed += [replace(one, number=number) for one, number in zip(old, numbers, strict=False)]
    return placed


def _restore_names(docker: Engine, was: list[Member], now: list[Member]) -> bool:
    """Rename replacements that an interrupted Compose has left with their temporary name `<id>_<name>`."""
    taken, renamed = {member.name for member in now}, False
    for member in now:
        name = next((one.name for one in was if member.name.endswith(f"_{one.name}") and one.name not in taken), None)
        if name is not None:
            docker.rename(member.id, name)
            taken.add(name)
            renamed = True
    return renamed


def _recreate(ctx: Context, docker: Engine, path: Path, was: list[Member]) -> None:
    """Create containers from the former file and images, without a start."""
    revision = load(path)
    if revision is None:
        what = f"the former configuration of container {was[0].name} is unknown"
        raise OperationError(what, remedy="bring the project up from its former files, then: longshore runs resolve")
    for member in was:
        if member.image.startswith("sha256:") or docker.image_id(member.image) == member.image_id:
            continue
        try:
            docker.tag(member.image_id, member.image)
        except NotThere as error:
            raise OperationError(
                f"image {member.image_id} of container {member.name} was removed outside of this run"
            ) from error
    if revision.containers:
        described = [reconstruction.Description(**one) for one in revision.containers]
        ours, now = {member.id for member in was}, members(docker, revision.project)
        wanted = [one for one in described if one.id in ours and not reconstruction.runs_as(one, now)]
        reconstruction.create_all(docker, wanted)
        return
    counts: dict[str, int] = {}
    for member in was:
        counts[member.service] = counts.get(member.service, 0) + 1
    scale = {name: count for name, count in counts.items() if count != revision.replicas(name)}
    source = Source(revision.project, revision.source.directory, (str(path),), (), ("*",))
    there = {member.id for member in members(docker, revision.project)}
    try:
        Compose(ctx, docker).execute(source, command_lines.create(sorted(counts), scale))
    finally:
        made = [m for m in map(Member.of, containers(docker, revision.project)) if m.id not in there]
        known = {(m.service, m.hash): revision.hashes[m.service] for m in made if m.service in counts}
        note_aliases(revision.project, known)


def _stop_and_remove(docker: Engine, was: list[Member], now: list[Member]) -> None:
    """Stop containers that did not run, and remove containers that did not exist."""
    ran, there = {member.key for member in was if member.running}, {member.key for member in was}
    stop_in_order(member for member in now if member.running and member.key not in ran)
    for member in now:
        if member.key not in there:
            docker.remove(member.id)


def _start_what_ran(ctx: Context, docker: Engine, project: str, was: list[Member], now: list[Member]) -> None:
    ran = {member.key: member for member in was if member.running}
    waiter = former_health(ctx, docker, project, now)
    start_in_order(waiter, [member for member in now if member.key in ran], now)
    waiter.wait({member.service for member in ran.values() if member.health == "healthy"})
    for member in now:
        if member.key in ran and ran[member.key].paused and not member.paused:
            docker.pause(member.id)


def _remove_networks(docker: Engine, project: str, kept: list[str]) -> bool:
    removed = False
    for network, name in docker.networks({PROJECT: project}).items():
        if name not in kept:
            with contextlib.suppress(OperationError):  # containers outside of this step use it
                removed |= docker.remove_network(network)
    return removed


def _foreign_names(
    docker: Engine, refs: dict[str, str | None], given: dict[str, str], was: list[Member]
) -> dict[str, str]:
    """Names that were moved outside of this run, to neither their former image nor the step's."""
    ours = {member.image_id for member in was}
    current = {ref: docker.image_id(ref) for ref in refs}
    return {
        ref: image_id
        for ref, image_id in current.items()
        if image_id is not None and image_id not in {*ours, refs[ref], given.get(ref)}
    }


def _restore_tags(
    docker: Engine, refs: dict[str, str | None], given: dict[str, str], foreign: dict[str, str], was: list[Member]
) -> None:
    """Move names back to their former images, except names that were moved outside of this run."""
    ours = {member.image_id for member in was}
    for ref, image_id in refs.items():
        wanted = foreign.get(ref, image_id)
        current = docker.image_id(ref)
        if current == wanted:
            continue
        if wanted is not None:
            docker.tag(wanted, ref)
        elif current is not None and (current == given.get(ref) or current in ours):
            docker.untag(ref)

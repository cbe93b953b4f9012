"""The version of a project that runs at the end of a step or of its undo, with a sentence for people."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

from longshore.orchestration.errors import OperationError, Preflight, Transient
from longshore.tasks.host.engine.port import Engine
from longshore.tasks.implementation import Context
from longshore.tasks.operations.compose import revisions
from longshore.tasks.operations.compose.state import Member, is_well, members
from longshore.tasks.operations.docker.evidence import evidence_of, reason_of

#: Exit codes after SIGINT, SIGKILL and SIGTERM.
_ASKED = {130, 137, 143}
#: Names of images in the sentence.
_NAMED = 3


def standing(
    ctx: Context, docker: Engine, project: str, *, back: bool = False, after: float | None = None
) -> dict[str, Any]:
    """The running version of a project: its images, revision, health, and a sentence.

    `back`: the step was reverted or undone; `after`: the seconds that this took. Stopped containers count as intended.
    """
    found = members(docker, project)
    revision = revisions.running(project, found)
    ill = [member for member in found if not is_well(member) and not was_stopped(docker, member)]
    services = revisions.services_of(found)
    for name, service in services.items():
        mine = [member for member in found if member.service == name]
        service["health"] = next((_health(one) for one in mine if one in ill), _health(mine[0]))
    return {
        "project": project,
        "at": round(time.time(), 3),
        "revision": revision.number if revision else None,
        "healthy": bool(found) and not ill,
        "services": services,
        "text": _sentence(ctx, docker, project, found, ill, revision, back=back, after=after),
    }


def was_stopped(docker: Engine, member: Member) -> bool:
    """Reports whether a container was never started, or was stopped by a signal, and not for lack of memory."""
    if member.status == "created" or (member.status == "exited" and member.exit_code in _ASKED):
        container = docker.inspect(member.id)
        return container is None or not container.oom_killed
    return False


def _health(member: Member) -> str:
    return member.health if member.running and member.health else member.status


def _sentence(
    ctx: Context,
    docker: Engine,
    project: str,
    found: list[Member],
    ill: list[Member],
    revision: revisions.Revision | None,
    *,
    back: bool,
    after: float | None,
) -> str:
    if not found:
        return f"{project} has no containers" + (", as before" if back else "")
    names = list(dict.fromkeys(member.image for member in ill or found))
    images = ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
    number = f"revision {revision.number}" if revision else "the former version" if back else "no stored revision"
    if not ill:
        how = "is back on" if back else "runs"
        took = "" if after is None else f" after {max(1, round(after))} s"
        return f"{project} {how} {number} ({images}), healthy{took}"
    evidence = evidence_of(ctx, docker, ill[0].id)
    why = reason_of(evidence) if evidence else ""
    state = "is unhealthy" if ill[0].health == "unhealthy" else f"is {ill[0].status}"
    text = f"{project.upper()} IS DOWN on {images}: container {ill[0].name} {state}" + (f": {why}" if why else "")
    earlier = [one for one in revisions.history(project) if revision is None or one.number != revision.number]
    if earlier:
        command = f"longshore ops run compose.rollback.execute project={project} to={earlier[-1].number}"
        text += f"; to bring back revision {earlier[-1].number}: {command}"
    return text


@contextlib.contextmanager
def reported_on_failure(ctx: Context, docker: Engine, project: str) -> Iterator[None]:
    """A failure inside carries what runs then, in its data."""
    try:
        yield
    except (Preflight, Transient):
        raise
    except OperationError as error:
        if "standing" not in error.data:
            with contextlib.suppress(OperationError):
                error.data["standing"] = [standing(ctx, docker, project)]
        raise

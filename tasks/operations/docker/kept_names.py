"""A bound for the names that keep images for undos: the latest of each step of a plan, within the retention."""

from __future__ import annotations

import hashlib
import json
import time

from longshore.orchestration.settings import get_settings
from longshore.tasks.host.backups import write_private
from longshore.tasks.host.engine.port import Engine
from longshore.tasks.host.file_lock import exclusive
from longshore.tasks.implementation import Context

#: The number of latest names that are kept per step; an undo of an older one would find its names moved since.
_KEPT = 10


def bound(ctx: Context, docker: Engine, name: str) -> None:
    """Note a name of a step, and remove its oldest ones from the engine."""
    step = hashlib.sha256(f"{docker.url} {ctx.plan} {ctx.step}".encode()).hexdigest()[:32]
    path = get_settings().state_dir / "kept-names" / f"{step}.json"
    with exclusive(f"kept names {step}", ctx.check):
        try:
            known: dict[str, float] = json.loads(path.read_text())
        except (OSError, ValueError):
            known = {}
        known.pop(name, None)
        known[name] = round(time.time(), 3)
        since = time.time() - get_settings().retention
        stay = {one: at for one, at in list(known.items())[-_KEPT:] if at >= since}
        for old in known.keys() - stay.keys():
            docker.untag(old)
        write_private(path, json.dumps(stay).encode())

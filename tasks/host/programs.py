"""The programs that a worker may run: `LONGSHORE_ALLOWED_COMMANDS`, and what of their environment a plan may set.

A program is resolved before it is matched. The file that is started is the one that was matched, under the name that
the worker's PATH or its setting has for it: a path of the plan's making could lead elsewhere a moment later, or have
the program take its libraries from beside it. Without a list any program may be run, so that nothing of its
environment needs a check either.
"""

from __future__ import annotations

import fnmatch
import glob
import os
import re
import shutil
from collections.abc import Mapping

from longshore.orchestration.errors import NotAllowed, Preflight
from longshore.orchestration.settings import get_settings
from longshore.tasks.host.allow_lists import patterns

#: Variables that the worker itself adds to the environment of a step's program.
OF_THE_STEP = frozenset({"LONGSHORE_RUN_ID", "LONGSHORE_STEP", "LONGSHORE_ATTEMPT"})
_WILD = re.compile(r"[*?\[]")


def resolved(program: str, cwd: str) -> str | None:
    """The file that this worker starts under that name; None where it may start none of that name.

    Raises Preflight for a name that stands for no program.
    """
    allowed = patterns(get_settings().allowed_commands)
    bare = "/" not in program
    found = shutil.which(program) if bare else os.path.join(cwd, program)
    # A pattern without a slash is a program of that name on PATH, and not one of that name anywhere.
    if bare and any("/" not in pattern and fnmatch.fnmatchcase(program, pattern) for pattern in allowed):
        if found is None:
            raise Preflight(f"no such program: {program}", remedy="check the path on the worker's host")
        return os.path.abspath(found)
    if found is None:
        return None
    real = os.path.realpath(found)
    return next((file for pattern in allowed if (file := _matched(real, os.path.basename(found), pattern))), None)


def _matched(real: str, name: str, pattern: str) -> str | None:
    """The file that a pattern with a path admits, if it is this one. Links in the pattern are followed."""
    if pattern == "*":
        return real
    if "/" not in pattern:
        return None
    wild = _WILD.search(pattern)
    if wild is None:
        # One file may be many programs, each by its name (busybox).
        return pattern if os.path.realpath(pattern) == real and os.path.basename(pattern) == name else None
    folder, _, rest = pattern[: wild.start()].rpartition("/")
    whole = os.path.join(glob.escape(os.path.realpath(folder or "/")), rest + pattern[wild.start() :])
    return real if fnmatch.fnmatchcase(real, whole) else None


def require(program: str, env: Mapping[str, str], own: Mapping[str, str], cwd: str) -> str | None:
    """The file to be started for a step's program, where only some may be; None where any may.

    `own` is the environment that the worker passes on by itself. NotAllowed, or Preflight, where it may not be run.
    """
    if not patterns(get_settings().allowed_commands):
        return None
    real = resolved(program, cwd)
    if real is None:
        raise NotAllowed(
            f"this worker may not run {program!r}", remedy="it is not in the worker's LONGSHORE_ALLOWED_COMMANDS"
        )
    names = patterns(get_settings().allowed_environment)
    for name, value in env.items():
        if name in OF_THE_STEP or own.get(name) == value or any(fnmatch.fnmatchcase(name, one) for one in names):
            continue
        raise NotAllowed(
            f"this worker runs only some programs, and {name} may make another of one",
            remedy="it is not in the worker's LONGSHORE_ALLOWED_ENVIRONMENT",
        )
    return real

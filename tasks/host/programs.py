"""The check of programs against `LONGSHORE_ALLOWED_COMMANDS`, and of the environment that a plan sets for them.

A program is resolved before it is matched. The worker starts the matched file, by its path on the worker's PATH or in
the setting: a path from the plan could point to another file a moment later, or make the program load libraries from
the folder beside it. Without the list any program may run, and its environment is not checked.
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

#: Variables that the worker adds to the environment of a step's program.
OF_THE_STEP = frozenset({"LONGSHORE_RUN_ID", "LONGSHORE_STEP", "LONGSHORE_ATTEMPT"})
_WILD = re.compile(r"[*?\[]")


def resolved(program: str, cwd: str) -> str | None:
    """The file that this worker starts for a program name; None if no entry of the list admits the name.

    Raises Preflight if an admitted name is not on PATH.
    """
    allowed = patterns(get_settings().allowed_commands)
    bare = "/" not in program
    found = shutil.which(program) if bare else os.path.join(cwd, program)
    # A pattern without a slash matches a program on PATH only.
    if bare and any("/" not in pattern and fnmatch.fnmatchcase(program, pattern) for pattern in allowed):
        if found is None:
            raise Preflight(
                f"no such program: {program}", remedy="install the program on the worker's host, or correct the name"
            )
        return os.path.abspath(found)
    if found is None:
        return None
    real = os.path.realpath(found)
    return next((file for pattern in allowed if (file := _matched(real, os.path.basename(found), pattern))), None)


def _matched(real: str, name: str, pattern: str) -> str | None:
    """The file to start if a pattern with a path admits it. Links in the pattern are followed."""
    if pattern == "*":
        return real
    if "/" not in pattern:
        return None
    wild = _WILD.search(pattern)
    if wild is None:
        # One file may be several programs that differ by name (busybox).
        return pattern if os.path.realpath(pattern) == real and os.path.basename(pattern) == name else None
    folder, _, rest = pattern[: wild.start()].rpartition("/")
    whole = os.path.join(glob.escape(os.path.realpath(folder or "/")), rest + pattern[wild.start() :])
    return real if fnmatch.fnmatchcase(real, whole) else None


def require(program: str, env: Mapping[str, str], own: Mapping[str, str], cwd: str) -> str | None:
    """The file to start for a step's program if the list is set; None if any program may run.

    `own` is the environment that the worker passes on. Raises NotAllowed or Preflight if the program may not run.
    """
    if not patterns(get_settings().allowed_commands):
        return None
    real = resolved(program, cwd)
    if real is None:
        raise NotAllowed(
            f"this worker may not run {program!r}",
            remedy="add the program to LONGSHORE_ALLOWED_COMMANDS of the worker, or choose an allowed program",
        )
    names = patterns(get_settings().allowed_environment)
    for name, value in env.items():
        if name in OF_THE_STEP or own.get(name) == value or any(fnmatch.fnmatchcase(name, one) for one in names):
            continue
        raise NotAllowed(
            f"this worker may not set the variable {name} for a program: it could change which code runs",
            remedy="remove the variable, or add its name to LONGSHORE_ALLOWED_ENVIRONMENT of the worker",
        )
    return real

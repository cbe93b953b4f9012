"""`command.exec.execute` and `command.shell.execute`."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Any

from longshore.orchestration.errors import OperationError, Unsuccessful
from longshore.orchestration.operations.command import EXEC, SHELL, ExecParams, ShellParams
from longshore.tasks import process
from longshore.tasks.operation import Context, Implementation, Outcome, Prediction, implements

#: What a command may see of the worker's environment.
_PASSED_ON = ("PATH", "HOME", "LANG", "LC_ALL", "USER", "LOGNAME", "TZ", "TMPDIR")

_Params = ExecParams | ShellParams


def _argv(params: _Params) -> list[str]:
    return params.argv if isinstance(params, ExecParams) else ["/bin/sh", "-c", params.command]


def _shown(params: _Params) -> str:
    return shlex.join(params.argv) if isinstance(params, ExecParams) else params.command


def _environment(ctx: Context, params: _Params) -> dict[str, str]:
    env = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    env |= {"LONGSHORE_RUN_ID": ctx.run_id, "LONGSHORE_STEP": ctx.part, "LONGSHORE_ATTEMPT": str(ctx.attempt)}
    return env | params.env


def _created(params: _Params) -> str | None:
    """The path that says that nothing is to be done, if it is there."""
    if params.creates is None:
        return None
    path = Path(params.cwd or ".") / params.creates
    return str(path) if path.exists() else None


def _satisfied(ctx: Context, params: _Params) -> bool:
    """Whether the `unless` command ends with 0."""
    if params.unless is None:
        return False
    argv = params.unless if isinstance(params.unless, list) else ["/bin/sh", "-c", params.unless]
    done = process.run(
        argv, cwd=params.cwd, env=_environment(ctx, params), timeout=60.0, check=ctx.check, began=ctx.began
    )
    return done.exit_code == 0


class _Command(Implementation[Any]):
    def act(self, ctx: Context, params: _Params, before: dict[str, Any]) -> Outcome:
        if path := _created(params):
            return Outcome(changed=False, data={"stdout": "", "stderr": "", "skipped": f"{path} is there"})
        if _satisfied(ctx, params):
            return Outcome(changed=False, data={"stdout": "", "stderr": "", "skipped": "unless ended with 0"})
        done = process.run(
            _argv(params),
            cwd=params.cwd,
            env=_environment(ctx, params),
            stdin=None if params.stdin is None else params.stdin.encode(),
            timeout=params.timeout,
            check=ctx.check,
            began=ctx.began,
        )
        data = {
            "stdout": done.stdout,
            "stderr": done.stderr,
            "exit_code": done.exit_code,
            "duration_ms": done.duration_ms,
            "truncated": done.truncated,
        }
        if done.stdout or done.stderr:
            ctx.log(done.stdout + done.stderr)
        if done.exit_code not in params.ok_codes:
            said = (done.stderr.strip() or done.stdout.strip()).splitlines()
            raise Unsuccessful(
                f"{_argv(params)[0]} ended with exit code {done.exit_code}" + (f": {said[-1][:200]}" if said else ""),
                data=data,
            )
        return Outcome(changed=params.changes, data=data)

    def predict(self, ctx: Context, params: _Params) -> Prediction:
        if path := _created(params):
            return Prediction(f"would run nothing: {path} is there", changed=False)
        if params.unless is not None:
            return Prediction(f"would run, unless its check ends with 0: {_shown(params)}", changed=None)
        return Prediction(f"would run: {_shown(params)}", changed=params.changes)

    def undo(self, ctx: Context, params: _Params, before: dict[str, Any], data: dict[str, Any] | None) -> Outcome:
        raise OperationError("a command cannot be taken back by itself", remedy="give the step an undo")


@implements(EXEC)
class Exec(_Command):
    """Run a program with an argument list."""


@implements(SHELL)
class Shell(_Command):
    """Run a command line by /bin/sh."""

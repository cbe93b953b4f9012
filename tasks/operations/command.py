"""`command.exec.execute` and `command.shell.execute`, and their base, which `docker.exec` and `compose.exec` share."""

from __future__ import annotations

import shlex
from pathlib import PurePosixPath
from typing import Any

from longshore.orchestration.errors import OperationError, Preflight, Unsuccessful
from longshore.orchestration.operations.command import EXEC, SHELL, CommandParams, ExecParams, ShellParams
from longshore.tasks.host.machine.factory import machine_of
from longshore.tasks.host.machine.port import Machine, Program
from longshore.tasks.implementation import Change, Context, Implementation, Outcome, Prediction, implements, would_fail

_UNLESS_TIMEOUT = 60.0


class Command(Implementation[Any]):
    """Runs one program on one machine."""

    def machine(self, ctx: Context, params: Any) -> Machine:
        return machine_of(ctx)

    def argv(self, params: Any) -> list[str]:
        return list(params.argv)

    def shown(self, params: Any) -> str:
        return shlex.join(self.argv(params))

    def change(self, ctx: Context, params: CommandParams, before: dict[str, Any]) -> Change:
        machine = self.machine(ctx, params)
        if why := _created_already(machine, params):
            yield Prediction(f"would run nothing: {why}", changed=False)
            return Outcome(changed=False, data=_skipped(why))
        program = Program(
            argv=self.argv(params),
            cwd=params.cwd,
            env=_environment(ctx, machine, params),
            stdin=None if params.stdin is None else params.stdin.encode(),
            timeout=params.timeout,
            grace=params.grace,
            user=getattr(params, "user", None),
        )
        yield self._prediction(ctx, machine, params, program)
        if why := self._satisfied(ctx, machine, params):
            return Outcome(changed=False, data=_skipped(why))
        done = machine.run(machine.require(program))
        data = {
            "stdout": done.stdout,
            "stderr": done.stderr,
            "exit_code": done.exit_code,
            "duration_ms": done.duration_ms,
            "truncated": done.truncated,
        }
        if done.exit_code not in params.ok_codes:
            lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
            what = f"{program.argv[0]} exited with code {done.exit_code}"
            raise Unsuccessful(what + (f": {ctx.redact(lines[-1])[:200]}" if lines else ""), data=data)
        return Outcome(changed=params.changes, data=data)

    def _prediction(self, ctx: Context, machine: Machine, params: CommandParams, program: Program) -> Prediction:
        if ctx.dry_run:  # a step runs the check of `unless` first, and may then do without the program
            try:
                machine.require(program)
            except Preflight as error:
                return would_fail(str(error))
        if params.unless is not None:
            return Prediction(f"would run, unless its check exits with 0: {self.shown(params)}", changed=None)
        return Prediction(f"would run: {self.shown(params)}", changed=params.changes)

    def undo(self, ctx: Context, params: Any, before: dict[str, Any], data: dict[str, Any] | None) -> Outcome:
        raise OperationError("a command has no undo of its own", remedy="give the step an undo")

    def _satisfied(self, ctx: Context, machine: Machine, params: CommandParams) -> str:
        """The reason to skip the program: the `unless` command exits with 0; else ''."""
        if params.unless is None:
            return ""
        argv = params.unless if isinstance(params.unless, list) else ["/bin/sh", "-c", params.unless]
        env = _environment(ctx, machine, params)
        done = machine.run(machine.require(Program(argv, env, cwd=params.cwd, timeout=_UNLESS_TIMEOUT)))
        return "unless exited with 0" if done.exit_code == 0 else ""


def _skipped(why: str) -> dict[str, str]:
    return {"stdout": "", "stderr": "", "skipped": why}


def _environment(ctx: Context, machine: Machine, params: CommandParams) -> dict[str, str]:
    step = {"LONGSHORE_RUN_ID": ctx.run_id, "LONGSHORE_STEP": ctx.part, "LONGSHORE_ATTEMPT": str(ctx.attempt)}
    return machine.environment() | step | params.env


def _created_already(machine: Machine, params: CommandParams) -> str:
    """The reason to skip the program: the path in `creates` exists; else ''."""
    if params.creates is None:
        return ""
    path = str(PurePosixPath(params.cwd or ".") / params.creates)
    return f"{path} exists" if machine.exists(path) else ""


@implements(EXEC)
class Exec(Command):
    """Run a program with an argument list."""

    def argv(self, params: ExecParams) -> list[str]:
        return params.argv


@implements(SHELL)
class Shell(Command):
    """Run a command line by /bin/sh."""

    def argv(self, params: ShellParams) -> list[str]:
        return ["/bin/sh", "-c", params.command]

    def shown(self, params: ShellParams) -> str:
        return params.command

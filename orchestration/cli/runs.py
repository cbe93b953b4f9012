"""The commands of `longshore runs` that change runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Literal, cast

import click

from longshore.orchestration import saga
from longshore.orchestration.cli.common import (
    CommandRefused,
    command,
    current_options,
    exit_with,
    print_error,
    print_line,
    print_result,
)
from longshore.orchestration.cli.inputs import client, read_duration
from longshore.orchestration.cli.names import complete_run, complete_step
from longshore.orchestration.cli.next_commands import print_next
from longshore.orchestration.cli.run import print_outcome, wait_for_end, watch_started, watch_to_end
from longshore.orchestration.cli.run_reports import SINCE, runs_group
from longshore.orchestration.client.client import Client
from longshore.orchestration.client.replay import Replay
from longshore.orchestration.client.run import Resolution, Run
from longshore.orchestration.errors import UnknownName
from longshore.orchestration.runs.search import time_or_age
from longshore.orchestration.states import TERMINAL
from longshore.orchestration.store.run_store import Store

_DETACH = click.option(
    "--detach",
    is_flag=True,
    help="Return once a worker has accepted the command; do not wait for the run to end.",
)


@command(runs_group, "cancel")
@click.argument("run", shell_complete=complete_run)
@click.option("--reason", default="", help="Reason, recorded in the events of the run.")
@click.option("--keep", is_flag=True, help="Keep the changes of finished steps; undo nothing.")
@_DETACH
def cancel(run: str, reason: str, keep: bool, detach: bool) -> None:
    """Cancel RUN: start no further steps, and undo the finished ones.

    Running steps are asked to stop, and are then undone, too. `always` steps still run. The command waits for the end
    of the run. If the run already undoes steps, the command is refused.

    Nothing is undone in these cases, not even a step that was stopped half-way:

    \b
    * with --keep
    * after a step with `irreversible: true` has succeeded
    * if the plan has `on_failure: keep`; `longshore orchestrate` and `restart`
      make such plans by default

    \b
    Exit codes:
      0  the run has ended, no effect is left over or in doubt, and no `always`
         step failed
      1  refused, or not executed in 30 seconds (a worker executes it later)
      3  an effect remains or may remain, or an `always` step failed
    """
    found = client().get(run)
    if current_options().dry_run:
        effect = "keep the changes" if keep else "undo the changes, unless the plan keeps them"
        _print_dry_run(found, {"pending", "running", "suspended"}, f"cancel run {run} and {effect}")
        return
    exit_with(_finish_command(found, lambda: found.cancel(reason, keep=keep), detach=detach))


@command(runs_group, "undo")
@click.argument("run", shell_complete=complete_run)
@click.option("--reason", default="", help="Reason, recorded in the events of the run.")
@_DETACH
def undo(run: str, reason: str, detach: bool) -> None:
    """Undo the changes of RUN, which has ended, or retry a failed undo.

    All steps that may have an effect, also failed ones, are undone in reverse order. `always` steps are not undone. If
    a step with `irreversible: true` has succeeded, the command is refused. The undo of a step can fail if something
    else has changed the same object since.

    \b
    Exit codes:
      0  undone, and no `always` step failed
      1  refused, or not executed in 30 seconds (a worker executes it later)
      3  an effect remains or may remain, or an `always` step failed
    """
    found = client().get(run)
    if current_options().dry_run:
        records = found.store.step_records(found.id, range(len(found.plan)))
        if saga.past_return(found.plan, records):
            raise CommandRefused(f"would be refused: run {run}: {saga.PAST_RETURN}")
        names = saga.undoable(found.plan, records)
        states = {"succeeded", "partial", "failed", "undo_failed"}
        _print_dry_run(found, states, f"undo, in reverse: {', '.join(reversed(names)) or 'nothing'}")
        return
    exit_with(_finish_command(found, lambda: found.undo(reason), detach=detach))


@command(runs_group, "resume")
@click.argument("run", shell_complete=complete_run)
@click.option("--reason", default="", help="Reason, recorded in the events of the run.")
@_DETACH
def resume(run: str, reason: str, detach: bool) -> None:
    """Resume RUN after a suspension, a failure or a failed undo.

    The state of RUN decides what happens:

    \b
    suspended        the run continues; but if the run waits for a decision, the
                     command is refused: use `longshore runs resolve`
    failed, partial  the run continues with all steps that are not done
    cancelled        the run begins, because it was cancelled before it began
    undo_failed      the failed undos are retried, then those held back run

    In all other states, the command is refused.

    A step is done if it succeeded. A skipped step is done, too, unless a dependency of the step failed. A step of
    unknown outcome runs again. To prevent this, first use `longshore runs resolve RUN STEP --done` or `--skip`.

    Exit codes: the same as `longshore run`, or 1 if the command was refused, or not executed in 30 seconds (a worker
    executes it later).
    """
    found, options = client().get(run), current_options()
    if options.dry_run:
        _print_dry_run(
            found,
            {"failed", "partial", "cancelled", "undo_failed", "suspended"},
            f"resume run {run}{_resume_steps(found)}",
        )
        return
    before = found.store.newest_event(found.id)
    _require_done(found, found.resume(reason))
    if detach:
        print_result(f"run {run} is {found.state()}", run_id=run, state=found.state())
        return
    report = wait_for_end(found, before)
    print_outcome(report, report.exit_code or 0)
    print_next(found, report)
    exit_with(report.exit_code or 0)


def _print_dry_run(run: Run, states: set[str], action: str) -> None:
    """Print the dry run of a command that is allowed in these states. Raises CommandRefused in any other state."""
    state = run.state()
    if state not in states:
        raise CommandRefused(f"would be refused: run {run.id} is {state}")
    print_result(f"would {action} (the run is {state})", run_id=run.id, state=state)


def _resume_steps(run: Run) -> str:
    """The steps that a resume would run, as the end of a sentence."""
    if run.state() not in {"failed", "partial", "cancelled"}:
        return ""
    records = run.store.step_records(run.id, range(len(run.plan)))
    resume_set = saga.resumed(run.plan, records)
    return f", and run {', '.join(run.plan.name_of(i) for i in resume_set.steps) or 'nothing'}"


@command(runs_group, "resolve")
@click.argument("run", shell_complete=complete_run)
@click.argument("step", shell_complete=complete_step)
@click.option("--done", is_flag=True, help="The effect exists: the step counts as succeeded.")
@click.option("--skip", is_flag=True, help="The effect is not needed: the step counts as skipped.")
@click.option("--undone", is_flag=True, help="The effect does not exist, or you have removed it.")
@click.option("--abandon", is_flag=True, help="The effect exists and remains: the report lists the step as left over.")
@click.option("--note", default="", help="Note, recorded in the events of the run with actor and time.")
def resolve(run: str, step: str, note: str, **flags: bool) -> None:
    """Record a decision about a step of unknown outcome or failed undo.

    First find out on the host whether the effect of the step exists. Then choose exactly one of --done, --skip,
    --undone and --abandon. After a failed undo, only --undone and --abandon are possible.

    If the run is suspended for this decision, --done and --skip continue the run. After --undone and --abandon, the
    step counts as failed, and the other steps are undone, unless the plan has `on_failure: keep` or `on_error:
    continue`. Without a decision within LONGSHORE_ASK_TIMEOUT, the step counts as failed, too, and its own undo, if it
    has one, also runs.

    To continue a run that has ended, use `longshore runs resume` afterwards.

    \b
    Exit codes:
      0  recorded
      1  refused, or not executed in 30 seconds (a worker executes it later)
    """
    chosen = [name for name, is_set in flags.items() if is_set]
    if len(chosen) != 1:
        raise click.UsageError("choose exactly one of --done, --skip, --undone and --abandon")
    resolution = cast("Resolution", chosen[0])
    found, options = client().get(run), current_options()
    if options.dry_run:
        print_result(
            f"would resolve step {step} of run {run}, which is {found.state()}: {resolution}", run_id=run, step=step
        )
        return
    _require_done(found, found.resolve(step, resolution, note))
    print_result(
        f"{resolution}: step {step} of run {run}, which is {found.state()}", run_id=run, step=step, state=found.state()
    )


def _require_done(run: Run, command_id: str) -> None:
    """Wait until a worker has carried out a command. Raises CommandRefused with the reason of a refusal."""
    answer = run.answer(command_id)
    if answer != "done":
        raise CommandRefused(f"run {run.id}: {answer}")


@command(runs_group, "replay")
@click.option("--host", default="", help="Host that has lost its data.")
@click.option("--service", default="", help="External service that has lost its data.")
@click.option("--since", metavar="TIME", help=SINCE)
@click.option("--run-id", metavar="ID", help="Id of the run that repeats the steps.")
@click.option("--detach", is_flag=True, help="Print the id of the run and return at once.")
def replay(host: str, service: str, since: str | None, run_id: str | None, detach: bool) -> None:
    """Repeat the steps of a host or service that has lost its data.

    Choose exactly one of --host and --service. One new run repeats the successful steps of the host or service that
    were not undone, even unchanged ones, with the recorded parameters and in the original order. If a repeated step
    fails, the run keeps its changes.

    The run repeats only operations of the kind `converges` (`longshore ops show`), idempotent operations of your own,
    and commands with `creates` or `unless`. The command lists the other steps, except those of deleted runs.

    Exit codes: the same as `longshore run`, or 3 if some steps cannot be repeated (with --detach: if none can).
    """
    options, connected = current_options(), client()
    created_since = time_or_age(since) if since is not None else None
    if options.dry_run:
        effects = connected.find_effects(host=host, service=service, since=created_since)
        repeated = [{"source": effects.sources[name], "op": step.op} for name, step in effects.plan.steps.items()]
        if options.json:
            options.show({"dry_run": True, "again": repeated, "left_out": [str(one) for one in effects.left_out]})
        else:
            for each in repeated:
                print_line(f"would repeat: {each['source']}: {each['op']}")
        if not effects.plan.steps:
            print_line("no steps to repeat", err=True)
        _print_left_out(effects)
        effects.close()
        return
    run, replayed = connected.replay(host=host, service=service, since=created_since, run_id=run_id)
    _print_left_out(replayed)
    if run is None:
        print_line("no steps to repeat", err=True)
        exit_with(3 if replayed.left_out else 0)
        return
    if detach:
        watch_started(run, detach=True)
        return
    code = watch_to_end(run)
    exit_with(code or (3 if replayed.left_out else 0))


def _print_left_out(replayed: Replay) -> None:
    for one in replayed.left_out:
        print_line(f"cannot be repeated: {one}", err=True)


@command(runs_group, "prune")
@click.argument("runs", nargs=-1, metavar="[RUN]...", shell_complete=complete_run)
@click.option("--older-than", metavar="TIME", help="Only runs that ended at least this long ago, e.g. 7d or 12h.")
@click.option("--plan", "plan_name", help="Only runs of this plan.")
def prune(runs: tuple[str, ...], older_than: str | None, plan_name: str | None) -> None:
    """Delete the records of ended runs; a deleted run cannot be undone.

    Without RUN, the command deletes all runs that ended longer ago than --older-than. The default is
    LONGSHORE_RETENTION, after which workers delete ended runs anyway. Child runs are deleted with their parent.

    A given RUN is deleted at any age. With --older-than or --plan, a RUN that does not match is skipped.

    \b
    Exit codes:
      0  each RUN was deleted, or skipped because of --older-than or --plan
      1  a run was refused: it has not ended, or is a child run
      1  a run was not deleted in 30 seconds (a worker deletes it later)
      2  wrong usage or an unknown run (nothing was deleted)
    """
    options, connected = current_options(), client()
    seconds = read_duration(older_than, "--older-than") if older_than is not None else connected.settings.retention
    old = connected.store.ended_since(seconds) if older_than is not None or not runs else []
    # All names are checked before the first run is deleted.
    chosen = [connected.get(run_id) for run_id in dict.fromkeys(runs)] if runs else _without_child_runs(connected, old)
    result: dict[str, list[str]] = {"forgotten": [], "refused": [], "skipped": []}
    try:
        for run in chosen:
            mismatch = ""
            if plan_name is not None and run.plan.plan.name != plan_name:
                mismatch = f"its plan is {run.plan.plan.name}"
            elif runs and older_than is not None and run.id not in old and run.state() in TERMINAL:
                mismatch = f"ended less than {older_than} ago"
            if not mismatch:
                result[_prune(run)].append(run.id)
            elif runs:
                result["skipped"].append(run.id)
                if not options.quiet:
                    print_line(f"skipped: run {run.id}: {mismatch}", err=True)
    finally:  # an error does not hide the runs that were deleted before
        if options.json:
            options.show({"dry_run": options.dry_run, **result})
    if result["refused"]:
        exit_with(1)


def _without_child_runs(connected: Client, run_ids: Iterable[str]) -> Iterator[Run]:
    """The runs that still exist and have no parent run. A child run is deleted with its parent."""
    for run_id in run_ids:
        if not _parent_of(connected.store, run_id):
            with suppress(UnknownName):  # deleted meanwhile
                yield connected.get(run_id)


def _parent_of(store: Store, run_id: str) -> str:
    """The parent run, if it exists; else ''."""
    parent = store.parent_of(run_id)
    return parent if parent and store.body(parent) is not None else ""


def _prune(run: Run) -> Literal["forgotten", "refused"]:
    """Delete a run, or print the dry run; print a refusal as an error."""
    options = current_options()
    if options.dry_run:
        state, parent = run.state(), _parent_of(run.store, run.id)
        reason = f"run {run.id} is a child run of {parent}" if parent else f"run {run.id} is {state}"
        refusal = f"would be refused: {reason}" if parent or state not in TERMINAL else ""
        line = f"would delete run {run.id} ({state})"
    else:
        try:
            answer = run.prune()
        except UnknownName:  # deleted meanwhile
            answer = "done"
        refusal, line = f"run {run.id}: {answer}" if answer != "done" else "", f"deleted: run {run.id}"
    if refusal:
        print_error(CommandRefused(refusal), options)
        return "refused"
    if not options.json and (options.dry_run or not options.quiet):
        print_line(line)
    return "forgotten"


@command(runs_group, "approve")
@click.argument("run", shell_complete=complete_run)
@click.argument("step", shell_complete=complete_step)
@click.option("--reject", is_flag=True, help="Reject instead of approve: the step fails.")
@click.option("--note", default="", help="Note, recorded in the events of the run with actor and time.")
def approve(run: str, step: str, reject: bool, note: str) -> None:
    """Approve or reject STEP, which waits for an approval.

    Without a decision within the `timeout` of the step (default: one day), the step fails, or is approved if it has
    `on_timeout: approve`.

    \b
    Exit codes:
      0  recorded
      1  refused, or not executed in 30 seconds (a worker executes it later)
    """
    found = client().get(run)
    if current_options().dry_run:
        print_result(f"would {'reject' if reject else 'approve'} step {step} of run {run}", run_id=run, step=step)
        return
    _require_done(found, found.reject(step, note) if reject else found.approve(step, note))
    print_result(f"{'rejected' if reject else 'approved'}: step {step} of run {run}", run_id=run, step=step)


def _finish_command(run: Run, send: Callable[[], str], *, detach: bool) -> int:
    """Send a command to a run, and show the run from there. `send` returns the command's id.

    Returns the exit code: 0 done, 3 some changes are left over. Raises CommandRefused.
    """
    before = run.store.newest_event(run.id)
    _require_done(run, send())
    if detach:
        print_result(f"run {run.id} is {run.state()}", run_id=run.id, state=run.state())
        return 0
    report = wait_for_end(run, before)
    code = 3 if report.exit_code == 3 else 0
    print_outcome(report, code)
    if code:
        print_next(run, report)
    return code

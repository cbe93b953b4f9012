"""`longshore`: the root of the command line, and how errors are told."""

from __future__ import annotations

import sys
import traceback
from importlib.metadata import version

import click

from longshore.orchestration.cli.audit import audit
from longshore.orchestration.cli.breakers import breaker_group
from longshore.orchestration.cli.common import Options, current, global_options, say, say_lines
from longshore.orchestration.cli.doctor import doctor
from longshore.orchestration.cli.gc import gc
from longshore.orchestration.cli.hosts import hosts_group
from longshore.orchestration.cli.init import init
from longshore.orchestration.cli.jobs import job_group
from longshore.orchestration.cli.locks import locks_group
from longshore.orchestration.cli.metrics import metrics
from longshore.orchestration.cli.ops import ops_group
from longshore.orchestration.cli.plans import plan_group
from longshore.orchestration.cli.processes import beat, dev, flower, worker
from longshore.orchestration.cli.run import run
from longshore.orchestration.cli.runs import runs_group
from longshore.orchestration.cli.schedules import schedules_group
from longshore.orchestration.cli.stacks import check, orchestrate, rebuild, restart, select
from longshore.orchestration.errors import LongshoreError, exit_code_of


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(version("longshore"), "--version", prog_name="longshore")
@global_options
def cli() -> None:
    """Run plans of many steps on Celery, and take them back when they fail."""


for part in (
    run,
    plan_group,
    runs_group,
    orchestrate,
    check,
    rebuild,
    select,
    restart,
    job_group,
    schedules_group,
    ops_group,
    hosts_group,
    breaker_group,
    locks_group,
    audit,
    metrics,
    doctor,
    gc,
    init,
    worker,
    beat,
    flower,
    dev,
):
    cli.add_command(part)


def main(arguments: list[str] | None = None) -> None:
    """Entry point: exit codes 0, 1, 2, 3; errors are one line on stderr."""
    sys.exit(call(sys.argv[1:] if arguments is None else arguments))


def call(arguments: list[str]) -> int:
    """One command's exit code."""
    options = Options()
    try:
        result = cli.main(arguments, prog_name="longshore", standalone_mode=False, obj=options)
    except click.ClickException as error:
        error.show()
        return 2
    except (KeyboardInterrupt, click.Abort):
        say("interrupted", err=True)
        return 130
    except BrokenPipeError:
        return 0
    except Exception as error:  # noqa: BLE001 - the one place where errors become lines
        if options.verbose:
            say_lines(traceback.format_exc(), err=True)
        elif isinstance(error, LongshoreError):
            say(f"error: {error}", err=True)
        else:
            say(f"error: {type(error).__name__}: {error} (-v shows where)", err=True)
        return exit_code_of(error)
    return result if isinstance(result, int) else 0


@click.command("longshore", context_settings={"ignore_unknown_options": True}, add_help_option=False)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def celery_plugin(arguments: tuple[str, ...]) -> None:
    """Longshore's command line: celery longshore run PLAN."""
    sys.exit(call(list(arguments)))


__all__ = ["call", "celery_plugin", "cli", "current", "main"]

"""`longshore`: the root command, its table of commands, and the output of errors."""

from __future__ import annotations

import sys
import traceback
from importlib.metadata import version

import click

from longshore.orchestration.cli.common import Options, global_options, print_line, print_lines
from longshore.orchestration.cli.lazy import LazyCommand
from longshore.orchestration.errors import LongshoreError, exit_code_of

#: Name, MODULE:ATTRIBUTE in this package, and the first line of the command's help.
COMMANDS = (
    ("run", "run:run", "Start a run of PLAN and watch the run until it ends."),
    ("plan", "plans:plan_group", "Validate, explain, draw and simulate plans."),
    ("runs", "runs:runs_group", "List, watch, cancel, resume and undo runs."),
    ("orchestrate", "stacks:orchestrate", "Check the cache, and restart all stale services."),
    ("check", "stacks:check", "Check that the cached inventory matches the hosts."),
    ("rebuild", "stacks:rebuild", "Rebuild the cached inventory of the hosts."),
    ("select", "stacks:select", "List stale services with the reasons; restart none."),
    ("restart", "stacks:restart", "Restart the stale services, or the services NAME."),
    ("job", "jobs:job_group", "List, show and run jobs."),
    ("schedules", "schedules:schedules_group", "List, trigger, pause and resume schedules."),
    ("ops", "ops:ops_group", "List, describe and run operations."),
    ("hosts", "hosts:hosts_group", "List, drain and forget hosts."),
    ("breaker", "breakers:breaker_group", "List and reset the circuit breakers of services."),
    ("locks", "locks:locks_group", "List the locks that runs and steps hold."),
    ("audit", "audit:audit", "Print the audit trail, oldest entry first."),
    ("metrics", "metrics:metrics", "Print or serve metrics in the format of Prometheus."),
    ("doctor", "doctor:doctor", "Diagnose the installation."),
    ("gc", "gc:gc", "Delete backups that compensations no longer need."),
    ("init", "init:init", "Create the secrets of an installation."),
    ("worker", "processes:worker", "Start a Celery worker in the foreground."),
    ("beat", "processes:beat", "Start Celery beat in the foreground."),
    ("flower", "processes:flower", "Start Flower with the pages of runs, in the foreground."),
    ("dev", "processes:dev", "Start Redis, a worker, beat and Flower in the foreground."),
)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(version("longshore"), "--version", prog_name="longshore")
@global_options
def cli() -> None:
    """Run plans of many steps on Celery, and undo them when a step fails.

    Exit codes of all commands, unless a command's help has others: 0 success, 1 failure, 2 wrong usage or wrong
    configuration, 3 changes are left over that could not be undone, 130 interrupted.
    """


for _name, _target, _help in COMMANDS:
    cli.add_command(LazyCommand(_name, f"longshore.orchestration.cli.{_target}", _help))


def main(arguments: list[str] | None = None) -> None:
    """Run a command and exit with its exit code; an error is one line on stderr."""
    sys.exit(call(sys.argv[1:] if arguments is None else arguments))


def call(arguments: list[str]) -> int:
    """Run a command and return its exit code."""
    options = Options()
    try:
        result = cli.main(arguments, prog_name="longshore", standalone_mode=False, obj=options)
    except click.ClickException as error:
        error.show()
        return 2
    except (KeyboardInterrupt, click.Abort):
        print_line("interrupted", err=True)
        return 130
    except BrokenPipeError:
        return 0
    except Exception as error:  # noqa: BLE001 - every error becomes one line and an exit code
        if options.verbose:
            print_lines(traceback.format_exc(), err=True)
        elif isinstance(error, LongshoreError):
            print_line(f"error: {error}", err=True)
        else:
            print_line(f"error: {type(error).__name__}: {error} (-v shows the traceback)", err=True)
        return exit_code_of(error)
    return result if isinstance(result, int) else 0


@click.command("longshore", context_settings={"ignore_unknown_options": True}, add_help_option=False)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def celery_plugin(arguments: tuple[str, ...]) -> None:
    """Run a command of Longshore: celery longshore run PLAN."""
    sys.exit(call(list(arguments)))

"""`longshore`: the root command, its table of commands, and the output of errors."""

from __future__ import annotations

import sys
import traceback
from importlib.metadata import version

import click

from longshore.orchestration.cli.common import Options, global_options, print_error, print_line, print_lines
from longshore.orchestration.cli.lazy import LazyCommand
from longshore.orchestration.errors import UsageError, exit_code_of

#: Name, MODULE:ATTRIBUTE in this package, and the first line of the command's help.
COMMANDS = (
    ("run", "run:run", "Start a run of PLAN and watch the run until it ends."),
    ("plan", "plans:plan_group", "Validate, explain, draw and simulate plans."),
    ("runs", "runs:runs_group", "List, watch, cancel, resume and undo runs."),
    ("orchestrate", "stacks:orchestrate", "Find stale services, and restart or redeploy them."),
    ("check", "stacks:check", "Check that the cached inventory matches the hosts."),
    ("rebuild", "stacks:rebuild", "Inspect each host again, and replace the cached inventory."),
    ("select", "stacks:select", "List stale services, or all services that run an image."),
    ("restart", "stacks:restart", "Restart or redeploy stale services, or named services."),
    ("job", "jobs:job_group", "List, show and run jobs."),
    ("schedules", "schedules:schedules_group", "List, trigger, pause and resume schedules."),
    ("ops", "ops:ops_group", "List, describe and run operations."),
    ("hosts", "hosts:hosts_group", "List, drain and forget hosts."),
    ("breaker", "breakers:breaker_group", "List and reset circuit breakers of services and jobs."),
    ("locks", "locks:locks_group", "List the locks that runs and steps hold."),
    ("audit", "audit:audit", "Print the audit trail, oldest entry first."),
    ("metrics", "metrics:metrics", "Print or serve metrics in Prometheus format."),
    ("doctor", "doctor:doctor", "Diagnose the installation."),
    ("explain", "explain:explain", "Explain an error code, such as run-conflict."),
    ("gc", "gc:gc", "Delete backups that no undo needs any more."),
    ("init", "init:init", "Create the secrets of an installation, or an example plan."),
    ("completion", "completion:completion", "Print the completion script of a shell."),
    ("worker", "processes:worker", "Start a Celery worker in the foreground."),
    ("beat", "processes:beat", "Start Celery beat in the foreground."),
    ("flower", "processes:flower", "Start Flower with additional pages that show runs."),
    ("dev", "processes:dev", "Start Redis, a worker, beat and Flower in the foreground."),
)


#: The output of `longshore` without a command.
BEGIN = """\
Longshore runs multi-step plans on Celery, and undoes their steps if one fails. To begin:

  longshore init plan                 Write an example plan, plan.yaml.
  longshore plan simulate plan.yaml   Simulate the plan in memory, with each step failing in turn.
  longshore run plan.yaml             Run the plan; without LONGSHORE_REDIS_URL, on this machine.

All commands: longshore --help\
"""


@click.group(
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(version("longshore"), "--version", prog_name="longshore")
@global_options
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Run multi-step plans on Celery, and undo their steps if one fails.

    LONGSHORE_REDIS_URL, or redis_url in the settings file, is the URL of your Redis. Without a URL, a command that
    needs Redis starts an embedded Redis and a worker on this machine. Both outlive the command, and stop when idle.
    `longshore worker` and `beat` need a URL; `longshore flower` needs a URL or a running embedded Redis.

    An error message has the form error[CODE]: …, and `longshore explain CODE` explains the error.

    \b
    Exit codes, unless the help of a command lists others:
      0    success
      1    failure
      2    wrong usage or settings, an invalid plan, or an unknown name
      3    an effect of the run remains or may remain
      130  interrupted by Ctrl-C
    """
    if ctx.invoked_subcommand is None:
        print_lines(BEGIN, err=True)
        ctx.exit(2)


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
        if options.json:
            print_error(UsageError(error.format_message()), options)
        else:
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
        else:
            print_error(error, options)
        return exit_code_of(error)
    return result if isinstance(result, int) else 0


@click.command("longshore", context_settings={"ignore_unknown_options": True}, add_help_option=False)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def celery_plugin(arguments: tuple[str, ...]) -> None:
    """Run a command of Longshore: celery longshore run PLAN."""
    sys.exit(call(list(arguments)))

"""`manage.py longshore …`: the commands of Longshore with the settings and operations of the project."""

from __future__ import annotations

import os
import sys
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from longshore.orchestration.cli.main import call


class Command(BaseCommand):
    """Passes its arguments to the command line of Longshore."""

    help = "Run a command of Longshore, such as `worker`; `manage.py longshore --help` lists them."
    requires_system_checks: list[str] = []

    def create_parser(self, prog_name: str, subcommand: str, **kwargs: Any) -> ArgumentParser:
        # No text begins an option here, so that all of them reach Longshore.
        parser = ArgumentParser(prog=f"{prog_name} {subcommand}", add_help=False, prefix_chars="\0")
        parser.add_argument("arguments", nargs="*")
        return parser

    def run_from_argv(self, argv: list[str]) -> None:
        # A worker is a new process, which finds the modules of the project by this variable.
        folders = [sys.path[0] or os.getcwd(), *filter(None, [os.environ.get("PYTHONPATH")])]
        os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(folders))
        sys.exit(call(argv[2:]))

    def handle(self, *_: Any, **options: Any) -> None:
        """Run the command from `call_command("longshore", …)`. Raises CommandError for an exit code other than 0."""
        if code := call(options["arguments"]):
            raise CommandError("the command of Longshore has failed", returncode=code)

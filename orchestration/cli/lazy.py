"""Commands whose modules are imported at their first use, so that `longshore --help` stays fast."""

from __future__ import annotations

from importlib import import_module
from typing import Any, cast

import click


class LazyCommand(click.Command):
    """The name and the one-line help of a command whose module is not imported yet.

    A group lists and completes these commands from the name and the help alone. To run a command, to print its help or
    to complete its arguments, click calls `make_context`, which imports the module.

    """

    def __init__(self, name: str, target: str, help: str) -> None:  # noqa: A002 - click's name
        """`target` is MODULE:ATTRIBUTE, as in an entry point."""
        super().__init__(name, help=help)
        self.target = target

    def load(self) -> click.Command:
        """Import the module and return the command itself."""
        module, _, attribute = self.target.partition(":")
        return cast("click.Command", getattr(import_module(module), attribute))

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        return self.load().make_context(info_name, args, parent, **extra)

"""Names that the shell completes: runs, steps, plans and operations. Without Redis, no runs and steps are offered."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import click
from click.shell_completion import CompletionItem

from longshore.orchestration.client.run import stored_plan
from longshore.orchestration.operations import all_operations
from longshore.orchestration.plans import loading
from longshore.orchestration.settings import load_settings
from longshore.orchestration.store.run_store import Store

#: Seconds in which Redis must answer.
_TIMEOUT = 1.0
#: The latest runs that are offered.
_RUNS = 200

Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def _completion(names: Callable[[click.Context], Iterable[str]], *, files: bool = False) -> Complete:
    """A completion of the names that begin with the typed text, and of files; an error yields no names."""

    def complete(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        try:
            found = [CompletionItem(name) for name in names(ctx) if name.startswith(incomplete)]
        except Exception:  # noqa: BLE001 - an error message would break the command line that the user types
            found = []
        # Bash offers files only where no other name is offered.
        return found or ([CompletionItem(incomplete, type="file")] if files else [])

    return complete


def _store() -> Store:
    """The records of the installation; an embedded Redis is not started."""
    return Store(load_settings(connect_timeout=_TIMEOUT))


def _steps(ctx: click.Context) -> list[str]:
    plan, _ = stored_plan(_store(), ctx.params["run"])
    return list(plan.index)


complete_run = _completion(lambda _: _store().runs(_RUNS))
complete_step = _completion(_steps)
complete_plan = _completion(lambda _: loading.stored(), files=True)
complete_operation = _completion(lambda _: all_operations())

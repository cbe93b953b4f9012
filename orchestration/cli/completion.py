"""`longshore completion`: scripts for the completion of commands, options and names in a shell."""

from __future__ import annotations

import click
from click.shell_completion import BashComplete, FishComplete, ShellComplete, ZshComplete

from longshore.orchestration.cli.common import current_options, global_options, print_lines

_SHELLS: dict[str, type[ShellComplete]] = {"bash": BashComplete, "zsh": ZshComplete, "fish": FishComplete}
_VARIABLE = "_LONGSHORE_COMPLETE"


@click.command()
@click.argument("shell", type=click.Choice(list(_SHELLS)))
@global_options
def completion(shell: str) -> None:
    """Print the completion script of a shell.

    The script completes commands, options, plans, operations, and the ids and steps of runs. To load the script, add
    the command to the file of your shell. For fish, run the command once.

    \b
    ~/.bashrc  eval "$(longshore completion bash)"
    ~/.zshrc   eval "$(longshore completion zsh)"
    fish       longshore completion fish >~/.config/fish/completions/longshore.fish
    """
    root = click.get_current_context().find_root().command
    kind = _SHELLS[shell]
    # `source` of bash starts the installed bash to check its version, which a printed script does not need.
    made = kind(root, {}, "longshore", _VARIABLE)
    script = kind.source_template % made.source_vars()
    if current_options().json:
        current_options().show({"shell": shell, "script": script})
    else:
        print_lines(script)

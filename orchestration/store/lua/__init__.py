"""The transitions of a run, one Lua script each; every script is atomic.

Each script receives the keys of a record (`RunKeys.record`) and is preceded by `prelude.lua`. Its header is its
contract. A comment `-- guard: <rule>` names the rule that the next line enforces; `tests/store/guards` has a scenario
for each rule, which fails without that line.
"""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files

_COMMENT = re.compile(r"^ *--.*$", re.MULTILINE)
#: The scripts that clients call, outside of any single run. Workers load them, since the users of clients may not.
OF_CLIENTS = ("submit",)


@cache
def source(name: str) -> str:
    """The text of a transition script with its prelude."""
    return without_comments(text("prelude") + text(name))


@cache
def installation_source(name: str) -> str:
    """The text of a script that concerns no single run and has no prelude."""
    return without_comments(text(f"installation/{name}"))


def text(path: str) -> str:
    """The text of a file; `path` omits the suffix."""
    return files(__name__).joinpath(f"{path}.lua").read_text()


def without_comments(script: str) -> str:
    """A script with its comment lines emptied, which saves memory in Redis and preserves line numbers."""
    return _COMMENT.sub("", script)


def names() -> list[str]:
    """The names of all transition scripts, sorted."""
    found = (entry.name for entry in files(__name__).iterdir())
    return sorted(n.removesuffix(".lua") for n in found if n.endswith(".lua") and n != "prelude.lua")

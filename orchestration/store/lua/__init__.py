"""The transitions of a run, one Lua script each.

Every script gets the keys of a run's record (`RunKeys.record`) and is put behind `prelude.lua`.
Its header is its contract. A comment `-- guard: <rule>` names the rule that the line below holds;
`tests/store/guards` has a scenario for each, which fails without that line.
"""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files

_COMMENT = re.compile(r"^ *--.*$", re.MULTILINE)
#: The scripts of no single run that clients call. Their users may load none: workers do.
OF_CLIENTS = ("submit",)


@cache
def source(name: str) -> str:
    """The text of a script with its prelude."""
    return without_comments(text("prelude") + text(name))


@cache
def installation_source(name: str) -> str:
    """The text of a script that is about no single run, and has no prelude."""
    return without_comments(text(f"installation/{name}"))


def text(path: str) -> str:
    """The text of a file, its suffix left out of `path`."""
    return files(__name__).joinpath(f"{path}.lua").read_text()


def without_comments(script: str) -> str:
    """The same script without its lines of comment, which Redis need not keep. The other lines keep their numbers."""
    return _COMMENT.sub("", script)


def names() -> list[str]:
    """All scripts, sorted."""
    found = (entry.name for entry in files(__name__).iterdir())
    return sorted(n.removesuffix(".lua") for n in found if n.endswith(".lua") and n != "prelude.lua")

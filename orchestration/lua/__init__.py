"""The transitions of a run, one Lua script each.

Every script gets the keys of a run's record (`RunKeys.record`) and is put behind `prelude.lua`.
Its header is its contract.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files

#: The scripts of no single run that clients call. Their users may load none: workers do.
OF_CLIENTS = ("submit",)


@cache
def source(name: str) -> str:
    """The text of a script with its prelude."""
    folder = files(__name__)
    return folder.joinpath("prelude.lua").read_text() + folder.joinpath(f"{name}.lua").read_text()


@cache
def alone(name: str) -> str:
    """The text of a script that is about no single run, and has no prelude."""
    return files(__name__).joinpath("alone", f"{name}.lua").read_text()


def names() -> list[str]:
    """All scripts, sorted."""
    found = (entry.name for entry in files(__name__).iterdir())
    return sorted(n.removesuffix(".lua") for n in found if n.endswith(".lua") and n != "prelude.lua")

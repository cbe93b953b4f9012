"""The packages of the product and the imports between them, as a Mermaid diagram.

`python -m tests.house` prints the diagram of docs/contributing.md, with type-only and function-local imports.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping

import grimp

TREES = ("orchestration", "tasks", "workers")


def package_of(module: str) -> str | None:
    """The box of a module: a package or module below `orchestration` or `tasks`, or `workers` as a whole."""
    _, tree, *rest = module.split(".")
    if tree == "workers":
        return tree
    return f"{tree}.{rest[0]}" if rest else None


def arrows() -> dict[str, set[str]]:
    """The packages that each package imports."""
    graph = grimp.build_graph(*(f"longshore.{tree}" for tree in TREES))
    found: dict[str, set[str]] = {}
    for module in graph.modules:
        if (package := package_of(module)) is None:
            continue
        imported = {package_of(other) for other in graph.find_modules_directly_imported_by(module)}
        found.setdefault(package, set()).update(other for other in imported if other not in {None, package})
    return found


def below(package: str, imports: Mapping[str, Iterable[str]]) -> set[str]:
    """All packages that a package imports, directly or indirectly."""
    reached: set[str] = set()
    left = list(imports[package])
    while left:
        other = left.pop()
        if other not in reached:
            reached.add(other)
            left += imports[other]
    return reached


def reduced(imports: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """The transitive reduction: the arrows without those that a path of other arrows implies."""
    reach = {package: below(package, imports) for package in imports}
    return {
        package: {other for other in others if not any(other in reach[between] for between in others - {other})}
        for package, others in imports.items()
    }


def diagram() -> str:
    """Mermaid text: a group for each tree, a box for each package, an arrow for each import of the reduction."""
    imports = reduced(arrows())
    lines = ["flowchart TD"]
    for tree in reversed(TREES):
        boxes = sorted(package for package in imports if package.partition(".")[0] == tree)
        names = [f"        {_id(box)}[{box.rpartition('.')[2]}]" for box in boxes]
        lines += [f"    subgraph {tree}", *names, "    end"]
    for package in sorted(imports):
        lines += [f"    {_id(package)} --> {_id(other)}" for other in sorted(imports[package])]
    return "\n".join(lines)


def _id(package: str) -> str:
    """An identifier for Mermaid, different for a group and a box of the same name."""
    return package.replace(".", "_") if "." in package else f"{package}_all"


if __name__ == "__main__":
    sys.stdout.write(f"{diagram()}\n")

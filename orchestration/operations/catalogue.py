"""The operations of the catalogue as objects, so that type checkers know their parameters.

    from longshore.orchestration.operations import catalogue as ops

    plan.step("pull", ops.docker_pull_execute, image="shop:2")

The types are in `catalogue.pyi`, which `longshore.orchestration.operations.stubs` generates from the schemas.
"""

from __future__ import annotations

from typing import Any

from longshore.orchestration.operations.base import TypedOperation, all_operations, bound


class _Catalogued(TypedOperation[...]):
    """An operation of the catalogue."""

    def __init__(self, name: str) -> None:
        self.name = name

    def bind(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        fields = all_operations()[self.name].params.model_fields
        return bound(self.name, {name: each.is_required() for name, each in fields.items()}, [], args, kwargs)


def __getattr__(attribute: str) -> _Catalogued:
    name = attribute.replace("_", ".")
    names = {each.replace("-", ".").replace("_", "."): each for each, of in all_operations().items() if not of.function}
    if name not in names:
        raise AttributeError(f"module {__name__!r} has no attribute {attribute!r}")
    return _Catalogued(names[name])

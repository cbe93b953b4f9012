"""The asyncio client has the methods of the blocking one, with the same parameters."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from longshore.orchestration import AsyncClient, AsyncRun, Client, Run
from longshore.orchestration.client.async_run import Events

PAIRS = [(Client, AsyncClient), (Run, AsyncRun)]


def methods(cls: type) -> dict[str, Any]:
    return {name: value for name, value in vars(cls).items() if not name.startswith("_") and callable(value)}


def parameters(function: Any) -> list[tuple[str, Any, Any, Any]]:
    found = inspect.signature(function).parameters.values()
    return [(each.name, each.kind, each.default, each.annotation) for each in found]


@pytest.mark.parametrize(("blocking", "awaitable"), PAIRS)
def test_both_surfaces_have_the_same_names_and_parameters(blocking: type, awaitable: type) -> None:
    assert {name: parameters(each) for name, each in methods(awaitable).items()} == {
        name: parameters(each) for name, each in methods(blocking).items()
    }
    assert parameters(awaitable) == parameters(blocking) or blocking is Run


@pytest.mark.parametrize(("blocking", "awaitable"), PAIRS)
def test_no_method_of_the_asyncio_surface_blocks(blocking: type, awaitable: type) -> None:
    for name, method in methods(awaitable).items():
        is_async = inspect.iscoroutinefunction(method) or inspect.isasyncgenfunction(method)
        assert is_async or inspect.signature(method).return_annotation == Events.__name__, name


def test_run_has_its_attributes_on_both_surfaces() -> None:
    assert {"id", "run_id", "plan", "attached"} <= set(dir(AsyncRun))

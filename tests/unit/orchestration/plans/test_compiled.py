"""Compiled plans: levels, chains, and properties of steps."""

from __future__ import annotations

from graphlib import TopologicalSorter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longshore.orchestration import Plan, Retry, parse
from longshore.orchestration.messaging.canvas import CHAIN_LINKS
from longshore.orchestration.operations import find
from longshore.orchestration.plans.compiled import CompiledPlan, find_cycle
from tests.unit.plans import compiled, diamond, graphs, of_edges


def longest_path_levels(edges: dict[str, list[str]], name: str) -> int:
    """The level by its definition, without an algorithm of a library."""
    return 1 + max((longest_path_levels(edges, before) for before in edges[name]), default=-1)


def layers(edges: dict[str, list[str]]) -> list[set[str]]:
    """The levels in graphlib's order, with all ready nodes processed at once."""
    sorter = TopologicalSorter(edges)
    sorter.prepare()
    found = []
    while sorter.is_active():
        ready = sorter.get_ready()
        found.append(set(ready))
        sorter.done(*ready)
    return found


@given(graphs(max_steps=10))
def test_levels_match_graphlib_and_longest_paths(edges: dict[str, list[str]]) -> None:
    plan = compiled(of_edges(edges))

    assert [{plan.steps[i].name for i in members} for members in plan.levels] == layers(edges)
    assert {step.name: step.level for step in plan.steps} == {name: longest_path_levels(edges, name) for name in edges}


@given(graphs(max_steps=10))
def test_step_indices_follow_plan_order_with_edges_both_ways(edges: dict[str, list[str]]) -> None:
    plan = compiled(of_edges(edges))

    assert [step.name for step in plan.steps] == list(edges)
    assert [step.index for step in plan.steps] == list(range(len(plan)))
    assert plan.index == {name: i for i, name in enumerate(edges)}
    for members in plan.levels:
        assert list(members) == sorted(members)
    for step in plan.steps:
        assert [plan.steps[i].name for i in step.needs] == edges[step.name]
        assert set(step.needed_by) == {other.index for other in plan.steps if step.index in other.needs}
        assert all(plan.steps[i].level < step.level for i in step.needs)


@given(graphs(max_steps=10))
def test_upstream_is_every_transitive_dependency(edges: dict[str, list[str]]) -> None:
    plan = compiled(of_edges(edges))

    def before(name: str) -> set[str]:
        return set(edges[name]).union(*(before(other) for other in edges[name]))

    for step in plan.steps:
        assert {plan.steps[i].name for i in plan.upstream(step.index)} == before(step.name)


@given(graphs(), st.data())
def test_cycle_is_found_exactly_when_one_exists(edges: dict[str, list[str]], data: st.DataObject) -> None:
    assert find_cycle(of_edges(edges)) is None
    name = data.draw(st.sampled_from(list(edges)))
    upstream = [name, *compiled_upstream(edges, name)]
    first = data.draw(st.sampled_from(upstream))

    cycle = find_cycle(of_edges(edges | {first: [*edges[first], name]}))

    assert cycle is not None
    assert cycle[0] == cycle[-1]
    assert len(set(cycle)) == len(cycle) - 1
    assert {first, name} <= set(cycle)


def compiled_upstream(edges: dict[str, list[str]], name: str) -> list[str]:
    plan = compiled(of_edges(edges))
    return [plan.steps[i].name for i in sorted(plan.upstream(plan.index[name]))]


def chain(length: int, **marks: Any) -> CompiledPlan:
    plan = Plan("chain", sequential=True)
    for n in range(length):
        step = plan.step(f"s{n}", "noop.execute")
        if n in marks.get("always", ()):
            step.always()
    return compiled(plan)


@pytest.mark.parametrize(("length", "begin", "links"), [(1, 0, 1), (3, 0, 3), (8, 0, 8), (20, 0, 8), (20, 15, 5)])
def test_chain_length_is_bounded(length: int, begin: int, links: int) -> None:
    assert chain(length).chain_from(begin, CHAIN_LINKS) == tuple(range(begin, begin + links))


def test_chain_ends_before_a_level_of_several_steps() -> None:
    plan = diamond()
    plan.step("first", "noop.execute")
    plan.steps["build"].after.append("first")
    whole = compiled(plan)

    names = [whole.steps[i].name for i in whole.chain_from(whole.index["first"], CHAIN_LINKS)]

    assert names == ["first", "build"]


def test_always_step_is_no_chain_link() -> None:
    plan = chain(5, always=(2,))

    assert plan.chain_from(0, CHAIN_LINKS) == (0, 1)
    assert plan.chain_from(2, CHAIN_LINKS) == (2,)
    assert plan.chain_from(3, CHAIN_LINKS) == (3, 4)


def test_chain_link_depends_on_the_chain_only() -> None:
    # given: `d` depends on a step beside its chain, `e` on a dependency of the chain's first link
    edges = {"a": [], "b": [], "c": ["b"], "d": ["c", "a"], "e": ["d", "b"]}
    plan = compiled(of_edges(edges, on_error="continue"))

    assert plan.chain_from(plan.index["c"], CHAIN_LINKS) == (plan.index["c"],)
    beside = compiled(of_edges(edges | {"d": ["c", "b"]}))
    assert [beside.steps[i].name for i in beside.chain_from(beside.index["c"], CHAIN_LINKS)] == ["c", "d", "e"]


@given(graphs(max_steps=12), st.integers(1, 10))
def test_chain_links_are_single_steps_of_consecutive_levels(edges: dict[str, list[str]], at_most: int) -> None:
    plan = compiled(of_edges(edges))

    for step in plan.steps:
        links = plan.chain_from(step.index, at_most)
        assert links[0] == step.index
        assert len(links) <= at_most
        for n, link in enumerate(links):
            assert plan.steps[link].level == step.level + n
            assert len(links) == 1 or len(plan.levels[step.level + n]) == 1


def test_compiled_step_has_its_undo_and_retry() -> None:
    plan = Plan("p")
    plan.step("noop", "noop.execute")
    plan.step("plain", "command.exec.execute", argv=["x"])
    plan.step("looks", "command.exec.execute", argv=["x"], changes=False)
    plan.step("creates", "command.exec.execute", argv=["x"], creates="/x")
    plan.step("unless", "command.shell.execute", command="x", unless="y")
    plan.step("own", "command.exec.execute", argv=["x"]).undo("noop.execute")
    plan.step("none", "noop.execute").undo("none")
    plan.step("file", "file.deploy.execute", path="/x", content="")
    plan.step("inspect", "docker.inspect.get", container="web")
    facts = {step.name: (step.read_only, step.repeatable, step.has_undo) for step in compiled(plan).steps}

    assert facts == {
        "noop": (False, True, True),
        "plain": (False, False, False),
        "looks": (True, True, False),
        "creates": (False, True, False),
        "unless": (False, True, False),
        "own": (False, False, True),
        "none": (False, True, False),
        "file": (False, True, True),
        "inspect": (True, True, False),
    }


def test_undo_uses_the_queue_of_its_operation() -> None:
    plan = Plan("p")
    plan.step("a", "command.exec.execute", argv=["x"]).undo("file.deploy.execute", path="/x", content="")
    plan.step("b", "noop.execute")
    plan.step("c", "noop.execute").undo("none")
    steps = compiled(plan).steps

    assert [step.queue for step in steps] == ["command", "noop", "noop"]
    assert [step.undo_queue for step in steps] == ["file.undo", "noop.undo", "noop.undo"]


def test_step_on_error_overrides_the_plans() -> None:
    def stops(of_plan: str, of_step: str | None, *, always: bool = False) -> bool:
        step = {"op": "noop.execute", "on_error": of_step, "always": always}
        return compiled(Plan.model_validate({"name": "p", "on_error": of_plan, "steps": {"a": step}})).stops(0)

    assert stops("stop", None)
    assert not stops("continue", None)
    assert stops("continue", "stop")
    assert not stops("stop", "continue")
    assert not stops("stop", "stop", always=True)


def test_retry_policy_precedence_is_step_plan_operation() -> None:
    own, whole = Retry(attempts=7, initial=1), Retry(attempts=5)
    plan = Plan("p", retry=whole)
    plan.step("own", "noop.execute").retry(6, initial=1)
    plan.step("plan", "noop.execute")
    bare = compiled(of_edges({"a": []}))

    assert compiled(plan).retry_policy(0) == own
    assert compiled(plan).retry_policy(1) == whole
    assert bare.retry_policy(0) == find("noop.execute").retry


def test_retry_without_initial_delay_is_immediate() -> None:
    written = parse("name: p\nsteps: {a: {op: noop.execute, retry: {attempts: 3}}}")
    plan = Plan("p")
    plan.step("a", "noop.execute").retry(2)

    assert written == plan
    assert compiled(plan).retry_policy(0).worst_case() == 0

"""Plans for tests: small plans, and a strategy of Hypothesis for all valid plans."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from longshore.orchestration import Plan, validate
from longshore.orchestration.plans.compiled import CompiledPlan

#: Other tests cover the rest of Unicode.
texts = st.text(
    st.characters(exclude_categories=["Cs", "Cc", "Cn", "Zl", "Zp"], include_characters="\n\t"), max_size=20
)
Json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False, width=32)
    | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abz_ -.", max_size=4), inner, max_size=3),
    max_leaves=6,
)


def written(value: Any) -> Any:
    """The value without braces, so that no part is a template."""
    if isinstance(value, str):
        return value.replace("{", "(")
    if isinstance(value, list):
        return [written(item) for item in value]
    if isinstance(value, dict):
        return {str(written(key)): written(item) for key, item in value.items()}
    return value


def diamond(**settings: Any) -> Plan:
    """build → (test, lint) → ship → tell."""
    plan = Plan("diamond", **settings)
    plan.step("build", "noop.execute")
    plan.step("test", "noop.execute").after("build")
    plan.step("lint", "noop.execute").after("build")
    plan.step("ship", "noop.execute").after("test", "lint")
    plan.step("tell", "noop.execute").after("ship")
    return plan


def of_edges(edges: dict[str, list[str]], **settings: Any) -> Plan:
    """A plan of noop steps, from names with their dependencies."""
    return Plan(
        "edges", steps={name: {"op": "noop.execute", "after": after} for name, after in edges.items()}, **settings
    )


def compiled(plan: Plan) -> CompiledPlan:
    validate(plan)
    return CompiledPlan(plan)


@st.composite
def graphs(draw: st.DrawFn, max_steps: int = 8) -> dict[str, list[str]]:
    """An acyclic graph in arbitrary order, as names with their dependencies."""
    count = draw(st.integers(1, max_steps))
    few = st.lists(st.integers(0, max_steps), max_size=3)
    before = {f"s{n}": [f"s{i}" for i in dict.fromkeys(i % n for i in draw(few))] if n else [] for n in range(count)}
    return {name: before[name] for name in draw(st.permutations(list(before)))}


#: Names that YAML or a template could read as another type.
names = st.sampled_from(
    ["a", "check-health", "1", "yes", "null", "on", "x" * 64, "v1.2_3", "1.10", "0x1f", "2024-01-01"]
)
durations = st.integers(0, 10**8).map(lambda ms: ms / 1000)
retries = st.fixed_dictionaries(
    {},
    optional={
        "attempts": st.integers(1, 100),
        "initial": durations,
        "maximum": durations,
        "jitter": st.booleans(),
    },
)


def _noop(draw: st.DrawFn) -> dict[str, Any]:
    return {"op": "noop.execute", "with": {"data": written(draw(st.dictionaries(texts, Json, max_size=3)))}}


def _command(draw: st.DrawFn) -> dict[str, Any]:
    argv = draw(st.lists(texts.map(written), min_size=1, max_size=3))
    return {"op": "command.exec.execute", "with": {"argv": argv, "changes": draw(st.booleans())}}


def _file(draw: st.DrawFn) -> dict[str, Any]:
    return {"op": "file.deploy.execute", "with": {"path": "/srv/x", "content": written(draw(texts)), "mode": "0640"}}


@st.composite
def params(draw: st.DrawFn) -> dict[str, Any]:
    """A parameter, with a valid default or none."""
    kind, values = draw(
        st.sampled_from(
            [
                ("string", texts),
                ("integer", st.integers(-1000, 1000)),
                ("number", st.floats(-1000, 1000)),
                ("boolean", st.booleans()),
                ("list", st.lists(Json, max_size=2)),
                ("object", st.dictionaries(texts, Json, max_size=2)),
            ]
        )
    )
    declared: dict[str, Any] = {"type": kind}
    if draw(st.booleans()):
        declared["default"] = draw(st.none() | values)
    if draw(st.booleans()):
        declared["description"] = draw(texts)
    if kind in {"integer", "number"} and draw(st.booleans()):
        declared |= {"min": -1000, "max": 1000.5}
    return declared


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Any valid plan."""
    graph = draw(graphs(max_steps=6))
    called = dict(zip(graph, draw(st.lists(names, min_size=len(graph), max_size=len(graph), unique=True)), strict=True))
    graph = {called[name]: [called[other] for other in after] for name, after in graph.items()}
    steps: dict[str, dict[str, Any]] = {}
    for name, after in graph.items():
        step = draw(st.sampled_from([_noop, _command, _file]))(draw)
        step["after"] = after
        extras: dict[str, st.SearchStrategy[Any]] = {
            "on_error": st.sampled_from(["stop", "continue"]),
            "timeout": durations.filter(bool),
            "retry": retries,
            "always": st.booleans(),
            "description": texts,
        }
        step |= draw(st.fixed_dictionaries({}, optional=extras))
        if not step.get("always"):
            undo = {"op": "noop.execute", "with": {"data": {"was": "{{ before }}", "did": "{{ data }}"}}}
            step |= draw(st.fixed_dictionaries({}, optional={"undo": st.sampled_from([undo, "none"])}))
        steps[name] = step
    settings = draw(
        st.fixed_dictionaries(
            {},
            optional={
                "description": texts,
                "labels": st.dictionaries(texts, texts, max_size=2),
                "params": st.dictionaries(st.from_regex(r"[a-z_]{1,6}", fullmatch=True), params(), max_size=2),
                "on_error": st.sampled_from(["stop", "continue"]),
                "on_failure": st.sampled_from(["undo", "keep"]),
                "retry": retries,
                "timeout": durations.filter(bool),
            },
        )
    )
    return Plan.model_validate({"name": draw(names), **settings, "steps": steps})

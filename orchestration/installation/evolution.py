"""Live runs that were stored for other versions of operations than those of the deployed workers."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from longshore.orchestration.errors import UNREADABLE, Damaged
from longshore.orchestration.operations import known
from longshore.orchestration.store.hosts import Node
from longshore.orchestration.store.run_store import Store

#: Runs that are examined at most.
_EXAMINED = 500


def unsupported(store: Store, nodes: Collection[Node]) -> Iterator[tuple[str, str]]:
    """Live and pending runs with a step that a worker could not carry out: the run's id, and the reason.

    Only operations that an application defines are examined; steps that have ended may have to be undone.
    """
    provided = {name for node in nodes for name in node.own}
    live = store.call(store.client.zrange, store.keys.live, 0, _EXAMINED - 1)
    pending = store.call(store.client.zrange, store.keys.queue, 0, _EXAMINED - 1)
    for run_id in dict.fromkeys([*live, *pending]):
        try:
            steps = ((store.body(run_id) or {}).get("plan") or {}).get("steps") or {}
            found = next(_reasons(steps, nodes, provided), None)
        except (Damaged, *UNREADABLE):
            continue  # the check of the records names it
        if found is not None:
            yield run_id, found


def _reasons(steps: Mapping[str, Any], nodes: Collection[Node], provided: Collection[str]) -> Iterator[str]:
    for name, step in steps.items():
        undo = step.get("undo")
        for given in [step, *([undo] if isinstance(undo, dict) else [])]:
            op, params = str(given["op"]), given.get("with", {})
            operation = known(op)
            if op not in provided and (operation is None or operation.function is not None):
                yield f"step {name}: no worker provides operation {op}"
            for node in nodes:
                if op in node.accepts and (why := _problem(node.accepts[op], params)):
                    yield f"step {name}: {op} of worker {node.name} {why}"


def _problem(accepted: Sequence[str], params: Mapping[str, Any]) -> str:
    """Why an operation that accepts these parameters cannot be called with those of a step; '' where it can."""
    if "*" in accepted:
        return ""
    former = dict(each.split("=", 1) for each in accepted if "=" in each)
    names = [each for each in accepted if "=" not in each]
    given = {former.get(name, name) for name in params}
    if unknown := sorted(given - {name.removesuffix("?") for name in names}):
        return f"has no parameter {unknown[0]!r}"
    missing = [name for name in names if not name.endswith("?") and name not in given]
    return f"needs the parameter {missing[0]!r}" if missing else ""

"""Groups of similar steps, which diagrams, timelines and tables fold into one entry."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import takewhile

from longshore.orchestration.plans.compiled import CompiledPlan

#: The lowest number of steps that are folded.
FEWEST = 7
#: States of steps and undos by urgency, the most urgent first.
URGENCY = (
    "failed", "undo_failed", "unknown", "lost", "held_back", "not_undoable", "cancelled", "waiting", "retrying",
    "undoing", "running", "ready", "undone", "changed", "unchanged", "pending", "skipped", "not_run",
)  # fmt: skip


@dataclass(frozen=True)
class Group:
    """Steps of one level with the same operation and the same dependencies; a single step is a group of its own."""

    name: str
    members: tuple[int, ...]

    @property
    def folded(self) -> bool:
        """Whether the group has several steps."""
        return len(self.members) > 1

    @property
    def key(self) -> str:
        """A key that no step has as its name."""
        return f"group:{self.members[0]}"


def groups(plan: CompiledPlan, fewest: int = FEWEST) -> list[Group]:
    """The steps of a plan in groups, in the order of their first steps; smaller groups are not folded."""
    alike: dict[tuple[int, str, tuple[int, ...]], list[int]] = {}
    for step in plan.steps:
        alike.setdefault((step.level, step.operation.name, tuple(sorted(step.needs))), []).append(step.index)
    found = []
    for members in alike.values():
        if len(members) >= fewest:
            found.append(Group(_common(plan, members), tuple(members)))
        else:
            found += [Group(plan.steps[i].name, (i,)) for i in members]
    return sorted(found, key=lambda group: group.members[0])


def _common(plan: CompiledPlan, members: list[int]) -> str:
    """The common beginning of the names, with a star; else the operation."""
    names = [plan.steps[i].name for i in members]
    common = takewhile(lambda letters: len(set(letters)) == 1, zip(*names, strict=False))
    prefix = "".join(letters[0] for letters in common).rstrip("0123456789")
    return f"{prefix}*" if prefix.strip("-_.") else f"{plan.steps[members[0]].operation.name} *"


def urgency(state: str) -> int:
    """The rank of a state, 0 for the most urgent."""
    return URGENCY.index(state) if state in URGENCY else len(URGENCY)


def counted(states: Iterable[str]) -> list[tuple[str, int]]:
    """The number of steps in each state, the most urgent state first."""
    return sorted(Counter(states).items(), key=lambda entry: urgency(entry[0]))

"""Messages in memory: what Celery would send, in a list; and a host without receipts."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from longshore.orchestration.messaging.canvas import ADVANCE, CHAIN_LINKS, STEP, UNDO, Canvas
from longshore.orchestration.plans.compiled import CompiledPlan, StepId
from longshore.tasks.attempts.receipts import Trace


@dataclass(frozen=True)
class _Message:
    task: str
    run_id: str
    step_id: StepId = 0
    host: str = ""
    #: The links that follow it in its chain.
    rest: tuple[int, ...] = ()


class _Line(Canvas):
    """The messages of a run, in a queue instead of a broker."""

    def __init__(self, queue: deque[_Message], run_id: str, hosts: Mapping[StepId, str] | None = None) -> None:
        self.queue = queue
        self.run_id = run_id
        self.hosts = hosts or {}

    def send_start(self, plan_name: str) -> None:
        self.send_advance(plan_name)

    def send_advance(self, plan_name: str) -> None:
        self.queue.append(_Message(ADVANCE, self.run_id))

    def send_level(self, plan: CompiledPlan, ids: Sequence[StepId], *, may_chain: bool) -> None:
        first = ids[0]
        if len(ids) == 1 and may_chain and isinstance(first, int):
            links = plan.chain_from(first, CHAIN_LINKS)
            self.queue.append(_Message(STEP, self.run_id, first, rest=links[1:]))
            return
        for step_id in ids:
            self.send_single(STEP, plan, step_id)

    def send_undo(self, plan: CompiledPlan, ids: Sequence[StepId]) -> None:
        for step_id in ids:
            self.send_single(UNDO, plan, step_id)

    def revoke_task(self, task_id: str) -> None:
        """No worker takes the messages of an application's tasks."""

    def send_single(self, task: str, plan: CompiledPlan, step_id: StepId, *, countdown: float | None = None) -> None:
        self.queue.append(_Message(task, self.run_id, step_id, self.hosts.get(step_id, "")))


class _NoReceipts:
    """The receipts of a host on which nothing is done."""

    def close(self, run_id: str, instance_id: str, epoch: int, parts: Collection[str]) -> None:
        """Nothing can act later."""

    def traces(
        self, run_id: str, instance_id: str, patience: float, parts: Collection[str] | None = None
    ) -> tuple[list[Trace], list[str]]:
        return [], []

    def version(self, run_id: str, instance_id: str) -> int:
        return 0

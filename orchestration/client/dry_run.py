"""The dry run of a plan: asks the workers of each step what the step would do, and changes nothing."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from celery import Celery

from longshore.orchestration.errors import UnknownName, WaitTimeout
from longshore.orchestration.language import templates
from longshore.orchestration.language.targets import ANY, is_several
from longshore.orchestration.messaging import signing
from longshore.orchestration.messaging.canvas import DRY_RUN
from longshore.orchestration.plans.compiled import CompiledPlan, CompiledStep
from longshore.orchestration.store.hosts import Host, Hosts
from longshore.orchestration.store.placement import hosts_of, left_out
from longshore.orchestration.store.run_store import Store

_PROBE_SECONDS = 60.0


def dry_run(store: Store, producer: Celery, plan: CompiledPlan, body: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The entries that `Client.dry_run` returns. `body` is the request that a real run would store."""
    dry_run_id = uuid4().hex
    text = signing.sealed(store.settings, "dry_run", dry_run_id, json.dumps(body, ensure_ascii=False))
    store.put_dry_run(dry_run_id, text, _PROBE_SECONDS)
    asked: list[_Question] = []
    answers: list[dict[str, Any]] = []
    hosts = Hosts(store).all()
    for step in plan.steps:
        for host, queue, answer in _places(step, body["params"], hosts):
            if answer is None:
                asked.append(_Question(step.index, host, queue))
            else:
                answers.append({"index": step.index, "host": host, "changed": False} | answer)
    try:
        for question in asked:
            _ask(producer, dry_run_id, plan, question)
        answers += _answers(store, dry_run_id, asked)
    finally:
        store.drop_dry_run(dry_run_id)
    answers.sort(key=lambda answer: (plan.steps[answer["index"]].level, answer["index"], answer["host"]))
    return [
        {"step": step.name, "op": step.operation.name, "level": step.level}
        | {key: answer[key] for key in ("host", "action", "changed", "undo", "impossible")}
        | ({"data": answer["data"]} if answer.get("data") is not None else {})
        for answer in answers
        for step in [plan.steps[answer["index"]]]
    ]


def _places(
    step: CompiledStep, params: Mapping[str, Any], hosts: Mapping[str, Host]
) -> Iterator[tuple[str, str, dict[str, Any] | None]]:
    """The places of a step: host, queue to ask, and the answer where no worker need be asked."""
    try:
        target = str(templates.render(step.target, {"params": dict(params)}))
    except templates.TemplateProblem:
        target = ANY  # depends on results
    if target == ANY:
        reason = left_out(step, None, hosts, alone=True)
        yield "", step.queue, _skipped(reason) if reason else None
        return
    try:
        chosen = hosts_of(hosts, target, always=step.always)
    except UnknownName as error:
        skips = step.step.on_no_host == "skip"
        yield target, "", _skipped(error.message) if skips else _failed(error.message)
        return
    alone = not is_several(target)
    for host in chosen:
        if reason := left_out(step, host, hosts, alone=alone):
            yield host.name, "", _skipped(reason)
        elif not host.alive and not alone and not step.always:
            yield host.name, "", _failed(host.why_not())
        elif not host.alive or (host.why_not() and not step.always):
            yield host.name, "", _held(host.why_not())
        else:
            yield host.name, step.queue_at(host.name), None


def _skipped(why: str) -> dict[str, Any]:
    return {"action": f"would be skipped: {why}", "undo": "nothing to undo", "impossible": None}


def _failed(why: str) -> dict[str, Any]:
    return {"action": f"would fail: {why}", "undo": "nothing to undo", "impossible": why}


def _held(why: str) -> dict[str, Any]:
    return {"action": f"would wait: {why}", "changed": None, "undo": "nothing to undo", "impossible": None}


@dataclass(frozen=True)
class _Question:
    index: int
    #: '' for any host.
    host: str
    queue: str


def _ask(producer: Celery, dry_run_id: str, plan: CompiledPlan, question: _Question) -> None:
    step = plan.steps[question.index]
    producer.signature(
        DRY_RUN,
        args=(dry_run_id, question.index),
        options={
            "queue": question.queue,
            "expires": _PROBE_SECONDS,
            "shadow": f"{plan.plan.name}.{step.name} (dry run)",
            "argsrepr": f"({step.name!r},)",
        },
    ).apply_async()


def _answers(store: Store, dry_run_id: str, asked: list[_Question]) -> list[dict[str, Any]]:
    """One answer for each question, also for a silent host. Raises WaitTimeout where no worker of a queue answers."""
    answers: list[dict[str, Any]] = []
    until = time.monotonic() + _PROBE_SECONDS
    while len(answers) < len(asked):
        answer = store.next_answer(dry_run_id, 1.0)
        if answer is not None:
            answers.append(answer)
        elif time.monotonic() > until:
            answered = {(answer["index"], place) for answer in answers for place in (answer["host"], "")}
            silent = [question for question in asked if (question.index, question.host) not in answered]
            if unserved := sorted({question.queue for question in silent if not question.host}):
                raise WaitTimeout(
                    f"dry run: no worker answered for queue {', '.join(unserved)}",
                    remedy="start a worker of that queue: longshore worker",
                )
            why = "unknown: no worker of the host answered"
            return answers + [
                {"index": question.index, "host": question.host, "changed": None, "action": why}
                | {"undo": "nothing to undo", "impossible": None}
                for question in silent
            ]
    return answers

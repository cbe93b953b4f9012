"""Handlers of the pages: their data, and the commands of their buttons."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, TypeVar

from flower.views import BaseHandler
from tornado import web
from tornado.ioloop import IOLoop

from longshore.orchestration import Client
from longshore.orchestration.client.run import Run
from longshore.orchestration.errors import LongshoreError, StoreUnavailable, UnknownName, UsageError, WaitTimeout
from longshore.orchestration.language import printable
from longshore.orchestration.language.identifiers import RUN_ID
from longshore.orchestration.plans.shown_params import one_line
from longshore.orchestration.runs import diagram, timeline
from longshore.orchestration.runs.search import Filter, Row, search
from longshore.orchestration.settings import get_settings
from longshore.orchestration.states import TERMINAL, RunState, StepState

T = TypeVar("T")

#: Runs on one page.
PAGE = 50
#: Maximum steps of a diagram; a larger plan is shown as a table only.
_DRAWN = 300
#: Seconds that a button waits for its command's answer.
_ANSWER = 10.0
_POLICY = "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; frame-ancestors 'none'"


@lru_cache(maxsize=1)
def _client() -> Client:
    return Client()


class Page(BaseHandler):  # type: ignore[misc]
    """A page behind Flower's login; its handlers do not block Flower's event loop."""

    def prepare(self) -> None:
        self.set_header("Content-Security-Policy", _POLICY)
        self.set_header("Cache-Control", "no-store")

    async def run_in_thread(self, function: Callable[[], T]) -> T:
        """Return the function's result, computed in a thread. Errors become HTTP errors."""
        try:
            return await IOLoop.current().run_in_executor(None, function)
        except UnknownName as error:
            raise web.HTTPError(404, error.message) from None
        except (UsageError, WaitTimeout) as error:
            raise web.HTTPError(409, str(error)) from None
        except StoreUnavailable as error:
            raise web.HTTPError(503, str(error)) from None
        except LongshoreError as error:
            raise web.HTTPError(500, str(error)) from None

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        error = (kwargs.get("exc_info") or (None, None))[1]
        message = error.log_message if isinstance(error, web.HTTPError) else None
        if status_code in {404, 409, 500, 503} and message:
            self.set_header("Content-Type", "text/plain; charset=utf-8")
            self.finish(printable.line(message))
        else:
            super().write_error(status_code, **kwargs)

    @property
    def actor(self) -> str:
        """The name of the login."""
        user = self.current_user
        if isinstance(user, str):
            return user
        head, _, coded = self.request.headers.get("Authorization", "").partition(" ")
        if head == "Basic":
            try:
                return base64.b64decode(coded).decode().partition(":")[0]
            except ValueError:
                pass
        return "flower"

    @property
    def may_act(self) -> bool:
        return not self.application.options.read_only


class Runs(Page):
    """The list of runs, filtered. `part=1` returns its table only."""

    @web.authenticated
    async def get(self) -> None:
        query = {name: self.get_argument(name, "", escape=False) for name in ("q", "plan", "state", "label", "since")}
        try:
            wanted = Filter.read(**query)
        except UsageError as error:
            wanted, problem = Filter(), error.message
        else:
            problem = ""
        rows: list[Row] = printable.values(await self.run_in_thread(lambda: search(_client().store, wanted, PAGE)))
        name = "runs_table.html" if self.get_argument("part", "") else "runs.html"
        self.render(name, rows=rows, query=query, problem=problem, states=[str(state) for state in RunState], ago=_ago)


class OneRun(Page):
    """One run. `part=1` returns the part that changes, or 204 where nothing has changed since `version`."""

    @web.authenticated
    async def get(self, run_id: str) -> None:
        if not RUN_ID.fullmatch(run_id):
            raise web.HTTPError(404, f"no run {run_id!r}")
        part, seen = self.get_argument("part", ""), self.get_argument("version", "")
        shown = await self.run_in_thread(lambda: _shown(run_id, seen if part else ""))
        if shown is None:
            self.set_status(204)
            return
        self.render("run_live.html" if part else "run.html", may_act=self.may_act, **shown)


class Command(Page):
    """Sends a button's command; the answer is a line of text."""

    @web.authenticated
    async def post(self, run_id: str, kind: str) -> None:
        # A form of another site's page cannot set this header.
        if self.request.headers.get("X-Requested-With") != "longshore":
            raise web.HTTPError(403, "commands are accepted from the run's page only")
        if not self.may_act:
            raise web.HTTPError(403, "this Flower is read-only")
        step = self.get_argument("step", "", escape=False)
        reason = self.get_argument("reason", "", escape=False)[:500]
        settings = get_settings().model_copy(update={"actor": self.actor, "origin": f"flower {self.request.remote_ip}"})

        def ask() -> str:
            client = Client(settings)
            try:
                run = client.get(run_id)
                asked = {
                    "cancel": lambda: run.cancel(reason),
                    "resume": lambda: run.resume(reason),
                    "undo": lambda: run.undo(reason),
                    "approve": lambda: run.approve(step, reason),
                    "reject": lambda: run.reject(step, reason),
                }[kind]()
                return run.answer(asked, timeout=_ANSWER)
            finally:
                client.close()

        answer = await self.run_in_thread(ask)
        if answer != "done":
            self.set_status(409)  # the answer is the reason of the refusal
        self.set_header("Content-Type", "text/plain; charset=utf-8")
        self.finish(printable.line(answer))


def _shown(run_id: str, seen: str) -> dict[str, Any] | None:
    """The data of a run's page; None where its record is unchanged since `seen`."""
    run = _client().get(run_id)
    version = f"{run.store.version(run_id)}.{run.store.newest_event(run_id)}"
    if seen == version and run.state() in TERMINAL:
        return None
    report, events = run.report(), run.events()
    if seen == version and not any(step.status in _MOVING for step in report.steps):
        return None
    # Read before escaping: JSON escapes its own text.
    data = {step.name: _text(step.data) for step in report.steps if step.data}
    report, events = printable.values(report), printable.values(events)
    now = run.store.now()
    states = diagram.states_of(report)
    fields = run.store.fields(run_id)
    return {
        "run": run,
        "report": report,
        "version": version,
        "actor": printable.line(fields.get("actor", "")),
        "params": one_line(report.params),
        "picture": diagram.svg(run.plan, states, link="#row-") if len(run.plan) <= _DRAWN else "",
        "gantt": timeline.gantt(run.plan, events, now),
        "bars": _by_step(timeline.bars(events)),
        "events": [(datetime.fromtimestamp(event.at / 1000, UTC), event) for event in events[-200:]],
        "buttons": _buttons(report.state),
        "waiting": [step.name for step in report.steps if step.status is StepState.WAITING and _asks(run, step.name)],
        "states": states,
        "data": data,
    }


_MOVING = {StepState.RUNNING, StepState.RETRYING}


def _asks(run: Run, step: str) -> bool:
    waits = run.plan.steps[run.plan.index[step]].waits
    return waits is not None and str(waits) == "person"


def _by_step(found: list[timeline.Bar]) -> dict[str, list[timeline.Bar]]:
    by: dict[str, list[timeline.Bar]] = {}
    for bar in found:
        by.setdefault(bar.step, []).append(bar)
    return by


def _buttons(state: RunState) -> list[tuple[str, str]]:
    """The commands for a run in that state, each with its effect."""
    if state not in TERMINAL:
        found = [("cancel", "End the run: no new step starts, and completed steps are undone")]
        return [*found, ("resume", "Continue the run")] if state is RunState.SUSPENDED else found
    return {
        RunState.FAILED: [("resume", "Continue from the first step that is not done")],
        RunState.CANCELLED: [("resume", "Begin the run")],
        RunState.PARTIAL: [
            ("resume", "Continue from the first step that is not done"),
            ("undo", "Undo the completed steps"),
        ],
        RunState.SUCCEEDED: [("undo", "Undo the completed steps")],
        RunState.UNDO_FAILED: [("resume", "Retry the failed undos")],
    }.get(state, [])


def _text(value: Any) -> str:
    """Data as indented JSON."""
    text = printable.as_json(json.dumps(value, ensure_ascii=False, indent=1))
    return text if len(text) <= 4000 else f"{text[:4000]}\n… ({len(text)} characters: longshore runs show)"


def _ago(at: datetime) -> str:
    seconds = max(0.0, (datetime.now(UTC) - at).total_seconds())
    for size, name in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds // size:.0f} {name} ago"
    return f"{seconds:.0f} s ago"

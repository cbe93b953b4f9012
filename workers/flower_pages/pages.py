"""The pages: what is looked up for them, and what their buttons do."""

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
from longshore.orchestration.runs import diagram, timeline
from longshore.orchestration.runs.search import Filter, Row, search
from longshore.orchestration.settings import get_settings
from longshore.orchestration.states import TERMINAL, RunState, StepState

T = TypeVar("T")

#: Runs on one page.
PAGE = 50
#: Steps that are drawn; a wider plan is a table.
_DRAWN = 300
#: Seconds that a button waits for what became of it.
_ANSWER = 10.0
_POLICY = "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; frame-ancestors 'none'"


@lru_cache(maxsize=1)
def _client() -> Client:
    return Client()


class Page(BaseHandler):  # type: ignore[misc]
    """Behind Flower's login; nothing here blocks its loop."""

    def prepare(self) -> None:
        self.set_header("Content-Security-Policy", _POLICY)
        self.set_header("Cache-Control", "no-store")

    async def look(self, function: Callable[[], T]) -> T:
        """What it returns, found in a thread. Errors become answers of this page."""
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
        told = error.log_message if isinstance(error, web.HTTPError) else None
        if status_code in {404, 409, 500, 503} and told:
            self.set_header("Content-Type", "text/plain; charset=utf-8")
            self.finish(printable.line(told))
        else:
            super().write_error(status_code, **kwargs)

    @property
    def who(self) -> str:
        """Who is at it: the login's name."""
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
    """The list, searched. `part=1` gives its table alone."""

    @web.authenticated
    async def get(self) -> None:
        given = {name: self.get_argument(name, "", escape=False) for name in ("q", "plan", "state", "label", "since")}
        try:
            wanted = Filter.read(**given)
        except UsageError as error:
            wanted, wrong = Filter(), error.message
        else:
            wrong = ""
        rows: list[Row] = printable.values(await self.look(lambda: search(_client().store, wanted, PAGE)))
        name = "runs_table.html" if self.get_argument("part", "") else "runs.html"
        self.render(name, rows=rows, given=given, wrong=wrong, states=[str(state) for state in RunState], ago=_ago)


class OneRun(Page):
    """One run. `part=1` gives what changes; nothing (204) where nothing has since `ver`."""

    @web.authenticated
    async def get(self, run_id: str) -> None:
        if not RUN_ID.fullmatch(run_id):
            raise web.HTTPError(404, f"no run {run_id!r}")
        part, seen = self.get_argument("part", ""), self.get_argument("version", "")
        shown = await self.look(lambda: _shown(run_id, seen if part else ""))
        if shown is None:
            self.set_status(204)
            return
        self.render("run_live.html" if part else "run.html", may_act=self.may_act, **shown)


class Command(Page):
    """What a button asks for; the answer is a line of text."""

    @web.authenticated
    async def post(self, run_id: str, kind: str) -> None:
        # A form of somebody else's page cannot set it.
        if self.request.headers.get("X-Requested-With") != "longshore":
            raise web.HTTPError(403, "this is asked for by the page of the run")
        if not self.may_act:
            raise web.HTTPError(403, "this Flower is read-only")
        step = self.get_argument("step", "", escape=False)
        reason = self.get_argument("reason", "", escape=False)[:500]
        settings = get_settings().model_copy(update={"actor": self.who, "origin": f"flower {self.request.remote_ip}"})

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

        answer = await self.look(ask)
        if answer != "done":
            self.set_status(409)  # nothing was done, and this is why
        self.set_header("Content-Type", "text/plain; charset=utf-8")
        self.finish(printable.line(answer))


def _shown(run_id: str, seen: str) -> dict[str, Any] | None:
    """All that the page of a run shows; None where its record is as it was seen."""
    run = _client().get(run_id)
    version = f"{run.store.version(run_id)}.{run.store.newest_event(run_id)}"
    if seen == version and run.state() in TERMINAL:
        return None
    report, events = run.report(), run.events()
    if seen == version and not any(step.status in _MOVING for step in report.steps):
        return None
    # As they were recorded: JSON escapes what they hold by itself.
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
    """What may be asked of a run in that state, and what it does."""
    if state not in TERMINAL:
        found = [("cancel", "End it: nothing new begins, and what was done is taken back")]
        return [*found, ("resume", "Go on")] if state is RunState.SUSPENDED else found
    return {
        RunState.FAILED: [("resume", "Go on from the first step that is not done")],
        RunState.PARTIAL: [
            ("resume", "Go on from the first step that is not done"),
            ("undo", "Take back what was done"),
        ],
        RunState.SUCCEEDED: [("undo", "Take back what was done")],
        RunState.UNDO_FAILED: [("resume", "Try the undos that failed once more")],
    }.get(state, [])


def _text(value: Any) -> str:
    """Data as people read it."""
    text = printable.as_json(json.dumps(value, ensure_ascii=False, indent=1))
    return text if len(text) <= 4000 else f"{text[:4000]}\n… ({len(text)} characters: longshore runs show)"


def _ago(at: datetime) -> str:
    seconds = max(0.0, (datetime.now(UTC) - at).total_seconds())
    for size, name in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds // size:.0f} {name} ago"
    return f"{seconds:.0f} s ago"

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
from longshore.orchestration.plans.compiled import StepId
from longshore.orchestration.plans.shown_params import one_line
from longshore.orchestration.runs import diagram, timeline
from longshore.orchestration.runs.headline import headline
from longshore.orchestration.runs.report import Report
from longshore.orchestration.runs.search import Filter, Row, search
from longshore.orchestration.runs.styles import style_of, symbol_of
from longshore.orchestration.settings import get_settings
from longshore.orchestration.states import TERMINAL, RunState, StepState
from longshore.orchestration.store.admission import Admission
from longshore.workers.flower_pages import view

T = TypeVar("T")

#: Runs on one page.
PAGE = 50
#: Maximum boxes of a diagram, and of its copy for narrow screens; a larger plan is shown as a table only.
_DRAWN, _DRAWN_TWICE = 300, 60
#: Steps from which on the table begins with the failed ones.
_MANY = 20
#: Seconds that a button waits for its command's answer.
_ANSWER = 10.0
_POLICY = "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; frame-ancestors 'none'"


@lru_cache(maxsize=1)
def _client() -> Client:
    return Client()


@lru_cache(maxsize=1000)
def _first_error(run_id: str, _created: datetime, _state: RunState) -> tuple[str, str]:
    """The failing step of an ended run whose failures were tolerated, and its error."""
    error = _client().get(run_id).report().error
    return (error.step or "", error.message) if error is not None else ("", "")


@lru_cache(maxsize=1000)
def _step_name(run_id: str, _created: datetime, index: int) -> str:
    """The name of a step of a run. `_created` tells apart runs of the same id."""
    return _client().get(run_id).plan.steps[index].name


def _why(row: Row) -> tuple[str, str]:
    """The failing step of a run and its error, or the reason why a run has not begun."""
    try:
        if row.failed_step is not None:
            return _step_name(row.run_id, row.created, row.failed_step), row.error
        if row.state is RunState.PENDING:
            held = _client().get(row.run_id).report().error
            return "", held.message if held is not None else ""
        if row.state in {RunState.PARTIAL, RunState.FAILED} and not row.error:
            return _first_error(row.run_id, row.created, row.state)
    except (LongshoreError, IndexError):
        pass
    return "", row.error


class Page(BaseHandler):  # type: ignore[misc]
    """A page behind Flower's login; its handlers do not block Flower's event loop."""

    def get_template_namespace(self) -> dict[str, Any]:
        names: dict[str, Any] = super().get_template_namespace()
        more: dict[str, Any] = {
            "badge": view.badge,
            "label": lambda state: style_of(state).label,
            "symbol_of": symbol_of,
        }
        more |= {"stylesheet": view.stylesheet, "ago": view.ago, "clock": view.clock, "duration": timeline.duration}
        return names | more

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

        def find() -> list[tuple[Row, str, str]]:
            return [(row, *_why(row)) for row in search(_client().store, wanted, PAGE)]

        rows = printable.values(await self.run_in_thread(find))
        name = "runs_table.html" if self.get_argument("part", "") else "runs.html"
        states = [str(state) for state in RunState]
        self.render(name, rows=rows, query=query, problem=problem, states=states, page=PAGE)


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


class Log(Page):
    """The output of a step, or of one of its units, as text."""

    @web.authenticated
    async def get(self, run_id: str) -> None:
        if not RUN_ID.fullmatch(run_id):
            raise web.HTTPError(404, f"no run {run_id!r}")
        step = self.get_argument("step", "", escape=False)
        found = await self.run_in_thread(lambda: list(_client().get(run_id).log(step)))
        self.set_header("Content-Type", "text/plain; charset=utf-8")
        self.set_header("X-Content-Type-Options", "nosniff")
        self.finish("\n".join(map(printable.line, found)) + "\n")


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
    waits_for = run.waits_for() if report.state not in TERMINAL else []
    logs = _logs(run, report)
    report, events = printable.values(report), printable.values(events)
    states = diagram.states_of(report)
    fields = run.store.fields(run_id)
    found = timeline.timeline(run.plan, events, run.store.now())
    rows = view.step_groups(run.plan, report, _by_step(timeline.bars(events)), logs)
    drawn = len(rows)
    return {
        "run": run,
        "report": report,
        "version": version,
        "actor": printable.line(fields.get("actor", "")),
        "digest": printable.line(fields.get("digest", ""))[:12],
        "params": one_line(report.params),
        "position": _position(run, report),
        "created": datetime.fromtimestamp(int(fields["created"]) / 1000, UTC) if fields.get("created") else None,
        "sentence": headline(report, printable.values(waits_for)),
        "waits_for": printable.values(waits_for),
        "picture": _picture(run, states, 1200, 5, "step-") if drawn <= _DRAWN else "",
        "narrow": _picture(run, states, 340, 2, "narrow-") if drawn <= _DRAWN_TWICE else "",
        "timeline": found,
        "rows": rows,
        "counts": view.counted(row.state for group in rows for row in group.rows),
        "failed_first": len(report.steps) >= _MANY,
        "events": [(datetime.fromtimestamp(event.at / 1000, UTC), event) for event in events[-200:]],
        "buttons": _buttons(report.state),
        "waiting": [step.name for step in report.steps if step.status is StepState.WAITING and _asks(run, step.name)],
        "data": data,
    }


def _position(run: Run, report: Report) -> int | None:
    """The position of a run in the queue of its limit, 1 for the next one."""
    admission = Admission(run.store)
    wanted = admission.request_of(run.id) if report.state is RunState.PENDING else None
    before = admission.position(run.id, wanted) if wanted is not None else None
    return before + 1 if before is not None else None


def _picture(run: Run, states: dict[str, str], width: int, columns: int, ids: str) -> str:
    return diagram.svg(run.plan, states, link="#row-", width=width, columns=columns, fold=True, ids=ids)


def _logs(run: Run, report: Report) -> dict[str, list[str]]:
    """The steps and units that have output, by step."""
    begun: list[StepId] = []
    for index, step in enumerate(report.steps):
        begun += [index] if step.attempts else []
        begun += [f"{index}.{number}" for number, unit in view.shown_units(step) if unit.attempts]
    found: dict[str, list[str]] = {}
    logged = run.store.logged(run.id, begun)
    for step_id in begun:
        if step_id in logged:
            name = run.plan.name_of(step_id)
            found.setdefault(name.partition("[")[0], []).append(name)
    return found


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

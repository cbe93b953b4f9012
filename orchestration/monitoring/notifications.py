"""Notifications of failed runs, failed undos, requested approvals and open breakers.

Workers send each notice at least once, from the events of the run (a repetition has the same `Notice.id`): to a
webhook, a command, Apprise, and the functions that packages register under the entry-point group
`longshore.notifiers`, each of which receives a Notice.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import os
import shlex
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import lru_cache, partial
from importlib.metadata import entry_points
from typing import Any, Literal
from urllib.parse import quote

import requests

from longshore.orchestration.runs.events import Event
from longshore.orchestration.settings import Settings
from longshore.orchestration.states import TERMINAL, Cause, RunState

log = logging.getLogger(__name__)

Kind = Literal["failed", "undo_failed", "approval_wanted", "breaker_open"]
#: Time limit in seconds of one webhook request or command.
TIMEOUT = 10.0
_BAD = {RunState.FAILED, RunState.PARTIAL, RunState.UNDONE}


@dataclass(frozen=True)
class Notice:
    """A notification. `why` is an error, an awaited decision or the failure of a service; `link`, the run's page."""

    id: str
    kind: Kind
    run_id: str
    plan: str
    state: str
    step: str
    why: str
    actor: str
    at: str
    link: str = ""

    @property
    def title(self) -> str:
        what = {
            "failed": f"run {self.run_id} ended {self.state}",
            "undo_failed": f"undo of run {self.run_id} failed",
            "approval_wanted": f"run {self.run_id} waits for a decision on step {self.step}",
            "breaker_open": f"run {self.run_id} waits for a service that is down",
        }[self.kind]
        if self.kind == "breaker_open" and self.state in TERMINAL:
            what = f"the job is no longer started by its schedule after run {self.run_id}"
        return f"{self.plan}: {what}"

    @property
    def text(self) -> str:
        where = f"step {self.step}: " if self.step and self.kind != "approval_wanted" else ""
        return "\n".join(filter(None, [self.title, f"{where}{self.why}" if self.why else "", self.link]))

    def as_json(self) -> str:
        """The notice as JSON, with the field `text` that chat services expect."""
        return json.dumps(asdict(self) | {"title": self.title, "text": self.text}, ensure_ascii=False)


def kind_of(event: Event) -> Kind | None:
    """The kind of notice for an event; None for most events."""
    match event.name:
        case "run_ended" if event.fields.get("state") == RunState.UNDO_FAILED:
            return "undo_failed"
        case "run_ended" if event.fields.get("state") in _BAD and event.fields.get("cause") != Cause.CANCEL:
            return "failed"
        case "step_waiting" | "item_waiting" if event.fields.get("for", "").startswith("an approval"):
            return "approval_wanted"
        case "run_suspended" if event.fields.get("for") == "unknown":
            return "approval_wanted"
        case "run_suspended" if event.fields.get("for") == "breaker":
            return "breaker_open"
        case "breaker_opened":
            return "breaker_open"
        case _:
            return None


def enabled_kinds(settings: Settings) -> frozenset[str]:
    """The kinds of notices to send; none without a notifier."""
    if not (settings.notify_webhook or settings.notify_command or settings.notify_apprise or _registered()):
        return frozenset()
    return frozenset(word.strip() for word in settings.notify_on.split(",") if word.strip())


def make(settings: Settings, run_id: str, plan: str, fields: dict[str, str], event: Event, kind: Kind) -> Notice:
    """The notice of an event; `fields` are those of the run's record."""
    link = f"{settings.notify_link.rstrip('/')}/runs/{quote(run_id, safe='')}" if settings.notify_link else ""
    why = event.fields.get("error") or fields.get("err", "") or event.fields.get("for", "")
    return Notice(
        f"{run_id}/{event.id}", kind, run_id, plan, event.fields.get("state") or fields.get("state", ""),
        event.step or "", why, fields.get("actor", ""), datetime.fromtimestamp(event.at / 1000, UTC).isoformat(), link,
    )  # fmt: skip


def deliver(settings: Settings, notice: Notice, delivered: set[str]) -> None:
    """Send a notice to each notifier that is not in `delivered`, and add those that succeed. Raises the first error
    after all notifiers were tried.
    """
    errors: list[Exception] = []
    for name, dispatcher in _dispatchers(settings):
        if name in delivered:
            continue
        try:
            dispatcher(notice)
            delivered.add(name)
        except Exception as error:  # noqa: BLE001 - the other notifiers are still tried
            log.warning("notice %s could not be sent to %s: %s", notice.id, name, error)
            errors.append(error)
    if errors:
        raise errors[0]


def _dispatchers(settings: Settings) -> Iterator[tuple[str, Callable[[Notice], object]]]:
    if settings.notify_webhook:
        yield "the webhook", partial(_webhook, settings)
    if settings.notify_command:
        yield "the command", partial(_command, settings)
    if settings.notify_apprise:
        yield "Apprise", partial(_apprise, settings)
    yield from _registered()


@lru_cache(maxsize=1)
def _registered() -> tuple[tuple[str, Callable[[Notice], object]], ...]:
    found = []
    for entry in entry_points(group="longshore.notifiers"):
        try:
            found.append((entry.name, entry.load()))
        except Exception:  # an error of a package must not stop workers
            log.exception("notifier %s cannot be loaded", entry.name)
    return tuple(found)


def _webhook(settings: Settings, notice: Notice) -> None:
    body = notice.as_json().encode()
    headers = {"Content-Type": "application/json", "Longshore-Notice": notice.id}
    if settings.notify_secret:
        mac = hmac.new(settings.notify_secret.encode(), body, hashlib.sha256).hexdigest()
        headers["Longshore-Signature"] = f"sha256={mac}"
    answer = requests.post(settings.notify_webhook, data=body, headers=headers, timeout=TIMEOUT, allow_redirects=False)
    if not answer.ok:
        raise OSError(f"the webhook answered with status {answer.status_code}")


def _command(settings: Settings, notice: Notice) -> None:
    """Run the command without a shell: notice as JSON on stdin, its fields as LONGSHORE_NOTICE_… in the environment."""
    parts: dict[str, Any] = asdict(notice) | {"title": notice.title}
    variables = {f"LONGSHORE_NOTICE_{name.upper()}": str(value) for name, value in parts.items()}
    inherited = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TZ") if name in os.environ}
    done = subprocess.run(
        shlex.split(settings.notify_command), input=notice.as_json(), env=inherited | variables, timeout=TIMEOUT,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise OSError(f"the command ended with exit code {done.returncode}: {done.stderr.strip()[-200:]}")


def _apprise(settings: Settings, notice: Notice) -> None:
    import apprise  # noqa: PLC0415 - an extra

    service = apprise.Apprise()
    for url in settings.notify_apprise.split():
        if not service.add(url):
            raise OSError("Apprise does not support an address of LONGSHORE_NOTIFY_APPRISE")
    if not service.notify(title=notice.title, body=notice.text):
        raise OSError("Apprise could not deliver the notice")

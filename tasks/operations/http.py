"""`network.http.*`: calls to services, from the worker's host, or by a program inside a container."""

from __future__ import annotations

import json
import re
import socket
import ssl
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from longshore.orchestration.errors import (
    Blocked,
    Delayed,
    InDoubt,
    OperationError,
    Preflight,
    Transient,
    Unsuccessful,
    wrapped,
)
from longshore.orchestration.language.secrets import OVERLAP
from longshore.orchestration.operations.network import (
    HTTP_GET,
    HTTP_REQUEST,
    HttpGetParams,
    HttpRequestParams,
    Undoing,
)
from longshore.orchestration.settings import get_settings
from longshore.tasks.host import addresses
from longshore.tasks.host.machine.factory import machine_of
from longshore.tasks.host.machine.port import Program
from longshore.tasks.implementation import Context, Implementation, Outcome, Prediction, ReadOnly, implements

_BODY_LIMIT = 64 * 1024
#: Bytes that curl takes as its configuration, and that its answer may have.
_INSIDE_LIMIT = 512 * 1024
_INSIDE_ANSWER = 16 * 1024 * 1024
_TICK = 0.1
_TAKEN_BACK = (404, 410)
#: Seconds that a service may have itself waited for.
_LONGEST_WAIT = 86_400.0


class NoAnswer(Transient):
    """Nothing came back. `sent` says whether the call may have arrived."""

    def __init__(self, message: str, *, sent: bool) -> None:
        super().__init__(message)
        self.sent = sent


@dataclass(frozen=True)
class Call:
    """What is sent."""

    method: str
    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None
    timeout: float = 30.0
    verify: bool = True
    #: Whether it may go to where the answer points.
    follow: bool = False

    @property
    def shown(self) -> str:
        """Without what may be secret: credentials and the query."""
        return f"{self.method} {re.sub(r'//[^/@]*@', '//', self.url.partition('?')[0])}"


@dataclass(frozen=True)
class Answer:
    """What came back; `body` bounded."""

    code: int
    headers: dict[str, str]
    body: bytes
    truncated: bool
    duration_ms: int

    def data(self, ctx: Context) -> dict[str, Any]:
        """Cut only after it was looked through for secrets."""
        text = ctx.redact(self.body.decode("utf-8", "replace"))[:_BODY_LIMIT]
        found: dict[str, Any] = {"code": self.code, "body": text, "headers": self.headers}
        found |= {"duration_ms": self.duration_ms, "truncated": self.truncated}
        if "json" in self.headers.get("content-type", "") and not self.truncated:
            try:
                found["json"] = json.loads(text)
            except (ValueError, RecursionError):
                return found
        return found


def send(ctx: Context, call: Call) -> Answer:
    """Raises NoAnswer, and what `ctx.check` raises, at once; Preflight for what cannot be sent."""
    for name, value in call.headers.items():
        if not f"{name}: {value}".isprintable() or any(ord(letter) > 255 for letter in value):
            raise Preflight(f"{call.shown}: header {name!r} holds what no header may")
    # What it carries is for that service, and not for where it points.
    secret = any(ctx.redact(value) != value for value in call.headers.values())
    call = replace(call, follow=call.method in {"GET", "HEAD"} and not secret)
    where = addresses.endpoint(call.url)
    addresses.check(where.name)
    call = replace(call, url=where.url)
    if not ctx.container:
        return _from_here(ctx, call)
    # By a program in there, which resolves names by itself and does not ask at each hop.
    return _from_inside(ctx, replace(call, follow=call.follow and not get_settings().allowed_hosts))


def _from_here(ctx: Context, call: Call) -> Answer:
    """In a thread, since a call cannot be waited for and be given up at the same time."""
    result: list[Answer | BaseException] = []

    def ask() -> None:
        try:
            result.append(_ask(call))
        except BaseException as error:  # noqa: BLE001 - raised in the thread that waits
            result.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    end = time.monotonic() + call.timeout + 1.0
    while not result:
        thread.join(_TICK)
        ctx.check()
        if time.monotonic() > end and not result:
            raise NoAnswer(f"{call.shown}: no answer in {call.timeout:g} s", sent=True)
    if isinstance(result[0], BaseException):
        raise result[0]
    return result[0]


def _ask(call: Call) -> Answer:
    from requests import exceptions  # noqa: PLC0415 - slow to import, and only few workers do this
    from urllib3.exceptions import ConnectTimeoutError, HTTPError, NewConnectionError  # noqa: PLC0415

    from longshore.tasks.host.http_session import session  # noqa: PLC0415

    started = time.monotonic()
    try:
        with session() as web:
            response = web.request(
                call.method,
                call.url,
                headers=dict(call.headers),
                data=call.body,
                timeout=(min(call.timeout, 10.0), call.timeout),
                verify=call.verify,
                allow_redirects=call.follow,
                stream=True,
            )
            body = b""
            for chunk in response.iter_content(8192):
                body += chunk
                if len(body) > _BODY_LIMIT + OVERLAP:
                    break
                if time.monotonic() - started > call.timeout:
                    raise NoAnswer(f"{call.shown}: no whole answer in {call.timeout:g} s", sent=True)
    except (exceptions.SSLError, exceptions.InvalidURL, exceptions.InvalidHeader, exceptions.MissingSchema) as error:
        raise Preflight(f"{call.shown}: {_short(error)}") from None
    except exceptions.ConnectionError as error:
        # Before it was connected nothing can have arrived.
        unsent = (NewConnectionError, ConnectTimeoutError, ConnectionRefusedError, socket.gaierror)
        sent = not any(isinstance(link, unsent) for link in wrapped(error))
        raise NoAnswer(f"{call.shown}: {_short(error)}", sent=sent) from None
    except exceptions.RequestException as error:
        raise NoAnswer(f"{call.shown}: {_short(error)}", sent=True) from None
    except (ValueError, UnicodeError, HTTPError) as error:  # the name of a host that is none, and its like
        raise Preflight(f"{call.shown}: {_short(error)}") from None
    headers = {name.lower(): value for name, value in response.headers.items()}
    took = round((time.monotonic() - started) * 1000)
    return Answer(response.status_code, headers, body, len(body) > _BODY_LIMIT, took)


def _short(error: Exception) -> str:
    """The last reason in a chain of wrapped ones, without the URL, which may hold a secret."""
    links = list(wrapped(error))
    for link in reversed(links):
        if isinstance(link, ssl.SSLCertVerificationError):
            return f"certificate verify failed: {link.verify_message}"
        if isinstance(link, ssl.SSLError) and link.reason:
            return link.reason.replace("_", " ").lower()
        if isinstance(link, OSError) and link.strerror:
            return link.strerror
    # requests, urllib3 and Python have a type each.
    late = any("Timeout" in kind.__name__ for link in links for kind in type(link).__mro__)
    return "no answer in time" if late else type(error).__name__


def _from_inside(ctx: Context, call: Call) -> Answer:
    """By the container's own curl or wget; busybox' wget can only ask and post."""
    machine = machine_of(ctx)
    secret = any(ctx.redact(value) != value for value in [*call.headers.values(), call.url])
    hops = bool(get_settings().allowed_hosts)  # wget follows a redirect in any case
    for program, argv, stdin in (
        ("curl", ["curl", "-K", "-"], _curl(call)),
        ("wget", None if secret or hops else _wget(call), call.body),  # its arguments can be seen by others
    ):
        if argv is None or not any(machine.exists(f"{folder}/{program}") for folder in ("/usr/bin", "/bin")):
            continue
        if len(stdin or b"") > _INSIDE_LIMIT:
            raise Preflight(f"{call.shown} from container {ctx.container}: more than {_INSIDE_LIMIT} bytes to send")
        # The head of an answer comes first, so all of it is heard.
        done = machine.run(Program(argv, {}, stdin=stdin, timeout=call.timeout + 1.0, limit=_INSIDE_ANSWER))
        answer = _answer_of(program, done.stdout, done.stderr, done.duration_ms)
        if answer is None:
            said = (done.stderr.strip().splitlines() or [f"exit code {done.exit_code}"])[-1]
            refused = any(word in said.lower() for word in ("refused", "resolve", "bad address", "unreachable"))
            raise NoAnswer(f"{call.shown} from container {ctx.container}: {said}", sent=not refused)
        return answer
    what = f"container {ctx.container} has no program that can send {call.method}"
    raise Preflight(what, remedy="it needs curl; or wget, for GET and POST without a secret and a list of hosts")


def _curl(call: Call) -> bytes:
    """Its configuration, for its standard input: nothing of it is seen among the processes."""
    lines = ["silent", "show-error", "include", "globoff", f"max-time = {call.timeout:g}", f"url = {_quoted(call.url)}"]
    lines += ["location"] if call.follow else []
    lines += ["head"] if call.method == "HEAD" else [f"request = {_quoted(call.method)}"]
    lines += [] if call.verify else ["insecure"]
    lines += [f"header = {_quoted(f'{name}: {value}')}" for name, value in call.headers.items()]
    lines += [f"data-raw = {_quoted(call.body.decode())}"] if call.body is not None else []
    return "\n".join(lines).encode()


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\r", "\\r")
    return f'"{escaped}"'


def _wget(call: Call) -> list[str] | None:
    if call.method not in {"GET", "POST"}:
        return None
    argv = ["wget", "-q", "-S", "-O", "-"]  # its time is bounded from outside: not each one knows -T
    argv += [] if call.verify else ["--no-check-certificate"]
    argv += [word for name, value in call.headers.items() for word in ("--header", f"{name}: {value}")]
    if call.method == "POST":
        argv += ["--post-file", "/dev/stdin"]
    return [*argv, call.url]


def _answer_of(program: str, out: str, err: str, took: int) -> Answer | None:
    """Curl writes the head before the body, wget beside it."""
    head, body = (out.partition("\r\n\r\n")[::2]) if program == "curl" else (err, out)
    code = 0
    headers: dict[str, str] = {}
    for line in head.splitlines():
        if found := re.match(r"\s*HTTP/[\d.]+ (\d{3})", line):
            code, headers = int(found[1]), {}
        elif code and ":" in line:
            name, _, value = line.strip().partition(":")
            headers[name.lower()] = value.strip()
    data = body.encode()
    return Answer(code, headers, data, len(data) > _BODY_LIMIT, took) if code else None


def _well(code: int, ok: list[int] | None) -> bool:
    return code in ok if ok is not None else 200 <= code <= 299


@implements(HTTP_GET)
class HttpGet(ReadOnly[HttpGetParams]):
    """See its schema."""

    def act(self, ctx: Context, params: HttpGetParams, before: dict[str, Any]) -> Outcome:
        call = Call("GET", params.url, params.headers, timeout=params.timeout, verify=params.verify)
        end = time.monotonic() + params.deadline
        while True:
            data: dict[str, Any] = {}
            try:
                answer = send(ctx, call)
                data = answer.data(ctx)
                if _well(answer.code, params.ok_codes):
                    if params.contains is None or params.contains in data["body"]:
                        return Outcome(changed=False, data=data)
                    why = f"{call.shown} answered {answer.code} without {params.contains!r}"
                else:
                    why = f"{call.shown} answered {answer.code}"
            except NoAnswer as error:
                why = error.message
            if time.monotonic() + params.interval > end:
                waited = f" (asked for {params.deadline:g} s)" if params.deadline else ""
                raise Unsuccessful(f"{why}{waited}", data=data)
            ctx.sleep(params.interval)

    def predict(self, ctx: Context, params: HttpGetParams) -> Prediction:
        return Prediction(f"would ask {Call('GET', params.url).shown}", changed=False)


@implements(HTTP_REQUEST)
class HttpRequest(Implementation[HttpRequestParams]):
    """See its schema."""

    def act(self, ctx: Context, params: HttpRequestParams, before: dict[str, Any]) -> Outcome:
        call = self._call(ctx, params)
        looks = params.method in {"GET", "HEAD"}
        again = params.idempotent if params.idempotent is not None else looks or params.method in {"PUT", "DELETE"}
        try:
            answer = send(ctx, call)
        except NoAnswer as error:
            if error.sent and not again:
                raise InDoubt(f"{error.message}; it may have arrived") from None
            raise
        data = answer.data(ctx)
        what = f"{call.shown} answered {answer.code}"
        if answer.code in params.unchanged_codes:
            return Outcome(changed=False, data=data)
        if answer.code in params.delayed_codes and not (params.ok_codes and answer.code in params.ok_codes):
            raise Delayed(what, after=_after(answer))
        if _well(answer.code, params.ok_codes):
            return Outcome(changed=not looks, data=data)
        if answer.code in params.blocked_codes:
            raise Blocked(what, service=re.sub(r"^https?://(?:[^/@]*@)?([^/?]+).*$", r"\1", params.url))
        if answer.code in params.retried_codes:
            raise Transient(what, data=data)
        raise Unsuccessful(what, data=data)

    def predict(self, ctx: Context, params: HttpRequestParams) -> Prediction:
        undo = None if params.undo is None else Call(params.undo.method, params.undo.url).shown
        looks = params.method in {"GET", "HEAD"}
        return Prediction(f"would call {Call(params.method, params.url).shown}", changed=not looks, undo=undo)

    def undo(
        self, ctx: Context, params: HttpRequestParams, before: dict[str, Any], data: dict[str, Any] | None
    ) -> Outcome:
        if params.undo is None:
            raise OperationError(f"nothing says how {params.method} {params.url} is taken back")
        call = self._call(ctx, params, params.undo)
        answer = send(ctx, call)
        codes = params.undo.ok_codes
        if _well(answer.code, codes) or (codes is None and answer.code in _TAKEN_BACK):
            return Outcome(changed=answer.code not in _TAKEN_BACK)
        kind = Transient if answer.code in [*params.retried_codes, *params.blocked_codes] else OperationError
        raise kind(f"{call.shown} answered {answer.code}")

    @staticmethod
    def _call(ctx: Context, params: HttpRequestParams, said: Undoing | None = None) -> Call:
        of = said or params
        key = f"{ctx.idempotency_key}.undo" if said else ctx.idempotency_key
        headers = dict(of.headers)
        if params.idempotency_header and of.method not in {"GET", "HEAD"}:
            headers.setdefault(params.idempotency_header, key)
        body = of.body.encode() if of.body is not None else None
        if of.payload is not None:
            body = json.dumps(of.payload).encode()
            headers.setdefault("Content-Type", "application/json")
        url = of.url.replace("{key}", ctx.idempotency_key)
        return Call(of.method, url, headers, body, params.timeout, params.verify)


def _after(answer: Answer) -> float | None:
    """Seconds, as the service says."""
    said = answer.headers.get("retry-after", "")
    return min(float(said[:9]), _LONGEST_WAIT) if said.isdecimal() else None

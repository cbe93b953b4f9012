"""`network.http.*`: HTTP requests from the worker's host, or by a program inside a container."""

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

from requests import exceptions
from urllib3.exceptions import ConnectTimeoutError, HTTPError, NewConnectionError

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
from longshore.tasks.host.http_session import session
from longshore.tasks.host.machine.factory import machine_of
from longshore.tasks.host.machine.port import Program
from longshore.tasks.implementation import Change, Context, Implementation, NoUndo, Outcome, Prediction, implements

_BODY_LIMIT = 64 * 1024
#: Maximum bytes of curl's configuration, and of the response, inside a container.
_INSIDE_LIMIT = 512 * 1024
_INSIDE_ANSWER = 16 * 1024 * 1024
_TICK = 0.1
_UNDONE_CODES = (404, 410)
#: The longest accepted Retry-After in seconds.
_LONGEST_WAIT = 86_400.0


class NoAnswer(Transient):
    """No response. `sent`: whether the request may have arrived."""

    code = "http-no-answer"

    def __init__(self, message: str, *, sent: bool) -> None:
        super().__init__(message)
        self.sent = sent


@dataclass(frozen=True)
class Call:
    """A request."""

    method: str
    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None
    timeout: float = 30.0
    verify: bool = True
    #: Whether to follow redirects.
    follow: bool = False

    @property
    def shown(self) -> str:
        """Method and URL without credentials and query, which may be secret."""
        return f"{self.method} {re.sub(r'//[^/@]*@', '//', self.url.partition('?')[0])}"


@dataclass(frozen=True)
class Answer:
    """A response, with a truncated body."""

    code: int
    headers: dict[str, str]
    body: bytes
    truncated: bool
    duration_ms: int

    def data(self, ctx: Context) -> dict[str, Any]:
        """The result data; the body is redacted before it is truncated."""
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
    """Send a request. Raises NoAnswer, errors of `ctx.check` at once, and Preflight for an invalid request."""
    for name, value in call.headers.items():
        if not f"{name}: {value}".isprintable() or any(ord(letter) > 255 for letter in value):
            raise Preflight(f"{call.shown}: header {name!r} contains invalid characters")
    # A redirect must not receive secrets of this service.
    secret = any(ctx.redact(value) != value for value in call.headers.values())
    call = replace(call, follow=call.method in {"GET", "HEAD"} and not secret)
    where = addresses.endpoint(call.url)
    addresses.check(where.name)
    call = replace(call, url=where.url)
    if not ctx.container:
        return _from_here(ctx, call)
    # A program in the container resolves names itself, so that redirects would bypass the allow-list.
    return _from_inside(ctx, replace(call, follow=call.follow and not get_settings().allowed_hosts))


def _from_here(ctx: Context, call: Call) -> Answer:
    """Send from this host, in a thread, since a blocking call cannot be aborted."""
    result: list[Answer | BaseException] = []

    def ask() -> None:
        try:
            result.append(_ask(call))
        except BaseException as error:  # noqa: BLE001 - the waiting thread raises it
            result.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    end = time.monotonic() + call.timeout + 1.0
    while not result:
        thread.join(_TICK)
        ctx.check()
        if time.monotonic() > end and not result:
            raise NoAnswer(f"{call.shown}: no response in {call.timeout:g} s", sent=True)
    if isinstance(result[0], BaseException):
        raise result[0]
    return result[0]


def _ask(call: Call) -> Answer:
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
                    raise NoAnswer(f"{call.shown}: the response took longer than {call.timeout:g} s", sent=True)
    except (exceptions.SSLError, exceptions.InvalidURL, exceptions.InvalidHeader, exceptions.MissingSchema) as error:
        raise Preflight(f"{call.shown}: {_short(error)}") from None
    except exceptions.ConnectionError as error:
        # Without a connection, the request cannot have arrived.
        unsent = (NewConnectionError, ConnectTimeoutError, ConnectionRefusedError, socket.gaierror)
        sent = not any(isinstance(link, unsent) for link in wrapped(error))
        raise NoAnswer(f"{call.shown}: {_short(error)}", sent=sent) from None
    except exceptions.RequestException as error:
        raise NoAnswer(f"{call.shown}: {_short(error)}", sent=True) from None
    except (ValueError, UnicodeError, HTTPError) as error:  # such as an invalid host name
        raise Preflight(f"{call.shown}: {_short(error)}") from None
    headers = {name.lower(): value for name, value in response.headers.items()}
    took = round((time.monotonic() - started) * 1000)
    return Answer(response.status_code, headers, body, len(body) > _BODY_LIMIT, took)


def _short(error: Exception) -> str:
    """The innermost reason of a chained error, without the URL, which may contain a secret."""
    links = list(wrapped(error))
    for link in reversed(links):
        if isinstance(link, ssl.SSLCertVerificationError):
            return f"certificate verify failed: {link.verify_message}"
        if isinstance(link, ssl.SSLError) and link.reason:
            return link.reason.replace("_", " ").lower()
        if isinstance(link, OSError) and link.strerror:
            return link.strerror
    # requests, urllib3 and Python have different timeout types.
    timed_out = any("Timeout" in kind.__name__ for link in links for kind in type(link).__mro__)
    return "no response in time" if timed_out else type(error).__name__


def _from_inside(ctx: Context, call: Call) -> Answer:
    """Send with the container's curl or wget; wget of busybox supports GET and POST only."""
    machine = machine_of(ctx)
    secret = any(ctx.redact(value) != value for value in [*call.headers.values(), call.url])
    hops = bool(get_settings().allowed_hosts)  # wget always follows redirects
    for program, argv, stdin in (
        ("curl", ["curl", "-K", "-"], _curl(call)),
        ("wget", None if secret or hops else _wget(call), call.body),  # arguments are visible in the process list
    ):
        if argv is None or not any(machine.exists(f"{folder}/{program}") for folder in ("/usr/bin", "/bin")):
            continue
        if len(stdin or b"") > _INSIDE_LIMIT:
            raise Preflight(
                f"{call.shown} from container {ctx.container}: the request exceeds {_INSIDE_LIMIT} bytes",
                remedy="send it from the worker's host",
            )
        # The head of the response comes first, so that the output must not be truncated.
        try:
            done = machine.run(Program(argv, {}, stdin=stdin, timeout=call.timeout + 1.0, limit=_INSIDE_ANSWER))
        except Transient as error:
            # The engine has answered a moment ago, so that the program may have started.
            raise NoAnswer(f"{call.shown} from container {ctx.container}: {error.message}", sent=True) from None
        answer = _answer_of(program, done.stdout, done.stderr, done.duration_ms)
        if answer is None:
            why = (done.stderr.strip().splitlines() or [f"exit code {done.exit_code}"])[-1]
            refused = any(word in why.lower() for word in ("refused", "resolve", "bad address", "unreachable"))
            raise NoAnswer(f"{call.shown} from container {ctx.container}: {why}", sent=not refused)
        return answer
    what = f"container {ctx.container} has no program that can send {call.method}"
    remedy = "install curl in it; wget supports GET and POST without secrets and without LONGSHORE_ALLOWED_HOSTS only"
    raise Preflight(what, remedy=remedy)


def _curl(call: Call) -> bytes:
    """Curl's configuration for its standard input, which the process list does not show."""
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
    argv = ["wget", "-q", "-S", "-O", "-"]  # the caller limits the time, since not every wget has -T
    argv += [] if call.verify else ["--no-check-certificate"]
    argv += [word for name, value in call.headers.items() for word in ("--header", f"{name}: {value}")]
    if call.method == "POST":
        argv += ["--post-file", "/dev/stdin"]
    return [*argv, call.url]


def _answer_of(program: str, out: str, err: str, took: int) -> Answer | None:
    """Parse the output: curl writes the head before the body, wget writes it to stderr."""
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


def _is_successful(code: int, ok: list[int] | None) -> bool:
    return code in ok if ok is not None else 200 <= code <= 299


@implements(HTTP_GET)
class HttpGet(NoUndo[HttpGetParams]):
    """Polls a URL until the response matches or the deadline is over."""

    def change(self, ctx: Context, params: HttpGetParams, before: dict[str, Any]) -> Change:
        yield Prediction(f"would request {Call('GET', params.url).shown}", changed=False)
        call = Call("GET", params.url, params.headers, timeout=params.timeout, verify=params.verify)
        end = time.monotonic() + params.deadline
        while True:
            data: dict[str, Any] = {}
            try:
                answer = send(ctx, call)
                data = answer.data(ctx)
                if _is_successful(answer.code, params.ok_codes):
                    if params.contains is None or params.contains in data["body"]:
                        return data
                    why = f"{call.shown} returned {answer.code} without {params.contains!r}"
                else:
                    why = f"{call.shown} returned {answer.code}"
            except NoAnswer as error:
                why = error.message
            if time.monotonic() + params.interval > end:
                waited = f" (polled for {params.deadline:g} s)" if params.deadline else ""
                raise Unsuccessful(f"{why}{waited}", data=data)
            ctx.sleep(params.interval)


@implements(HTTP_REQUEST)
class HttpRequest(Implementation[HttpRequestParams]):
    """Sends one request; the undo sends the request in `undo`."""

    def change(self, ctx: Context, params: HttpRequestParams, before: dict[str, Any]) -> Change:
        undo = None if params.undo is None else Call(params.undo.method, params.undo.url).shown
        safe = params.method in {"GET", "HEAD"}
        yield Prediction(f"would send {Call(params.method, params.url).shown}", changed=not safe, undo=undo)
        call = self._call(ctx, params)
        idempotent = params.idempotent if params.idempotent is not None else safe or params.method in {"PUT", "DELETE"}
        try:
            answer = send(ctx, call)
        except NoAnswer as error:
            if error.sent and not idempotent:
                raise InDoubt(f"{error.message}; the request may have arrived") from None
            raise
        data = answer.data(ctx)
        what = f"{call.shown} returned {answer.code}"
        if answer.code in params.unchanged_codes:
            return Outcome(changed=False, data=data)
        if answer.code in params.delayed_codes and not (params.ok_codes and answer.code in params.ok_codes):
            raise Delayed(what, after=_after(answer))
        if _is_successful(answer.code, params.ok_codes):
            return data
        if answer.code in params.blocked_codes:
            raise Blocked(what, service=re.sub(r"^https?://(?:[^/@]*@)?([^/?]+).*$", r"\1", params.url))
        if answer.code in params.retried_codes:
            raise Transient(what, data=data)
        raise Unsuccessful(what, data=data)

    def undo(
        self, ctx: Context, params: HttpRequestParams, before: dict[str, Any], data: dict[str, Any] | None
    ) -> Outcome:
        if params.undo is None:
            what = f"{params.method} {addresses.shown(params.url)} has no undo"
            raise OperationError(what, remedy="give the request an undo")
        call = self._call(ctx, params, params.undo)
        answer = send(ctx, call)
        codes = params.undo.ok_codes
        if _is_successful(answer.code, codes) or (codes is None and answer.code in _UNDONE_CODES):
            return Outcome(changed=answer.code not in _UNDONE_CODES)
        kind = Transient if answer.code in [*params.retried_codes, *params.blocked_codes] else OperationError
        raise kind(f"{call.shown} returned {answer.code}")

    @staticmethod
    def _call(ctx: Context, params: HttpRequestParams, undo: Undoing | None = None) -> Call:
        of = undo or params
        key = f"{ctx.idempotency_key}.undo" if undo else ctx.idempotency_key
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
    """The seconds in the response's Retry-After; None if missing or not a number."""
    seconds = answer.headers.get("retry-after", "")
    return min(float(seconds[:9]), _LONGEST_WAIT) if seconds.isdecimal() else None

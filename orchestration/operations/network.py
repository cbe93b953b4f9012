"""Names, reachability and calls to services, from the worker's host or from inside a container."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from longshore.orchestration.language.durations import Duration
from longshore.orchestration.operations.base import (
    READ_ONLY,
    About,
    Kind,
    Operation,
    Params,
    Result,
    Undo,
    register,
)

_URL = re.compile(r"https?://[^\s/]+.*")
_Code = Annotated[int, Field(ge=100, le=599)]


def _url(value: str) -> str:
    if "{{" not in value and not _URL.fullmatch(value):
        raise ValueError(f"{value!r} is not a URL that begins with http:// or https://")
    return value


Url = Annotated[str, AfterValidator(_url)]


class DnsParams(Params):
    """There is nothing to say."""


class DnsResult(Result):
    """As /etc/resolv.conf has them, in its order."""

    servers: list[str] = []
    search_domains: list[str] = []
    path: str = ""


class DnsUpdateParams(Params):
    """Name servers and search domains in /etc/resolv.conf; a list that is left out stays as it is.

    Its other lines stay too. Where a program of the machine's writes that file (it is a link then), this is refused.
    """

    servers: list[str] | None = Field(None, description="Addresses, the first is asked first")
    search_domains: list[str] | None = None

    @field_validator("servers")
    @classmethod
    def _addresses(cls, value: list[str] | None) -> list[str] | None:
        from ipaddress import ip_address  # noqa: PLC0415 - only for a check

        for text in value or []:
            if "{{" not in text:
                try:
                    ip_address(text.partition("%")[0])
                except ValueError:
                    raise ValueError(f"{text!r} is not an IP address") from None
        return value

    @model_validator(mode="after")
    def _something(self) -> DnsUpdateParams:
        if not self.servers and not self.search_domains:
            raise ValueError("give servers or search_domains")
        return self


class PingParams(Params):
    """By the machine's own `ping`."""

    address: Annotated[str, Field(min_length=1, pattern=r"^[^-]", description="A name or an address")]
    count: Annotated[int, Field(ge=1, le=100)] = Field(3, description="How many packets")
    timeout: Annotated[Duration, Field(gt=0)] = Field(5.0, description="For all of them")
    max_loss: Annotated[float, Field(ge=0, le=100)] = Field(
        99.9, description="Percent that may be lost; more is a failure. 100: it is never one"
    )


class PingResult(Result):
    """Loss in percent, times in milliseconds, null where nothing came back."""

    packets_sent: int
    packets_received: int
    packet_loss: float
    min_rtt_ms: float | None = None
    avg_rtt_ms: float | None = None
    max_rtt_ms: float | None = None


class HttpGetParams(Params):
    """Asked again every `interval` until the answer is as expected, for `deadline`; then it is a failure."""

    url: Url
    headers: dict[str, str] = {}
    ok_codes: Annotated[list[_Code], Field(min_length=1)] | None = Field(None, description="200 to 299 if left out")
    contains: str | None = Field(None, description="Text that must be in the answer")
    timeout: Annotated[Duration, Field(gt=0)] = Field(5.0, description="For one answer")
    deadline: Duration = Field(0.0, description="For an answer as expected; 0: asked once")
    interval: Annotated[Duration, Field(gt=0)] = Field(1.0, description="Between two tries")
    verify: bool = Field(default=True, description="Whether a certificate must be good")


class HttpResult(Result):
    """`body` up to 64 KiB, its beginning; `json` is there where the answer says that it is some."""

    code: int
    body: str = ""
    headers: dict[str, str] = {}
    duration_ms: int = 0
    truncated: bool = False


class Undoing(Params):
    """The call that takes the step back; `{key}` in it is the step's idempotency key."""

    method: Literal["POST", "PUT", "PATCH", "DELETE"] = "POST"
    url: Url
    headers: dict[str, str] = {}
    payload: Any = Field(None, description="Sent as JSON")
    body: str | None = None
    ok_codes: Annotated[list[_Code], Field(min_length=1)] | None = Field(
        None, description="200 to 299, 404 and 410 if left out: what is not there is taken back"
    )


class HttpRequestParams(Params):
    """A call to a service. GET and HEAD only look; any other method may change something.

    Each attempt sends the same idempotency key, so that a service that knows such keys does it once.
    """

    method: Literal["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"] = "POST"
    url: Url
    headers: dict[str, str] = {}
    payload: Any = Field(None, description="Sent as JSON")
    body: str | None = Field(None, description="Sent as it is")
    ok_codes: Annotated[list[_Code], Field(min_length=1)] | None = Field(None, description="200 to 299 if left out")
    unchanged_codes: list[_Code] = Field([304, 208], description="Well, and nothing was changed by this")
    delayed_codes: list[_Code] = Field([202], description="Not known yet: it is asked again, with the same key")
    blocked_codes: list[_Code] = Field([503], description="The service is down: the run waits until it is back")
    retried_codes: list[_Code] = Field([408, 425, 429, 500, 502, 504], description="Pass by waiting")
    idempotency_header: str | None = Field("Idempotency-Key", description="null: none is sent")
    idempotent: bool | None = Field(
        None, description="Whether it may be sent again after a lost answer; left out: by method, PUT and DELETE may"
    )
    timeout: Annotated[Duration, Field(gt=0)] = Field(30.0, description="For one answer")
    verify: bool = Field(default=True, description="Whether a certificate must be good")
    undo: Undoing | None = Field(None, description="The call that takes it back")

    @model_validator(mode="after")
    def _one_body(self) -> HttpRequestParams:
        if self.payload is not None and self.body is not None:
            raise ValueError("give one of payload and body")
        if self.undo is not None and self.method in {"GET", "HEAD"}:
            raise ValueError(f"{self.method} changes nothing, so there is nothing to undo")
        return self


def _network(name: str, params: type[Params], result: type[Result], summary: str, **more: Any) -> Operation:
    said: dict[str, Any] = {"kind": Kind.READ_ONLY, "undo": Undo.NONE, "about": READ_ONLY, "inside": True} | more
    return register(
        Operation(name=f"network.{name}", params=params, result=result, queue="network", summary=summary, **said)
    )


def _only_looks(params: dict[str, Any]) -> bool:
    return params.get("method") in {"GET", "HEAD"}


def _repeatable(params: dict[str, Any]) -> bool:
    said = params.get("idempotent")
    return bool(said) if said is not None else params.get("method") in {"GET", "HEAD", "PUT", "DELETE"}


DNS_GET = _network("dns.get", DnsParams, DnsResult, "The name servers that are asked")
DNS_UPDATE = _network(
    "dns.update",
    DnsUpdateParams,
    DnsResult,
    "Set name servers and search domains",
    kind=Kind.CONVERGES,
    undo=Undo.FULL,
    about=About(
        changed="one of the lists was another",
        undo="brings the file's bytes back; refuses where somebody else has changed it since",
        duplicate="finds it as wanted",
        retried="a disk error; nothing else",
    ),
)
PING = _network("ping.do", PingParams, PingResult, "Whether a machine answers, and how fast")
HTTP_GET = _network(
    "http.get",
    HttpGetParams,
    HttpResult,
    "Whether a service answers as it should",
    secrets=frozenset({"headers"}),
    about=About(
        changed="never: it only looks",
        undo="nothing to take back",
        duplicate="asks again",
        dry_run="says what would be asked",
        retried="inside the step, until its deadline",
    ),
)
HTTP_REQUEST = _network(
    "http.request",
    HttpRequestParams,
    HttpResult,
    "Call a service",
    kind=Kind.ACTS,
    undo=Undo.FULL,
    is_read_only_command=_only_looks,
    repeatable=_repeatable,
    undoable=lambda params: bool(params.get("undo")),
    secrets=frozenset({"headers", "payload", "body", "undo"}),
    about=About(
        changed="the method may change something, and the answer was none of unchanged_codes",
        undo="the call that undo says; without one there is nothing that takes it back",
        duplicate="each attempt sends the same idempotency key; the service has to know it",
        dry_run="says what would be called",
        retried="no connection, and retried_codes; after a lost answer only what may be sent again, else it is unknown",
    ),
)

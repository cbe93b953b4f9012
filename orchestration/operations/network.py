"""DNS, reachability and HTTP calls, from the worker's host or from inside a container."""

from __future__ import annotations

import re
from dataclasses import replace
from ipaddress import ip_address
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
        raise ValueError(f"{value!r} is not an http:// or https:// URL")
    return value


Url = Annotated[str, AfterValidator(_url)]


class DnsParams(Params):
    """The step reads /etc/resolv.conf."""


class DnsResult(Result):
    """The lists have the order of the file. `path` is /etc/resolv.conf."""

    servers: list[str] = []
    search_domains: list[str] = []
    path: str = ""


class DnsUpdateResult(DnsResult):
    """The lists have the order of the file. `path` is /etc/resolv.conf, and `sha256` the digest of the file."""

    sha256: str = ""


class DnsUpdateParams(Params):
    """The step writes /etc/resolv.conf. At least one list is required. An omitted list and all other lines stay
    unchanged.
    """

    servers: list[str] | None = Field(None, description="Addresses, in query order")
    search_domains: list[str] | None = Field(None, description="Search domains")

    @field_validator("servers")
    @classmethod
    def _addresses(cls, value: list[str] | None) -> list[str] | None:
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
    """The step runs the program `ping`."""

    address: Annotated[str, Field(min_length=1, pattern=r"^[^-]", description="A name or an address")]
    count: Annotated[int, Field(ge=1, le=100)] = Field(3, description="Number of packets")
    timeout: Annotated[Duration, Field(gt=0)] = Field(5.0, description="Total time for all packets")
    max_loss: Annotated[float, Field(ge=0, le=100)] = Field(99.9, description="Tolerated packet loss in percent")


class PingResult(Result):
    """`packet_loss` is in percent. Times are in milliseconds, and null without a reply."""

    packets_sent: int
    packets_received: int
    packet_loss: float
    min_rtt_ms: float | None = None
    avg_rtt_ms: float | None = None
    max_rtt_ms: float | None = None


class HttpGetParams(Params):
    """The step sends GET requests until a response has a status in `ok_codes` and contains the text `contains`.

    Inside a container, the step needs curl or wget.
    """

    url: Url = Field(description="http:// or https://")
    headers: dict[str, str] = Field({}, description="Headers of the request")
    ok_codes: Annotated[list[_Code], Field(min_length=1)] | None = Field(
        None, description="Expected status codes; by default 200 to 299"
    )
    contains: str | None = Field(None, description="Text that the first 64 KiB of the response must contain")
    timeout: Annotated[Duration, Field(gt=0)] = Field(5.0, description="Timeout of one request")
    deadline: Duration = Field(0.0, description="Time in which the step repeats the request; 0: one request")
    interval: Annotated[Duration, Field(gt=0)] = Field(1.0, description="Delay between requests")
    verify: bool = Field(default=True, description="Verify TLS certificates")


class HttpResult(Result):
    """`body` has the first 64 KiB; if the body was longer, `truncated` is true. For a JSON response, `json` is the
    parsed body.
    """

    code: int
    body: str = ""
    headers: dict[str, str] = {}
    duration_ms: int = 0
    truncated: bool = False
    parsed: Any = Field(None, alias="json")


class Undoing(Params):
    """The compensating request; `{key}` is replaced by the step's idempotency key."""

    method: Literal["POST", "PUT", "PATCH", "DELETE"] = "POST"
    url: Url
    headers: dict[str, str] = {}
    payload: Any = Field(None, description="Sent as JSON")
    body: str | None = None
    ok_codes: Annotated[list[_Code], Field(min_length=1)] | None = Field(
        None, description="By default 200 to 299, 404 and 410, as a missing resource counts as undone"
    )


class HttpRequestParams(Params):
    """GET and HEAD only read. With any other method, each attempt sends the same idempotency key. A service that
    supports such keys then acts only once.

    Inside a container, the step needs curl or wget.
    """

    method: Literal["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"] = Field("POST", description="Method")
    url: Url = Field(description="http:// or https://")
    headers: dict[str, str] = Field({}, description="Headers of the request")
    payload: Any = Field(None, description="Sent as JSON")
    body: str | None = Field(None, description="Sent as it is")
    ok_codes: Annotated[list[_Code], Field(min_length=1)] | None = Field(
        None, description="Success with a change; by default 200 to 299"
    )
    unchanged_codes: list[_Code] = Field([304, 208], description="Success without a change")
    delayed_codes: list[_Code] = Field(
        [202], description="The outcome is not known yet: the step sends the request again, until its time limit"
    )
    blocked_codes: list[_Code] = Field(
        [503], description="The service is down: the run is suspended until the breaker of the service closes"
    )
    retried_codes: list[_Code] = Field([408, 425, 429, 500, 502, 504], description="Temporary errors, retried")
    idempotency_header: str | None = Field("Idempotency-Key", description="Header for the idempotency key; null: none")
    idempotent: bool | None = Field(
        None, description="Send again after a lost response; by default true, except for POST and PATCH"
    )
    timeout: Annotated[Duration, Field(gt=0)] = Field(30.0, description="Timeout of one request")
    verify: bool = Field(default=True, description="Verify TLS certificates")
    undo: Undoing | None = Field(None, description="The compensating request; in its URL, {key} is the idempotency key")

    @model_validator(mode="after")
    def _one_body(self) -> HttpRequestParams:
        if self.payload is not None and self.body is not None:
            raise ValueError("give one of payload and body")
        if self.undo is not None and self.method in {"GET", "HEAD"}:
            raise ValueError(f"{self.method} changes nothing, so there is nothing to undo: remove undo")
        return self


def _network(name: str, params: type[Params], result: type[Result], summary: str, **more: Any) -> Operation:
    said: dict[str, Any] = {"kind": Kind.READ_ONLY, "undo": Undo.NONE, "about": READ_ONLY, "inside": True} | more
    return register(name=f"network.{name}", params=params, result=result, queue="network", summary=summary, **said)


def _only_looks(params: dict[str, Any]) -> bool:
    return params.get("method") in {"GET", "HEAD"}


def _repeatable(params: dict[str, Any]) -> bool:
    said = params.get("idempotent")
    return bool(said) if said is not None else params.get("method") in {"GET", "HEAD", "PUT", "DELETE"}


DNS_GET = _network("dns.get", DnsParams, DnsResult, "Get the name servers and search domains")
DNS_UPDATE = _network(
    "dns.update",
    DnsUpdateParams,
    DnsUpdateResult,
    "Set name servers and search domains",
    kind=Kind.CONVERGES,
    undo=Undo.FULL,
    about=About(
        changed="one of the lists differed",
        undo="restores the content of the file; fails if the file was changed since",
        duplicate="finds the file written, or writes it",
        fails="if the file is a symbolic link, because another program then writes the file",
    ),
)
PING = _network(
    "ping.do",
    PingParams,
    PingResult,
    "Ping an address",
    about=replace(READ_ONLY, fails="if the packet loss exceeds `max_loss`, or the name cannot be resolved"),
)
HTTP_GET = _network(
    "http.get",
    HttpGetParams,
    HttpResult,
    "Check that a service responds as expected",
    secrets=frozenset({"headers"}),
    about=replace(
        READ_ONLY,
        duplicate="sends the request again",
        fails="if no response is as expected within `deadline`; at once if the TLS certificate is invalid",
        dry_run="shows the request",
    ),
)
HTTP_REQUEST = _network(
    "http.request",
    HttpRequestParams,
    HttpResult,
    "Send an HTTP request to a service",
    kind=Kind.ACTS,
    undo=Undo.FULL,
    is_read_only_command=_only_looks,
    repeatable=_repeatable,
    undoable=lambda params: bool(params.get("undo")),
    secrets=frozenset({"headers", "payload", "body", "undo"}),
    about=About(
        changed="the method is not GET or HEAD, and the status is not in `unchanged_codes`",
        undo="with the parameter `undo`, sends this request (by default, 404 and 410 count as success, too); otherwise "
        "none",
        duplicate="after a lost attempt, sends the request again only with `idempotent`; otherwise, the step is "
        "unknown",
        fails="if the status is in none of the lists `…_codes`. After a lost response without `idempotent`, the step "
        "is unknown",
        dry_run="shows the request",
        retried="a failed connection, a status in `retried_codes`, and with `idempotent` a lost response",
    ),
)

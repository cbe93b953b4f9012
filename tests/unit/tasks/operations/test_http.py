"""`network.http.*` and `network.dns.*`, against a real server on loopback."""

from __future__ import annotations

import json
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests
from pydantic import ValidationError
from urllib3.exceptions import ConnectTimeoutError, MaxRetryError, NewConnectionError, ProtocolError

from longshore.orchestration.errors import (
    Blocked,
    Delayed,
    InDoubt,
    NotAllowed,
    OperationError,
    Preflight,
    StepCancelled,
    Transient,
    Unsuccessful,
)
from longshore.orchestration.operations import find
from longshore.orchestration.settings import get_settings
from longshore.tasks.host import http_session
from longshore.tasks.host.machine.port import Program
from longshore.tasks.host.machine.process import Completed
from longshore.tasks.operations import http, network
from tests.unit.tasks.operations.fake_step import Doing

assert http


class Service:
    """A server with scripted answers, which records its requests."""

    def __init__(self) -> None:
        self.codes: list[int] = []
        self.headers: dict[str, str] = {}
        self.body = b"well"
        self.slow = 0.0
        self.asked: list[dict[str, Any]] = []
        service = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                given = {"method": self.command, "path": self.path, "headers": dict(self.headers)}
                service.asked.append(given | {"body": self.rfile.read(length)})
                time.sleep(service.slow)
                code = service.codes.pop(0) if len(service.codes) > 1 else (service.codes or [200])[0]
                self.send_response(code)
                for name, value in service.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(service.body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(service.body)

            do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = answer  # noqa: N815 - its base class says so

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - its base class says so
                return

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def service() -> Iterator[Service]:
    service = Service()
    thread = threading.Thread(target=service.server.serve_forever)
    thread.start()
    yield service
    service.server.shutdown()
    service.server.server_close()
    thread.join()


def request(service: Service, **given: Any) -> Doing:
    return Doing("network.http.request", url=f"{service.url}/charge", **given)


# --- health checks ------------------------------------------------------------------------------------


def test_expected_answer_is_healthy(service: Service) -> None:
    service.headers = {"Content-Type": "application/json"}
    service.body = b'{"ok": true}'
    get = Doing("network.http.get", url=f"{service.url}/health?x=1", headers={"X-A": "b"}, contains='"ok"')
    assert get.predict().action == f"would request GET {service.url}/health"
    outcome = get.act()
    assert (outcome.changed, outcome.data["code"], outcome.data["json"]) == (False, 200, {"ok": True})
    assert service.asked[0]["path"] == "/health?x=1"
    assert service.asked[0]["headers"]["X-A"] == "b"


def test_deeply_nested_json_answer_stays_text(service: Service) -> None:
    service.headers = {"Content-Type": "application/json"}
    service.body = b"[" * 5000 + b"]" * 5000
    outcome = Doing("network.http.get", url=f"{service.url}/").act()
    assert "json" not in outcome.data
    assert outcome.data["body"].startswith("[[[")


def test_health_check_retries_until_its_deadline(service: Service) -> None:
    service.codes = [503, 503, 200]
    waited = Doing("network.http.get", url=service.url, deadline="5s", interval="50ms")
    assert waited.act().data["code"] == 200
    service.codes = [503]
    with pytest.raises(Unsuccessful, match="returned 503"):
        Doing("network.http.get", url=service.url).act()
    with pytest.raises(Unsuccessful, match=r"polled for 0\.3 s"):
        Doing("network.http.get", url=service.url, deadline="300ms", interval="50ms").act()
    service.codes = [200]
    with pytest.raises(Unsuccessful, match="without 'ready'"):
        Doing("network.http.get", url=service.url, contains="ready").act()
    assert Doing("network.http.get", url=service.url, ok_codes=[200, 404]).act().data["code"] == 200


def test_refused_connection_is_a_failure() -> None:
    with pytest.raises(Unsuccessful, match="refused"):
        Doing("network.http.get", url="http://127.0.0.1:1/").act()
    with pytest.raises(ValidationError, match="is not an http"):
        find("network.http.get").params.model_validate({"url": "ftp://x"})


def test_cancelled_call_ends_at_once(service: Service) -> None:
    service.slow = 5
    stop_at = time.monotonic() + 0.5
    get = Doing("network.http.get", {"asked_to_stop": lambda: time.monotonic() > stop_at}, url=service.url, timeout=30)
    with pytest.raises(StepCancelled):
        get.act()
    assert time.monotonic() - stop_at < 1.5


# --- calls --------------------------------------------------------------------------------------------


def test_call_sends_idempotency_key_and_payload(service: Service) -> None:
    call = request(service, payload={"amount": 3}, headers={"Authorization": "Bearer x"})
    assert call.act().changed
    call.act()
    first, second = service.asked
    assert (first["method"], json.loads(first["body"])) == ("POST", {"amount": 3})
    assert first["headers"]["Idempotency-Key"] == second["headers"]["Idempotency-Key"] == "r1.step"
    assert first["headers"]["Content-Type"] == "application/json"
    request(service, method="GET").act()
    assert "Idempotency-Key" not in service.asked[-1]["headers"]
    request(service, idempotency_header="X-Key", body="raw").act()
    assert (service.asked[-1]["headers"]["X-Key"], service.asked[-1]["body"]) == ("r1.step", b"raw")


@pytest.mark.parametrize(
    ("code", "error"),
    [(202, Delayed), (503, Blocked), (429, Transient), (500, Transient), (400, Unsuccessful), (301, Unsuccessful)],
)
def test_status_codes_map_to_outcomes(service: Service, code: int, error: type[OperationError]) -> None:
    service.codes, service.headers = [code], {"Retry-After": "7"}
    with pytest.raises(error, match=f"returned {code}") as raised:
        request(service).act()
    assert type(raised.value) is error
    if isinstance(raised.value, Delayed):
        assert raised.value.after == 7
    if isinstance(raised.value, Blocked):
        assert raised.value.service == service.url.removeprefix("http://")


def test_status_code_mapping_can_be_overridden(service: Service) -> None:
    service.codes = [202]
    assert request(service, ok_codes=[202]).act().changed
    service.codes = [208]
    assert not request(service).act().changed
    service.codes = [200]
    assert not request(service, method="GET").act().changed


def test_lost_answer_is_unknown_unless_idempotent(service: Service) -> None:
    service.slow = 3
    for given, error in (
        ({}, InDoubt),
        ({"idempotent": True}, Transient),
        ({"method": "PUT"}, Transient),
        ({"method": "PUT", "idempotent": False}, InDoubt),
    ):
        with pytest.raises(error):
            request(service, timeout=0.3, **given).act()
    unknown = Doing("network.http.request", url="http://127.0.0.1:1/")
    with pytest.raises(Transient, match="refused"):
        unknown.act()


@pytest.mark.parametrize(
    ("raised", "error"),
    [
        (MaxRetryError(None, "/", NewConnectionError(None, "words")), Transient),  # type: ignore[arg-type]
        (MaxRetryError(None, "/", ConnectTimeoutError(None, "words")), Transient),  # type: ignore[arg-type]
        (ProtocolError("words", ConnectionRefusedError()), Transient),
        (ProtocolError("NewConnectionError to /ConnectTimeout: [Errno 111]", ConnectionResetError()), InDoubt),
    ],
)
def test_error_type_decides_whether_a_call_was_sent(
    raised: Exception, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise requests.exceptions.ConnectionError(raised)

    monkeypatch.setattr(requests.Session, "request", fail)

    with pytest.raises(error):
        Doing("network.http.request", url="http://127.0.0.1:1/", method="POST", idempotent=False).act()


@pytest.mark.parametrize(("idempotent", "error"), [(False, InDoubt), (True, Transient)])
def test_call_from_a_container_may_have_been_sent_if_the_engine_fails(
    idempotent: bool, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Machine:
        def exists(self, _path: str) -> bool:
            return True

        def run(self, _program: Program) -> Completed:
            raise Transient("the Docker engine closed the stream")

    monkeypatch.setattr(http, "machine_of", lambda _ctx: Machine())
    context = {"container": "web"}

    with pytest.raises(error, match="closed the stream"):
        Doing("network.http.request", context, url="http://127.0.0.1:1/", method="POST", idempotent=idempotent).act()


def test_undo_sends_the_given_call(service: Service) -> None:
    undo = {"method": "DELETE", "url": f"{service.url}/charges/{{key}}"}
    call = request(service, undo=undo)
    assert call.predict().undo == f"DELETE {service.url}/charges/{{key}}"
    call.act()
    assert call.undo().changed
    assert service.asked[-1]["path"] == "/charges/r1.step"
    assert service.asked[-1]["headers"]["Idempotency-Key"] == "r1.step.undo"
    service.codes = [404]
    assert not call.undo().changed, "a call answered with 404 was not counted as undone"
    service.codes = [503]
    with pytest.raises(Transient):
        call.undo()
    service.codes = [400]
    with pytest.raises(OperationError, match="returned 400"):
        call.undo()
    with pytest.raises(OperationError):
        request(service).undo()
    operation = find("network.http.request")
    assert operation.undoable({"undo": undo})
    assert not operation.undoable({})


def test_invalid_calls_are_refused() -> None:
    for given, why in (
        ({"payload": 1, "body": "x"}, "one of payload and body"),
        ({"method": "GET", "undo": {"url": "http://x"}}, "nothing to undo"),
    ):
        with pytest.raises(ValidationError, match=why):
            find("network.http.request").params.model_validate({"url": "http://x"} | given)


def test_large_answer_is_truncated(service: Service) -> None:
    service.body = b"x" * 200_000
    data = request(service).act().data
    assert (len(data["body"]), data["truncated"]) == (64 * 1024, True)


# --- name servers -------------------------------------------------------------------------------------


@pytest.fixture
def resolv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "resolv.conf"
    path.write_text("# by hand\noptions ndots:2\nnameserver 10.0.0.1\nsearch old.lan\n")
    monkeypatch.setattr(network, "_PATH", str(path))
    return path


def test_name_server_update_keeps_other_lines(resolv: Path) -> None:
    was = resolv.read_bytes()
    assert Doing("network.dns.get").act().data["servers"] == ["10.0.0.1"]
    update = Doing("network.dns.update", servers=["10.0.0.2", "10.0.0.3"])
    assert update.predict().changed is True
    assert resolv.read_bytes() == was
    assert update.act().changed
    assert resolv.read_text() == (
        "# by hand\noptions ndots:2\nsearch old.lan\nnameserver 10.0.0.2\nnameserver 10.0.0.3\n"
    )
    again = Doing("network.dns.update", {"run_id": "r2"}, servers=["10.0.0.2", "10.0.0.3"])
    assert again.predict().changed is False
    assert not again.act().changed
    assert update.undo().changed
    assert resolv.read_bytes() == was
    assert not update.undo().changed


def test_undo_refuses_a_resolv_conf_changed_since(resolv: Path) -> None:
    update = Doing("network.dns.update", servers=["10.0.0.2"])
    update.act()
    resolv.write_text("nameserver 10.7.7.7\n")
    with pytest.raises(OperationError, match="outside of this run"):
        update.undo()


def test_generated_resolv_conf_is_refused(resolv: Path, tmp_path: Path) -> None:
    resolv.rename(tmp_path / "real")
    resolv.symlink_to(tmp_path / "real")
    with pytest.raises(Preflight, match="is a link"):
        Doing("network.dns.update", servers=["10.0.0.2"]).act()


@pytest.mark.parametrize("given", [{}, {"servers": ["not-an-address"]}, {"servers": [], "search_domains": []}])
def test_empty_dns_update_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        find("network.dns.update").params.model_validate(given)


def test_ping_reports_packet_counts() -> None:
    ping = Doing("network.ping.do", address="127.0.0.1", count=2)
    if shutil.which("ping") is None:
        with pytest.raises(Preflight, match="has no ping"):
            ping.act()
        return
    data = ping.act().data
    assert (data["packets_sent"], data["packets_received"], data["packet_loss"]) == (2, 2, 0)
    assert data["avg_rtt_ms"] >= 0
    with pytest.raises(OperationError):
        Doing("network.ping.do", address="no-such-host.invalid", count=1, timeout=2).act()


def test_call_with_a_secret_header_follows_no_redirect(service: Service) -> None:
    other = Service()
    thread = threading.Thread(target=other.server.serve_forever)
    thread.start()
    try:
        service.codes, service.headers = [302], {"Location": f"{other.url}/there"}
        context = {"redact": lambda text: text.replace("correct-horse", "***")}
        with pytest.raises(Unsuccessful, match="returned 302"):
            Doing("network.http.get", context, url=service.url, headers={"X-Key": "correct-horse"}).act()
        assert other.asked == []
        assert Doing("network.http.get", url=service.url, headers={"X-Key": "open"}).act().data["code"] == 200
    finally:
        other.server.shutdown()
        other.server.server_close()
        thread.join()


def test_unsent_call_has_no_effect(service: Service) -> None:
    for headers in ({"X-A": "\u20ac"}, {"X-A": "a\r\nX-B: c"}):
        with pytest.raises(Preflight, match="contains invalid characters"):
            request(service, headers=headers).act()
    with pytest.raises((Preflight, Transient)):
        Doing("network.http.request", url=f"http://{'a' * 70}.invalid/").act()
    assert service.asked == []


def test_retry_after_is_capped_at_a_day(service: Service) -> None:
    service.codes, service.headers = [202], {"Retry-After": "9" * 400}
    with pytest.raises(Delayed) as error:
        request(service).act()
    assert error.value.after == 86_400


def test_undo_without_outcome_keeps_name_servers_changed_since(resolv: Path) -> None:
    update = Doing("network.dns.update", servers=["10.0.0.2"])
    assert update.before
    resolv.write_text("nameserver 10.7.7.7\n")
    with pytest.raises(OperationError, match="outside of this run"):
        update.undo(with_data=False)


def test_http_calls_reach_allowed_hosts_only(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGSHORE_ALLOWED_HOSTS", "*.lan")
    get_settings.cache_clear()
    with pytest.raises(NotAllowed, match="ALLOWED_HOSTS"):
        Doing("network.http.get", url=f"{service.url}/x").act()
    assert service.asked == []
    monkeypatch.setenv("LONGSHORE_ALLOWED_HOSTS", "127.0.0.1")
    get_settings.cache_clear()
    service.codes, service.headers = [302, 200], {"Location": f"{service.url}/elsewhere"}
    Doing("network.http.get", url=f"{service.url}/x").act()
    assert [one["path"] for one in service.asked] == ["/x", "/elsewhere"]
    service.asked.clear()
    service.codes, service.headers = [302], {"Location": service.url.replace("127.0.0.1", "127.0.0.2") + "/elsewhere"}
    with pytest.raises(NotAllowed, match="ALLOWED_HOSTS"):
        Doing("network.http.get", url=f"{service.url}/x").act()
    assert [one["path"] for one in service.asked] == ["/x"]
    get_settings.cache_clear()


# --- addresses ----------------------------------------------------------------------------------------


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Let DNS answer each query for *.test with the next address; return the queries."""

    def make(*addresses: str) -> list[str]:
        real, asked, left = socket.getaddrinfo, list[str](), list(addresses)

        def answer(name: Any, port: Any, *args: Any, **more: Any) -> Any:
            if not str(name).endswith(".test"):
                return real(name, port, *args, **more)
            asked.append(str(name))
            return real(left.pop(0) if len(left) > 1 else left[0], port, *args, **more)

        monkeypatch.setattr(socket, "getaddrinfo", answer)
        return asked

    return make


def admit(monkeypatch: pytest.MonkeyPatch, hosts: str) -> None:
    monkeypatch.setenv("LONGSHORE_ALLOWED_HOSTS", hosts)
    get_settings.cache_clear()


def test_call_connects_to_the_checked_address(
    service: Service, monkeypatch: pytest.MonkeyPatch, answers: Callable[..., list[str]]
) -> None:
    # The name server has another answer for a second query, which must not happen.
    asked = answers("127.0.0.1", "127.0.0.9")
    admit(monkeypatch, "service.test,127.0.0.1")
    port = service.server.server_port
    Doing("network.http.get", url=f"http://SERVICE.test.:{port}/x").act()
    assert asked == ["service.test"]
    assert service.asked[0]["headers"]["Host"] == f"service.test:{port}"


@pytest.mark.parametrize("inside", ["127.0.0.1", "::ffff:127.0.0.1", "0.0.0.0"])  # noqa: S104 - refused
def test_dns_and_redirects_cannot_reach_internal_addresses(
    inside: str, service: Service, monkeypatch: pytest.MonkeyPatch, answers: Callable[..., list[str]]
) -> None:
    port = service.server.server_port
    answers(inside)
    admit(monkeypatch, "*.test")
    with pytest.raises(NotAllowed, match="inside its network"):
        Doing("network.http.request", method="POST", url=f"http://service.test:{port}/x", body="x").act()
    with pytest.raises(NotAllowed, match="inside its network"):
        Doing("file.deploy.execute", path="/tmp/never", object=f"http://service.test:{port}/x").act()
    assert service.asked == []
    # from an allowed service to a forbidden one: by name, by address, and by another spelling of the address
    admit(monkeypatch, "*.test,127.0.0.1")
    for elsewhere in ("http://127.0.0.2:1/x", "http://localhost:1/", "http://2130706433:1/", "http://[::1]:1/",
                      r"http://127.0.0.3:1\@service.test/", "//127.0.0.2:1/x", "file:///etc/passwd"):  # fmt: skip
        service.codes, service.headers, service.asked[:] = [302], {"Location": elsewhere}, []
        with pytest.raises(OperationError) as refused:
            Doing("network.http.get", url=f"http://127.0.0.1:{port}/x").act()
        assert "returned" not in str(refused.value)
        assert [one["path"] for one in service.asked] == ["/x"]


def test_check_and_call_parse_urls_alike(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    admit(monkeypatch, "registry.example")
    port = service.server.server_port
    for url in (rf"http://127.0.0.1:{port}\@registry.example/x", f"http://registry.example@127.0.0.1:{port}/",
                f"http://127.0.0.1:{port}#@registry.example/", f"http://127.0.0.1:{port}?@registry.example/",
                f"http://2130706433:{port}/", f"http://0x7f.1:{port}/", f"http://127.1:{port}/"):  # fmt: skip
        with pytest.raises(Preflight):
            Doing("network.http.get", url=url).act()
    assert service.asked == []


def test_certificate_is_verified_for_the_host_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answers: Callable[..., list[str]]
) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=service.test", "-addext", "subjectAltName=DNS:service.test", "-keyout", str(key), "-out",
         str(certificate)], check=True, capture_output=True,
    )  # fmt: skip
    answers("127.0.0.1")
    made = Service()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    made.server.socket = context.wrap_socket(made.server.socket, server_side=True)
    thread = threading.Thread(target=made.server.serve_forever)
    thread.start()
    try:
        port = made.server.server_port
        with http_session.session() as web:
            found = web.get(f"https://service.test:{port}/x", verify=str(certificate), timeout=10)
            assert found.status_code == 200
            for other in ("other.test", "127.0.0.1"):
                with pytest.raises(requests.exceptions.SSLError):
                    web.get(f"https://{other}:{port}/x", verify=str(certificate), timeout=10)
        assert len(made.asked) == 1
    finally:
        made.server.shutdown()
        made.server.server_close()
        thread.join()


def test_object_may_be_downloaded_from_a_web_server(service: Service, tmp_path: Path) -> None:
    path, url = tmp_path / "file", f"{service.url}/app.conf"
    service.body = b"\x00from the web"
    Doing("file.deploy.execute", path=str(path), object=url).act()
    assert path.read_bytes() == b"\x00from the web"
    for code, kind, why in ((404, Preflight, "404"), (403, Preflight, "403"), (503, Transient, "503")):
        service.codes = [code]
        with pytest.raises(kind, match=why):
            Doing("file.deploy.execute", path=str(path), object=url).act()
    with pytest.raises(Transient):
        Doing("file.deploy.execute", path=str(path), object="http://127.0.0.1:1/x").act()

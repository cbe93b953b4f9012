"""Hosts that a worker may reach: unambiguous URLs, and the addresses of names."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from urllib3.util import parse_url

from longshore.orchestration.errors import NotAllowed, Preflight
from longshore.orchestration.settings import get_settings
from longshore.tasks.host import addresses

Resolves = Callable[..., None]


@pytest.fixture
def hosts(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    def make(text: str) -> None:
        monkeypatch.setenv("LONGSHORE_ALLOWED_HOSTS", text)
        get_settings.cache_clear()

    return make


@pytest.fixture
def resolves(monkeypatch: pytest.MonkeyPatch) -> Resolves:
    """Set the DNS answer for any name."""

    def make(*found: str) -> None:
        def answer(_name: str, port: int | None, **_more: Any) -> list[Any]:
            return [(0, 0, 0, "", (address, port)) for address in found]

        monkeypatch.setattr(socket, "getaddrinfo", answer)

    return make


@pytest.mark.parametrize(
    "url",
    [
        r"http://127.0.0.1:80\@registry.example/x", r"http://registry.example\@127.0.0.1/", "http://a\\b/",
        "http://127.0.0.1:80\t@registry.example/", "http://regi\nstry.example/", "http://registry.example /",
        "http://a@b@registry.example/", "http://a:b:80/", "http://a:port/", "http://a:999999/",
        "http://2130706433/", "http://0x7f000001/", "http://0x7f.1/", "http://127.1/", "http://0177.0.0.1/",
        "http://127.0.0.01/", "http://registry.example.0x1/", "http://1/", "http://127.0.0.1../", "http://..",
        "http://", "http:///x", "http://@/", "http://:80/", "http://?x", "http://[::1/", "http://[::1%25lo]/",
        "http://[v1.x]/", "http://%31%32%37.0.0.1/", "http://registry.example%00.lan/", "http://-a/", "http://a..b/",
        "http://a_\u2044b/",
        "http://\uff11\uff12\uff17.0.0.1/",
        "ftp://registry.example/", "file:///etc/passwd", "//registry.example/", "registry.example",
        "http://" + "a" * 64 + "/", "http://" + "a." * 200 + "b/",
    ],
)  # fmt: skip
def test_ambiguous_url_is_refused(url: str) -> None:
    with pytest.raises(Preflight, match=r"not a valid HTTP URL|neither a host"):
        addresses.endpoint(url)


@pytest.mark.parametrize(
    ("url", "name", "called"),
    [
        ("http://registry.example", "registry.example", "http://registry.example"),
        ("HTTP://Registry.EXAMPLE.:80/x?a=b#c", "registry.example", "http://registry.example:80/x?a=b#c"),
        ("https://ann:pw@registry.example/x", "registry.example", "https://ann:pw@registry.example/x"),
        ("http://registry.example:/x", "registry.example", "http://registry.example/x"),
        ("http://bücher.example/x", "xn--bcher-kva.example", "http://xn--bcher-kva.example/x"),
        ("http://[0:0::1]:80/", "::1", "http://[::1]:80/"),
        ("http://shop_web/", "shop_web", "http://shop_web/"),
        ("http://10.0.0.1?x", "10.0.0.1", "http://10.0.0.1?x"),
    ],
)
def test_url_is_called_in_its_parsed_form(url: str, name: str, called: str) -> None:
    assert addresses.endpoint(url) == addresses.Endpoint(name, called)


@given(st.text(st.sampled_from("ab1.:/@\\[]%#?-_ \t\u2024é０"), max_size=24))
def test_called_host_equals_the_checked_host(text: str) -> None:
    try:
        found = addresses.endpoint(f"http://{text}")
    except Preflight:
        return
    assert (parse_url(found.url).host or "").strip("[]") == found.name


def test_without_an_allow_list_only_link_local_is_refused(resolves: Resolves) -> None:
    addresses.check("registry.example")
    resolves("169.254.169.254", "10.0.0.1", "127.0.0.1")
    assert addresses.resolve("registry.example", 80) == ["10.0.0.1", "127.0.0.1"]
    for address in ("169.254.169.254", "fe80::1", "fd00:ec2::254", "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe"):
        resolves(address)
        with pytest.raises(NotAllowed, match="inside its network"):
            addresses.resolve("registry.example", 80)
        with pytest.raises(NotAllowed):
            addresses.check(address)


def test_host_name_matches_the_allow_list(hosts: Callable[[str], None]) -> None:
    hosts("*.lan, Registry.Example, s3://backups, 10.1.0.0/16, 10.2.*, fd12::/16")
    for name in ("db.lan", "registry.example", "10.1.2.3", "10.2.0.1", "::ffff:10.1.2.3", "fd12::7"):
        addresses.check(addresses.host(name if ":" not in name else f"[{name}]"))
    for name in ("db.lan.evil.example", "lan", "evilregistry.example", "10.3.0.1", "127.0.0.1", "::1", "8.8.8.8",
                 "::ffff:127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::"):  # fmt: skip
        with pytest.raises(NotAllowed, match="ALLOWED_HOSTS"):
            addresses.check(name)
    addresses.check_store("s3", "backups")
    for scheme, bucket in (("s3", "others"), ("gs", "backups"), ("s3", "registry.example")):
        with pytest.raises(NotAllowed):
            addresses.check_store(scheme, bucket)


@pytest.mark.parametrize(
    "inside",
    ["127.0.0.1", "10.0.0.1", "192.168.1.1", "172.16.0.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "::1", "::",  # noqa: S104 - refused
     "fe80::1", "fd00:ec2::254", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "224.0.0.1",
     "255.255.255.255"],
)  # fmt: skip
def test_allowed_name_needs_an_allowed_internal_address(
    inside: str, hosts: Callable[[str], None], resolves: Resolves
) -> None:
    hosts("registry.example,*.lan")
    resolves(inside)
    with pytest.raises(NotAllowed, match=r"registry\.example is at"):
        addresses.resolve("registry.example", 443)
    resolves(inside, "93.184.216.34")
    assert addresses.resolve("registry.example", 443) == ["93.184.216.34"], "the forbidden address was kept"
    hosts(f"registry.example,{inside}")
    resolves(inside)
    assert addresses.resolve("registry.example", 443) == [inside]


def test_localhost_resolves_to_loopback(hosts: Callable[[str], None], resolves: Resolves) -> None:
    hosts("localhost")
    resolves("127.0.0.1")
    assert addresses.resolve("localhost", 80) == ["127.0.0.1"]
    resolves("10.0.0.1")
    with pytest.raises(NotAllowed):
        addresses.resolve("localhost", 80)

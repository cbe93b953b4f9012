"""The check of outgoing connections against `LONGSHORE_ALLOWED_HOSTS`, by host name and by address.

A URL is parsed once, strictly, and the request uses the parsed form: two parsers that differ would let a check pass for
one host and the request go to another. A name is resolved once, and the connection uses an address that was checked.
"""

from __future__ import annotations

import fnmatch
import re
import socket
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from longshore.orchestration.errors import NotAllowed, Preflight
from longshore.orchestration.settings import get_settings
from longshore.tasks.host.allow_lists import patterns

Address = IPv4Address | IPv6Address

_PARTS = re.compile(r"(https?)://([^/?#]*)([/?#].*)?", re.IGNORECASE | re.DOTALL)
_AUTHORITY = re.compile(r"(?:([^@\\\s\x00-\x1f]*)@)?(\[[0-9A-Fa-f:.]+\]|[^@:\\\s\x00-\x1f\[\]%]+)(?::([0-9]{1,5})?)?")
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
_PREFIX = re.compile(r"[0-9a-fA-F]+[.:]")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
#: Metadata services of clouds outside of the link-local addresses: these services return the credentials of a machine.
_METADATA = {IPv4Address("100.100.100.200"), IPv4Address("192.0.0.192"), IPv6Address("fd00:ec2::254")}
#: NAT64 addresses: the last 4 bytes are an IPv4 address.
_NAT64 = IPv6Network("64:ff9b::/96")
_ADD_HOST = "add the host to LONGSHORE_ALLOWED_HOSTS of the worker, or choose an allowed host"
_ADD_BUCKET = "add the bucket to LONGSHORE_ALLOWED_HOSTS of the worker, or choose an allowed bucket"


@dataclass(frozen=True)
class Endpoint:
    """The target of a URL: `name` is a host name in lower case and ASCII, or an address; `url` is to be requested."""

    name: str
    url: str


def endpoint(url: str) -> Endpoint:
    """Parse a URL. Raises Preflight for a URL that is invalid, or that parsers could read in different ways."""
    parts = _PARTS.fullmatch(url)
    authority = _AUTHORITY.fullmatch(parts[2]) if parts else None
    if parts is None or authority is None or any(letter < " " for letter in url):
        raise Preflight(f"{shown(url)} is not a valid HTTP URL", remedy="write http://HOST[:PORT]/PATH")
    name = host(authority[2])
    login = f"{authority[1]}@" if authority[1] is not None else ""
    written = f"[{name}]" if ":" in name else name
    port = f":{authority[3]}" if authority[3] else ""
    return Endpoint(name, f"{parts[1].lower()}://{login}{written}{port}{parts[3] or ''}")


def shown(url: str) -> str:
    """The URL without the parts that may be secret: the query and the login."""
    text = ascii(re.sub(r"//[^/]*@", "//", url.partition("?")[0]))[1:-1]
    return text if len(text) <= 100 else f"{text[:99]}…"


def host(text: str) -> str:
    """Normalize a host name to lower case and ASCII, or an address to its usual form. Raises Preflight otherwise."""
    if text.startswith("["):
        text = text[1:-1]
    try:
        return str(ip_address(text))
    except ValueError:
        name = _ascii(text.removesuffix(".").lower())
    labels = name.split(".")
    # Addresses have more spellings (127.1, 0x7f000001, 2130706433), and programs disagree on them.
    if len(name) > 253 or not all(map(_LABEL.fullmatch, labels)) or _NUMBER.fullmatch(labels[-1]):
        raise Preflight(f"{text!a} is neither a host name nor an address", remedy="write an address as 10.0.0.1")
    return name


def _ascii(name: str) -> str:
    if name.isascii():
        return name
    import idna  # noqa: PLC0415 - optional: only names outside of ASCII need the package

    try:
        return idna.encode(name, uts46=True).decode()
    except idna.IDNAError:
        return ""


def check(name: str) -> None:
    """Raise NotAllowed for a host name or address that the allow-list does not admit."""
    address = _address(name)
    admitted = _may_connect(name, address) if address is not None else not _entries() or _admits_name(name)
    if not admitted:
        raise NotAllowed(f"this worker may not connect to {name}", remedy=_ADD_HOST)


def resolve(name: str, port: int | None) -> list[str]:
    """The addresses of a host that this worker may connect to.

    Raises NotAllowed if none of its addresses is admitted, and socket.gaierror if the name has no address.
    """
    found = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)
    every = list(dict.fromkeys(str(info[4][0]).partition("%")[0] for info in found))
    fine = [address for address in every if _may_connect(name, ip_address(address))]
    if not fine:
        where = f"{name} is at {every[0]}" if every[0] != name else name
        raise NotAllowed(
            f"this worker may not connect to {where}, an address inside its network",
            remedy="to allow the address, add it to LONGSHORE_ALLOWED_HOSTS of the worker",
        )
    return fine


def check_store(scheme: str, bucket: str) -> None:
    """Raise NotAllowed for a bucket that no entry `s3://NAME` admits. The worker's configuration names the server."""
    entries = _entries()
    if entries and not any(fnmatch.fnmatchcase(f"{scheme}://{bucket}", entry) for entry in entries):
        raise NotAllowed(f"this worker may not read {scheme}://{bucket}", remedy=_ADD_BUCKET)


def _entries() -> list[str]:
    return patterns(get_settings().allowed_hosts)


def _address(text: str) -> Address | None:
    try:
        return ip_address(text)
    except ValueError:
        return None


def _network(entry: str) -> IPv4Network | IPv6Network | None:
    try:
        return ip_network(entry, strict=False)
    except ValueError:
        return None


def _admits_name(name: str) -> bool:
    names = [entry.lower().removesuffix(".") for entry in _entries() if _network(entry) is None]
    return any(fnmatch.fnmatchcase(name, entry) for entry in names)


def _admits_address(address: Address) -> bool:
    """Reports whether an entry admits the address: as that address, as a network, or as a prefix (10.0.*)."""
    for entry in _entries():
        network, prefix = _network(entry), _PREFIX.match(entry)
        for one in {address, _inner(address)}:
            if network is not None and one in network:
                return True
            if network is None and prefix and fnmatch.fnmatchcase(str(one), entry.lower()):
                return True
    return False


def _may_connect(name: str, address: Address) -> bool:
    inner = _inner(address)
    if not _entries():
        return not (inner.is_link_local or inner in _METADATA)
    if _admits_address(address):
        return True
    if _address(name) is not None:
        return False
    if name == "localhost" and "localhost" in _entries():
        return inner.is_loopback
    return inner.is_global and not inner.is_multicast


def _inner(address: Address) -> Address:
    """The IPv4 address that is embedded in an IPv6 address; otherwise the address itself."""
    if isinstance(address, IPv4Address):
        return address
    if address in _NAT64:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or (address.teredo[1] if address.teredo else address)

"""`network.dns.*` and `network.ping`: name servers and reachability on the step's machine."""

from __future__ import annotations

import re
from typing import Any

from longshore.orchestration.errors import OperationError, Preflight, Transient, Unsuccessful
from longshore.orchestration.operations.network import (
    DNS_GET,
    DNS_UPDATE,
    PING,
    DnsParams,
    DnsUpdateParams,
    PingParams,
)
from longshore.tasks.host import addresses
from longshore.tasks.host.backups import Backups
from longshore.tasks.host.machine.factory import machine_of
from longshore.tasks.host.machine.port import Machine, Program, State, sha
from longshore.tasks.implementation import Change, Context, Implementation, Outcome, Prediction, ReadOnly, implements

_PATH = "/etc/resolv.conf"


def _lists(text: str) -> tuple[list[str], list[str]]:
    """Servers and search domains; the last line with domains counts."""
    servers: list[str] = []
    domains: list[str] = []
    for line in text.splitlines():
        words = line.split("#")[0].split(";")[0].split()
        if words[:1] == ["nameserver"] and len(words) > 1:
            servers.append(words[1])
        elif words[:1] in (["search"], ["domain"]):
            domains = words[1:]
    return servers, domains


@implements(DNS_GET)
class DnsGet(ReadOnly[DnsParams]):
    """Reads the name servers and search domains."""

    reads = f"read {_PATH}"

    def read(self, ctx: Context, params: DnsParams) -> dict[str, Any]:
        servers, domains = _lists(machine_of(ctx).text(_PATH) or "")
        return {"servers": servers, "search_domains": domains, "path": _PATH}


@implements(DNS_UPDATE)
class DnsUpdate(Implementation[DnsUpdateParams]):
    """Changes name servers and search domains, and keeps the other lines.

    In a container the file is a mount, which can be written but not replaced.
    """

    def before(self, ctx: Context, params: DnsUpdateParams) -> dict[str, Any]:
        found = self._read(machine_of(ctx))
        if found is None:
            return {"file": None}
        Backups(ctx).keep(found[1])
        return {"file": found[0].as_json()}

    def change(self, ctx: Context, params: DnsUpdateParams, before: dict[str, Any]) -> Change:
        machine = machine_of(ctx)
        was = State(**before["file"]) if before["file"] else None
        found = self._read(machine)
        wanted = self._wanted(params, found[1].decode(errors="replace") if found else "").encode()
        if was is not None and sha(wanted) == was.sha256:
            yield Prediction(f"{_PATH} is up to date", changed=False)
        else:
            yield Prediction(f"would change {_PATH}", undo="restore its bytes")
        if found is None or found[1] != wanted:
            self._write(machine, wanted, found[0] if found else State("", 0, 0o644, *machine.me()))
        servers, domains = _lists(wanted.decode())
        return {"servers": servers, "search_domains": domains, "path": _PATH, "sha256": sha(wanted)}

    def undo(
        self, ctx: Context, params: DnsUpdateParams, before: dict[str, Any], data: dict[str, Any] | None
    ) -> Outcome:
        machine, kept = machine_of(ctx), Backups(ctx)
        was = State(**before["file"]) if before.get("file") else None
        found = self._read(machine)
        now = found[0].sha256 if found else None
        if now == (was.sha256 if was else None):
            kept.forget()
            return Outcome(changed=False)
        kept_text = kept.bytes_of(was.sha256, _PATH).decode(errors="replace") if was is not None else ""
        if now is not None and now != sha(self._wanted(params, kept_text).encode()):
            raise OperationError(
                f"{_PATH} was changed outside of this run",
                remedy="check the file, then run: longshore runs resolve --undone",
            )
        if was is None:
            machine.remove(_PATH)
        else:
            self._write(machine, kept.bytes_of(was.sha256, _PATH), was)
        kept.forget()
        return Outcome(changed=True)

    @staticmethod
    def _read(machine: Machine) -> tuple[State, bytes] | None:
        try:
            return machine.read(_PATH)
        except Preflight as error:
            if "link" in error.message:
                what = f"{_PATH} is a link: another program writes it"
                raise Preflight(what, remedy="set the name servers with that program") from error
            raise

    @staticmethod
    def _wanted(params: DnsUpdateParams, now: str) -> str:
        servers, domains = _lists(now)
        servers = params.servers or servers
        domains = params.search_domains or domains
        if (servers, domains) == _lists(now):
            return now
        others = [line for line in now.splitlines() if line.split()[:1] not in (["nameserver"], ["search"], ["domain"])]
        lines = [f"search {' '.join(domains)}"] if domains else []
        return "\n".join([*others, *lines, *(f"nameserver {one}" for one in servers)]) + "\n"

    @staticmethod
    def _write(machine: Machine, data: bytes, state: State) -> None:
        try:
            machine.write(_PATH, data, state)
        except OperationError as error:
            if "busy" not in error.message.lower():
                raise
            # In a container the file is a mount, of which only the bytes can change.
            done = machine.run(Program(["/bin/sh", "-c", f"cat >{_PATH}"], machine.environment(), stdin=data))
            if done.exit_code:
                raise OperationError(f"{_PATH}: {done.stderr.strip()}") from error


_COUNTS = re.compile(r"(\d+) packets transmitted, (\d+) (?:packets )?received")
_TIMES = re.compile(r"= ([\d.]+)/([\d.]+)/([\d.]+)")


@implements(PING)
class Ping(ReadOnly[PingParams]):
    """Sends ICMP echo requests with the ping program."""

    reads = "send {count} packets to {address}"

    def read(self, ctx: Context, params: PingParams) -> dict[str, Any]:
        machine = machine_of(ctx)
        argv = ["ping", "-c", str(params.count), "-w", str(max(1, round(params.timeout))), self._target(ctx, params)]
        program = Program(argv, machine.environment() | {"LC_ALL": "C"}, timeout=params.timeout + 5)
        try:
            done = machine.run(program)
        except Preflight as error:
            raise Preflight(f"this machine has no ping: {error.message}", remedy="install iputils-ping") from error
        counts = _COUNTS.search(done.stdout)
        if counts is None:
            why = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:] or [f"exit code {done.exit_code}"]
            raise (Transient if "temporary" in why[0].lower() else OperationError)(f"ping {params.address}: {why[0]}")
        sent, received = int(counts[1]), int(counts[2])
        loss = round(100 * (1 - received / sent), 1) if sent else 100.0
        data: dict[str, Any] = {"packets_sent": sent, "packets_received": received, "packet_loss": loss}
        if times := _TIMES.search(done.stdout):
            data |= dict(zip(("min_rtt_ms", "avg_rtt_ms", "max_rtt_ms"), map(float, times.groups()), strict=True))
        if loss > params.max_loss:
            raise Unsuccessful(f"{params.address} lost {loss:g} % of {sent} packets", data=data)
        return data

    @staticmethod
    def _target(ctx: Context, params: PingParams) -> str:
        """The checked address; for a container the name, which the container resolves."""
        name = addresses.host(params.address)
        addresses.check(name)
        if ctx.container:
            return name
        try:
            return addresses.resolve(name, None)[0]
        except OSError as error:
            raise OperationError(f"ping {params.address}: {error.strerror}") from error

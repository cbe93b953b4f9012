"""`longshore hosts …`: the hosts, what they are like, and whether they take work."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from longshore.orchestration.cli.common import client, command, current, leave, say, tell
from longshore.orchestration.errors import UsageError

if TYPE_CHECKING:
    from longshore.orchestration.store.hosts import Host, Hosts

#: Seconds that a host's workers are given to hear of it.
_HEARD = 15.0


@click.group("hosts")
def hosts_group() -> None:
    """List hosts; take them out of work and back."""


def _conditions(function: Any) -> Any:
    for option in (
        click.option("--label", multiple=True, metavar="KEY:VALUE", help="Only those with this label."),
        click.option("--os", help="Only this distribution."),
        click.option("--arch", help="Only this processor."),
        click.option("--fact", multiple=True, metavar="NAME=VALUE", help="Only those with this fact."),
        click.option("--healthy", is_flag=True, default=None, help="Only those that take work."),
        click.option("-a", "--all", "every", is_flag=True, help="Also those whose workers have ended."),
    ):
        function = option(function)
    return function


@command(hosts_group, "ls")
@_conditions
def ls(
    label: tuple[str, ...], os: str | None, arch: str | None, fact: tuple[str, ...], healthy: bool | None, every: bool
) -> None:
    """The hosts, a line each: state, labels, facts, workers."""
    from pydantic import ValidationError  # noqa: PLC0415 - slow to import

    from longshore.orchestration.language.targets import HostFilter, parse_facts  # noqa: PLC0415
    from longshore.orchestration.store.hosts import HostState, matching  # noqa: PLC0415 - see cli.common

    options = current()
    try:
        facts = parse_facts(",".join(fact))
        wanted = HostFilter(label=list(label), os=os, arch=arch, fact=facts, healthy=healthy)
    except ValidationError as error:
        raise UsageError(f"--label: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from None
    except ValueError as error:
        raise UsageError(f"--fact: {error}") from None
    found = matching(list(_registry().all().values()), wanted)
    found = [host for host in found if every or host.drained or host.state is not HostState.STOPPED]
    if options.json:
        options.show([host.as_data() for host in found])
        return
    for host in found:
        say(_line(host))


def _line(host: Host) -> str:
    labels = ",".join(f"{key}={value}" for key, value in sorted(host.labels.items()))
    facts = host.facts
    about = f"{facts.get('os', '?')} {facts.get('version', '')} {facts.get('arch', '?')}".replace("  ", " ")
    sizes = f"{facts.get('cpus', '?')} CPU, {int(facts.get('memory', 0)) / 2**30:.1f} GiB"
    engine = f", docker {facts['docker'] or 'does not answer'}" if facts.get("docker") is not None else ""
    at = sum(node.active for node in host.alive)
    workers = f"{len(host.alive)} worker{'' if len(host.alive) == 1 else 's'}, {at} at work"
    heard = f", heard of {max(0, host.now - host.seen) / 1000:.0f} s ago"
    return f"{host.name}  {host.state}  {labels or '-'}  {about}, {sizes}{engine}  {workers}{heard}"


@command(hosts_group, "show")
@click.argument("host")
def show(host: str) -> None:
    """One host: its labels, facts, and each of its workers with its queues."""
    options = current()
    found = _registry().get(host)
    if options.json:
        options.show(found.as_data())
        return
    say(_line(found))
    if why := found.why_not():
        say(f"it takes no new work: {why}")
    for name, value in sorted(found.facts.items()):
        say(f"  {name}: {'none' if value is None else value}")
    for node in found.nodes:
        state = node.state if node in found.alive else "lost"
        heard = f"heard of {max(0, found.now - node.seen) / 1000:.0f} s ago"
        say(f"worker {node.name}  {state}  {node.active} at work, {heard}  version {node.version}")
        say(f"  queues: {', '.join(node.queues)}")


@command(hosts_group, "drain")
@click.argument("host")
@click.option("--stop", is_flag=True, help="End its workers once they are at nothing any more.")
@click.option("--wait", is_flag=True, help="Return when nothing runs there any more.")
@click.option("--timeout", default=3600.0, show_default=True, help="Seconds that --wait waits at most.")
def drain(host: str, stop: bool, wait: bool, timeout: float) -> None:
    """No new work for a host. What runs there ends; undo and what always runs are still done."""
    from longshore.orchestration.store.hosts import HostState  # noqa: PLC0415

    hosts = _registry()
    found = hosts.get(host)
    if current().dry_run:
        at = sum(node.active for node in found.alive)
        tell(f"would drain host {host}: {at} steps under way" + ("; then its workers end" if stop else ""), host=host)
        return
    client().drain(host, stop=stop)
    found = _until(hosts, host, _HEARD, lambda now: now.state is not HostState.DRAINING or _has_heard(now))
    if not found.alive:
        tell(f"{host}: no worker of it is there now; when one starts, it takes no new work", host=host, under_way=0)
        return
    if not _has_heard(found):
        say(f"{host}: not each of its workers has said yet that it takes no new work", err=True)
        leave(1)
    if wait:
        found = _until(hosts, host, timeout, lambda now: now.state is not HostState.DRAINING)
    left = sum(node.active for node in found.alive)
    then = "; its workers end then" if stop else ""
    tell(f"{host}: takes no new work; {left} steps under way{then}", host=host, under_way=left)
    if wait and left:
        leave(1)


@command(hosts_group, "undrain")
@click.argument("host")
def undrain(host: str) -> None:
    """Have a host take work again."""
    found = _registry().get(host)
    if current().dry_run:
        tell(f"would have host {host} take work again", host=host)
        return
    if found.drained is None:
        tell(f"{host}: it was not drained", host=host)
        return
    client().undrain(host)
    tell(f"{host}: takes work again", host=host)


@command(hosts_group, "forget")
@click.argument("host")
def forget(host: str) -> None:
    """Take a host out of the list that will not come back."""
    hosts = _registry()
    found = hosts.get(host)
    if found.alive:
        raise UsageError(f"host {host} has a worker, and would be listed again", remedy=f"stop {found.alive[0].name}")
    if current().dry_run:
        tell(f"would forget host {host}", host=host)
        return
    hosts.forget(host)
    tell(f"forgotten: {host}", host=host)


def _registry() -> Hosts:
    from longshore.orchestration.store.hosts import Hosts  # noqa: PLC0415 - see cli.common

    return Hosts(client().store)


def _has_heard(host: Host) -> bool:
    return all(node.state != "ready" for node in host.alive)


def _until(hosts: Hosts, name: str, seconds: float, holds: Any) -> Host:
    until = time.monotonic() + seconds
    while not holds(found := hosts.get(name)) and time.monotonic() < until:
        time.sleep(0.2)
    return found

"""`longshore hosts …`: hosts with their facts, workers and state."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import click
from pydantic import ValidationError

from longshore.orchestration.cli.common import command, current_options, exit_with, print_line, print_result
from longshore.orchestration.cli.inputs import client
from longshore.orchestration.errors import LongshoreError, UsageError
from longshore.orchestration.language.quantities import quantity
from longshore.orchestration.language.targets import HostFilter, parse_facts
from longshore.orchestration.store.hosts import Host, Hosts, HostState
from longshore.orchestration.store.placement import matching

#: Seconds for the workers of a host to acknowledge a drain.
_DRAIN_ACK_TIMEOUT = 15.0


@click.group("hosts")
def hosts_group() -> None:
    """List, drain and forget hosts.

    A host is a machine with workers. Drain a host before its maintenance: a drained host accepts no new steps.

    """


def _filter_options(function: Any) -> Any:
    for option in (
        click.option("--label", multiple=True, metavar="KEY=VALUE", help="Only hosts with this label; repeatable."),
        click.option("--os", help="Only hosts with this Linux distribution."),
        click.option("--arch", help="Only hosts with this processor architecture."),
        click.option(
            "--fact", multiple=True, metavar="NAME=VALUE", help="Only hosts with this fact, e.g. rack=12; repeatable."
        ),
        click.option(
            "--healthy",
            is_flag=True,
            default=None,
            help="Only hosts that accept new steps and whose Docker engine, if any, answers.",
        ),
        click.option("-a", "--all", "every", is_flag=True, help="List also hosts whose workers have stopped."),
    ):
        function = option(function)
    return function


@command(hosts_group, "ls")
@_filter_options
def ls(
    label: tuple[str, ...], os: str | None, arch: str | None, fact: tuple[str, ...], healthy: bool | None, every: bool
) -> None:
    """List hosts with state, labels, facts and workers, one per line.

    Facts are properties that workers detect, such as os, arch and memory, or that LONGSHORE_FACTS sets.

    """
    options = current_options()
    try:
        facts = parse_facts(",".join(fact))
        host_filter = HostFilter(label=list(label), os=os, arch=arch, fact=facts, healthy=healthy)
    except ValidationError as error:
        raise UsageError(f"--label: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from None
    except ValueError as error:
        raise UsageError(f"--fact: {error}") from None
    found = matching(list(_registry().all().values()), host_filter)
    found = [host for host in found if every or host.drained or host.state is not HostState.STOPPED]
    if options.json:
        options.show([host.as_data() for host in found])
        return
    for host in found:
        print_line(_summary_line(host))


def _summary_line(host: Host) -> str:
    labels = ",".join(f"{key}={value}" for key, value in sorted(host.labels.items()))
    facts = host.facts
    about = f"{facts.get('os', '?')} {facts.get('version', '')} {facts.get('arch', '?')}".replace("  ", " ")
    sizes = f"{facts.get('cpus', '?')} CPU, {int(facts.get('memory', 0)) / 2**30:.1f} GiB"
    engine = f", docker {facts['docker'] or 'does not answer'}" if facts.get("docker") is not None else ""
    active = sum(node.active for node in host.alive)
    workers = f"{quantity(len(host.alive), 'worker')}, {quantity(active, 'active step')}"
    last_seen = f", last seen {max(0, host.now - host.seen) / 1000:.0f} s ago"
    return f"{host.name}  {host.state}  {labels or '-'}  {about}, {sizes}{engine}  {workers}{last_seen}"


@command(hosts_group, "show")
@click.argument("host")
def show(host: str) -> None:
    """Print labels and facts of HOST, and the queues of its workers."""
    options = current_options()
    found = _registry().get(host)
    if options.json:
        options.show(found.as_data())
        return
    print_line(_summary_line(found))
    if why := found.why_not():
        print_line(f"accepts no new steps: {why}")
    for name, value in sorted(found.facts.items()):
        print_line(f"  {name}: {'none' if value is None else value}")
    for node in found.nodes:
        state = node.state if node in found.alive else "lost"
        last_seen = f"last seen {max(0, found.now - node.seen) / 1000:.0f} s ago"
        active = quantity(node.active, "active step")
        print_line(f"worker {node.name}  {state}  {active}, {last_seen}  version {node.version}")
        print_line(f"  queues: {', '.join(node.queues)}")


@command(hosts_group, "drain")
@click.argument("host")
@click.option("--stop", is_flag=True, help="Stop the workers of the host when no step is active.")
@click.option("--wait", is_flag=True, help="Wait until no step is active on the host.")
@click.option("--timeout", default=3600.0, show_default=True, help="Maximum seconds for --wait.")
def drain(host: str, stop: bool, wait: bool, timeout: float) -> None:
    """Stop sending new steps to HOST; active steps finish.

    The drain lasts until `longshore hosts undrain`, and includes workers that start later. The target of a new step
    decides what happens:

    \b
    _any         the step runs on another host
    _all, label  the step skips HOST; if all hosts are drained, the step fails
    HOST         the step waits, and fails after LONGSHORE_CLAIM_TIMEOUT

    Undos and `always` steps still run on the host, as long as its workers run. Before you switch the host off, use
    --stop, and wait until `longshore hosts ls --all` prints `stopped` for the host. If systemd or Docker would start
    the workers again, use --wait instead of --stop, and then stop their service. Without --wait, the command returns
    once the workers have acknowledged the drain.

    \b
    Exit codes:
      0  the host accepts no new steps, and with --wait no step is active
      1  a worker has not acknowledged the drain
      1  with --wait, a step is still active after --timeout
    """
    hosts = _registry()
    found = hosts.get(host)
    if current_options().dry_run:
        active = quantity(sum(node.active for node in found.alive), "active step")
        print_result(
            f"would drain host {host}: {active}" + ("; its workers would stop when idle" if stop else ""),
            host=host,
        )
        return
    client().drain(host, stop=stop)
    found = _wait_until(
        hosts,
        host,
        _DRAIN_ACK_TIMEOUT,
        lambda now: now.state is not HostState.DRAINING or _drain_acknowledged(now),
    )
    if not found.alive:
        print_result(f"{host}: no worker is running; future workers will accept no new steps", host=host, under_way=0)
        return
    if not _drain_acknowledged(found):
        raise LongshoreError(f"host {host}: not all workers have acknowledged the drain", remedy="repeat the command")
    if wait:
        found = _wait_until(hosts, host, timeout, lambda now: now.state is not HostState.DRAINING)
    left = sum(node.active for node in found.alive)
    then = "; its workers stop when idle" if stop else ""
    print_result(f"{host}: accepts no new steps; {quantity(left, 'active step')}{then}", host=host, under_way=left)
    if wait and left:
        exit_with(1)


@command(hosts_group, "undrain")
@click.argument("host")
def undrain(host: str) -> None:
    """Send new steps to HOST again after a drain.

    The command does not start workers that `longshore hosts drain --stop` has stopped.
    """
    found = _registry().get(host)
    if current_options().dry_run:
        print_result(f"would undrain host {host}", host=host)
        return
    if found.drained is None:
        print_result(f"{host}: is not drained", host=host)
        return
    client().undrain(host)
    print_result(f"{host}: accepts new steps again", host=host)


@command(hosts_group, "forget")
@click.argument("host")
def forget(host: str) -> None:
    """Remove HOST, whose workers have stopped, from the list.

    The command also deletes the cached inventory, the job descriptions and the drain of the host. A host that is not
    drained is forgotten anyway after LONGSHORE_RETENTION without a heartbeat.

    Exit code 2 if the host has a running worker, which would register the host again.
    """
    hosts = _registry()
    found = hosts.get(host)
    if found.alive:
        raise UsageError(
            f"host {host} has a running worker, which would register the host again",
            remedy=f"stop {found.alive[0].name}",
        )
    if current_options().dry_run:
        print_result(f"would forget host {host}", host=host)
        return
    hosts.forget(host)
    print_result(f"forgotten: {host}", host=host)


def _registry() -> Hosts:
    return Hosts(client().store)


def _drain_acknowledged(host: Host) -> bool:
    """Whether no worker still accepts new steps."""
    return all(node.state != "ready" for node in host.alive)


def _wait_until(hosts: Hosts, name: str, seconds: float, condition: Callable[[Host], bool]) -> Host:
    """The host as soon as the condition is true, or after so many seconds."""
    deadline = time.monotonic() + seconds
    while not condition(found := hosts.get(name)) and time.monotonic() < deadline:
        time.sleep(0.2)
    return found

"""`longshore metrics`: what monitoring and autoscaling want to know."""

from __future__ import annotations

import dataclasses
import threading

import click

from longshore.orchestration.cli.common import client, current, global_options, say, say_lines, tell
from longshore.orchestration.errors import ConfigError, UsageError


@click.command()
@click.option("--listen", metavar="[ADDRESS:]PORT", help="Serve them at /metrics until Ctrl-C; else they are printed.")
@global_options
def metrics(listen: str | None) -> None:
    """What runs and steps came to, queues, hosts and services, as Prometheus reads them."""
    from longshore.orchestration.store.queue_lengths import queue_lengths  # noqa: PLC0415 - see cli.common

    store = client().store
    if listen is None and current().json:
        current().show([dataclasses.asdict(backlog) for backlog in queue_lengths(store)])
        return
    try:
        from prometheus_client import start_http_server  # noqa: PLC0415 - an extra

        from longshore.orchestration.monitoring.metrics import registry, text  # noqa: PLC0415
    except ImportError:
        raise ConfigError("prometheus-client is missing", remedy="pip install 'longshore[metrics]'") from None
    if listen is None and current().dry_run:
        tell("would print the metrics, and note what of the runs that rest is counted in them")
        return
    if listen is None:
        say_lines(text(store), nl=False)
        return
    address, _, port = listen.rpartition(":")
    if not port.isdigit() or not 0 < int(port) < 65536:
        raise UsageError(f"--listen {listen!r} is no [ADDRESS:]PORT")
    if current().dry_run:
        tell(f"would serve metrics at {address or '127.0.0.1'}:{port}")
        return
    text(store)  # what is wrong is told now, not at the first scrape
    try:
        start_http_server(int(port), addr=address or "127.0.0.1", registry=registry(store))
    except OSError as error:
        raise UsageError(f"--listen {listen}: {error.strerror}") from None
    say(f"metrics at http://{address or '127.0.0.1'}:{port}/metrics, until Ctrl-C", err=True)
    threading.Event().wait()

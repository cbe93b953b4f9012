"""`longshore metrics`: metrics for monitoring and autoscaling."""

from __future__ import annotations

import dataclasses
import threading

import click

from longshore.orchestration.cli.common import current_options, global_options, print_line, print_lines, print_result
from longshore.orchestration.cli.inputs import client
from longshore.orchestration.errors import ConfigError, UsageError
from longshore.orchestration.store.queue_lengths import queue_lengths


@click.command()
@click.option(
    "--listen",
    metavar="[ADDRESS:]PORT",
    help="Serve the metrics at /metrics, instead of printing them. Default ADDRESS: 127.0.0.1.",
)
@global_options
def metrics(listen: str | None) -> None:
    """Print or serve metrics in Prometheus format.

    The metrics count the results of runs and steps, and show queues, hosts and circuit breakers. The command needs
    longshore[metrics]. With -o json, the command prints only the lengths of the queues.

    Each call counts ended runs for at most 0.25 seconds. With many ended runs, the first calls print no counters.

    """
    store, options = client().store, current_options()
    if listen is None and options.json:
        options.show([dataclasses.asdict(length) for length in queue_lengths(store)])
        return
    try:
        from prometheus_client import start_http_server  # noqa: PLC0415 - an optional dependency, longshore[metrics]

        from longshore.orchestration.monitoring.metrics import registry, text  # noqa: PLC0415 - needs prometheus-client
    except ImportError:
        raise ConfigError("prometheus-client is missing", remedy="pip install 'longshore[metrics]'") from None
    if listen is None and options.dry_run:
        print_result("would print the metrics, and record which ended runs the counters include")
        return
    if listen is None:
        print_lines(text(store), nl=False)
        return
    address, _, port = listen.rpartition(":")
    if not port.isdigit() or not 0 < int(port) < 65536:
        raise UsageError(f"--listen {listen!r}: expected [ADDRESS:]PORT")
    if options.dry_run:
        print_result(f"would serve metrics at {address or '127.0.0.1'}:{port}")
        return
    text(store)  # a broken store fails here, not at the first scrape
    try:
        start_http_server(int(port), addr=address or "127.0.0.1", registry=registry(store))
    except OSError as error:
        raise UsageError(f"--listen {listen}: {error.strerror}") from None
    print_line(f"metrics at http://{address or '127.0.0.1'}:{port}/metrics, until Ctrl-C", err=True)
    threading.Event().wait()

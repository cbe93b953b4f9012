"""`longshore breaker …`: services whose circuit breaker is open, and the runs that wait for them."""

from __future__ import annotations

import dataclasses

import click

from longshore.orchestration.cli.common import command, current_options, print_line, print_result
from longshore.orchestration.cli.inputs import client
from longshore.orchestration.errors import UnknownName
from longshore.orchestration.jobs.schedule import reset_results
from longshore.orchestration.store.breakers import Breakers


@click.group("breaker")
def breaker_group() -> None:
    """List and reset circuit breakers of services and jobs.

    The breaker of an external service, such as an HTTP API, opens when the service is down. Runs that need the service
    wait. About every 30 seconds, one of these runs calls the service (a trial). If the service answers, the breaker
    closes.

    The breaker of a job opens after three failures in a row. The schedule of the job then starts no run until you reset
    the breaker, or a run of the job succeeds.
    """


@command(breaker_group, "ls")
def ls() -> None:
    """List the external services and jobs whose circuit breaker is open.

    Each line has the name, the time since the breaker opened, the time until the next trial, the number of waiting runs
    and the error. A job has no trial.
    """
    options, store = current_options(), client().store
    breakers = Breakers(store).open()
    if options.json:
        options.show([dataclasses.asdict(breaker) for breaker in breakers])
        return
    now = store.now()
    for breaker in breakers:
        trial = (
            f"half-open, on trial by {breaker.probe}"
            if breaker.probe
            else f"next trial in {max(0, breaker.until - now) / 1000:.0f} s"
            if breaker.until
            else "until a reset"
        )
        print_line(
            f"{breaker.service}  open for {(now - breaker.since) / 1000:.0f} s, {trial}; "
            f"{breaker.waiting} runs wait; {breaker.why}"
        )


@command(breaker_group, "reset")
@click.argument("service")
def reset(service: str) -> None:
    """Close the circuit breaker of SERVICE.

    SERVICE is a name that `longshore breaker ls` prints; for a job, quote the name: 'job NAME@HOST'. The runs that wait
    for a service continue within a few seconds. The schedule of a job starts runs again.

    Exit code 2 if the breaker is not open.
    """
    store = client().store
    breakers = Breakers(store)
    open_services = [breaker.service for breaker in breakers.open()]
    if service not in open_services:
        names = ", ".join(open_services) or "none"
        raise UnknownName(f"the breaker of service {service!r} is not open", remedy=f"choose one of: {names}")
    if current_options().dry_run:
        print_result(f"would close the breaker of service {service}", service=service)
        return
    reset_results(store, service)
    breakers.close(service)
    print_result(f"reset: {service}", service=service)

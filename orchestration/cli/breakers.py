"""`longshore breaker …`: the services that are down, and what waits for them."""

from __future__ import annotations

import dataclasses

import click

from longshore.orchestration.cli.common import client, command, current, leave, say, tell


@click.group("breaker")
def breaker_group() -> None:
    """List and reset the circuit breakers of services."""


@command(breaker_group, "ls")
def ls() -> None:
    """The services that are down; nothing where all answer."""
    from longshore.orchestration.store.breakers import Breakers  # noqa: PLC0415 - see cli.common

    options, store = current(), client().store
    found = Breakers(store).open()
    if options.json:
        options.show([dataclasses.asdict(breaker) for breaker in found])
        return
    now = store.now()
    for breaker in found:
        tried = (
            f"tried by {breaker.probe}"
            if breaker.probe
            else f"tried again in {max(0, breaker.until - now) / 1000:.0f} s"
            if breaker.until
            else "until it is reset"
        )
        say(
            f"{breaker.service}  open for {(now - breaker.since) / 1000:.0f} s, {tried}; "
            f"{breaker.waiting} runs wait; {breaker.why}"
        )


@command(breaker_group, "reset")
@click.argument("service")
def reset(service: str) -> None:
    """Take a service for up again: whoever waits for it goes on, spread over a few seconds."""
    from longshore.orchestration.jobs.schedule import reset_results  # noqa: PLC0415
    from longshore.orchestration.store.breakers import Breakers  # noqa: PLC0415 - see cli.common

    store = client().store
    breakers = Breakers(store)
    known = [breaker.service for breaker in breakers.open()]
    if service not in known:
        names = ", ".join(known) or "none is"
        say(f"error: service {service!r} is not down (of those that are: {names})", err=True)
        leave(2)
    if current().dry_run:
        tell(f"would take service {service} for up again", service=service)
        return
    breakers.close(service)
    reset_results(store, service)
    tell(f"reset: {service}", service=service)

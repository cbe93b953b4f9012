"""Flower's configuration: `celery -A longshore.workers flower --conf=…/config.py`, and `longshore flower`.

Flower executes the file after its options from the environment and the command line.
"""

from __future__ import annotations

import os
import sys

import click
from tornado.options import options

from longshore.workers import flower_pages
from longshore.workers.flower_pages import command_line

#: Loopback only, unless an address is set.
address = options.address or "127.0.0.1"


def _refuse(why: str) -> None:
    print(why, file=sys.stderr)
    sys.exit(2)


if _problem := command_line.problem(click.get_current_context().params["tornado_argv"]):
    _refuse(f"error: {_problem}")

_HERE = {"127.0.0.1", "::1", "localhost"}
_logins = options.basic_auth or []
if not all(all(login.partition(":")[::2]) for login in _logins):
    _refuse("error: FLOWER_BASIC_AUTH (--basic_auth) must be user:password, or a comma-separated list of them")
if not (options.unix_socket or address in _HERE or _logins or options.auth):
    _refuse(
        f"error: Flower does not start open to the world ({address}): set FLOWER_BASIC_AUTH=user:password, set "
        "--auth with OAuth, or omit --address"
    )
if os.environ.get("FLOWER_UNAUTHENTICATED_API", "").lower() in {"1", "true", "yes"} and address not in _HERE:
    _refuse("error: Flower does not start with an API that is open to the world: unset FLOWER_UNAUTHENTICATED_API")

flower_pages.install()
format_task = flower_pages.format_task

"""Flower's configuration: `celery -A longshore.workers flower --conf=…/config.py`, and `longshore flower`.

Flower executes it, after its own options from the environment and the command line were read.
"""

from __future__ import annotations

import os
import sys

from tornado.options import options

from longshore.workers import web

#: Nobody but this machine, unless it is said otherwise.
address = options.address or "127.0.0.1"
#: Fewer would lose the first steps of a large run.
max_tasks = options.max_tasks

if (
    not options.unix_socket
    and address not in {"127.0.0.1", "::1", "localhost"}
    and not (options.basic_auth or options.auth)
):
    sys.exit(
        f"error: Flower does not start open to the world ({address}): set FLOWER_BASIC_AUTH=user:password, or its "
        "--auth with OAuth, or leave --address out"
    )
if os.environ.get("FLOWER_UNAUTHENTICATED_API", "").lower() in {"1", "true", "yes"} and address not in {
    "127.0.0.1", "::1", "localhost",
}:  # fmt: skip
    sys.exit("error: Flower does not start with an API that is open to the world: unset FLOWER_UNAUTHENTICATED_API")

web.install()
format_task = web.format_task

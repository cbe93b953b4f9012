"""`longshore worker` and `longshore dev`: the running parts.

They are programs of their own: the command line does not load what workers need.
"""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from longshore.orchestration.cli.common import current, global_options, say, tell
from longshore.orchestration.errors import ConfigError, UsageError

if TYPE_CHECKING:
    from longshore.orchestration.settings import Settings


_CELERY = (sys.executable, "-m", "celery", "-A", "longshore.workers")
#: Flower's port, unless it is told another.
_FLOWER = 5555


@click.command()
@click.option(
    "-Q",
    "--queues",
    metavar="NAMES",
    help="Only these queues, separated by commas; their undo comes with them.",
)
@click.option("-c", "--concurrency", type=click.IntRange(1, 1024), help="Processes; one a CPU if left out.")
@click.option("-n", "--name", metavar="NAME", default="worker", help="The node's name on this host.")
@click.option("--host", metavar="HOST", help="This host's name; the machine's if left out.")
@click.option("--label", "labels", multiple=True, metavar="KEY=VALUE", help="A label of this host; may be given again.")
@click.option("--loglevel", default="INFO", show_default=True)
@global_options
def worker(
    queues: str | None,
    concurrency: int | None,
    name: str,
    host: str | None,
    labels: tuple[str, ...],
    loglevel: str,
) -> None:
    """Start a worker in the foreground: celery -A longshore.workers worker."""
    from longshore.orchestration.settings import get_settings, load_settings  # noqa: PLC0415 - slow to import

    if get_settings().redis_url is None:
        raise ConfigError(
            "there is no LONGSHORE_REDIS_URL",
            remedy="set it, or use longshore dev, which brings its own Redis",
        )
    arguments = [
        *_CELERY,
        "worker",
        "-n",
        f"{name}@{host or get_settings().host or '%h'}",
        "-l",
        loglevel,
    ]
    if queues:
        arguments += ["-Q", ",".join(_with_undo(queues))]
    if concurrency:
        arguments += ["-c", str(concurrency)]
    if host == "":
        raise UsageError("--host is empty", remedy="leave it out for the machine's own name")
    if host:
        os.environ["LONGSHORE_HOST"] = host
    if labels:
        os.environ["LONGSHORE_LABELS"] = ",".join(labels)
    if host or labels:
        load_settings()  # a bad name is told here, not by the worker's traceback
    if current().dry_run:
        tell(f"would run: {' '.join(arguments)}", arguments=arguments)
        return
    os.execv(sys.executable, arguments)  # noqa: S606 - the worker takes this process's place and signals


@click.command()
@click.option("--loglevel", default="INFO", show_default=True)
@global_options
def beat(loglevel: str) -> None:
    """Start a beat in the foreground, which has jobs started by their schedules: celery -A longshore.workers beat.

    Two of them start each job once.
    """
    from longshore.orchestration.settings import get_settings  # noqa: PLC0415 - see worker

    if get_settings().redis_url is None:
        raise ConfigError("there is no LONGSHORE_REDIS_URL", remedy="set it: schedules need workers that stay")
    arguments = [*_CELERY, "beat", "--pidfile", "", "-l", loglevel]
    if current().dry_run:
        tell(f"would run: {' '.join(arguments)}", arguments=arguments)
        return
    os.execv(sys.executable, arguments)  # noqa: S606 - see worker


@click.command(context_settings={"ignore_unknown_options": True})
@click.option("--port", type=click.IntRange(1, 65535), default=_FLOWER, show_default=True)
@click.option("--address", default="", help="Of this machine; 127.0.0.1 if left out. Any other needs a login.")
@click.option("--read-only", is_flag=True, help="Without buttons, and without Flower's own operations.")
@click.argument("more", nargs=-1, type=click.UNPROCESSED)
@global_options
def flower(port: int, address: str, read_only: bool, more: tuple[str, ...]) -> None:
    """Start Flower in the foreground, with the pages of runs; MORE are options of Flower's own.

    A login: FLOWER_BASIC_AUTH=user:password in the environment, or Flower's OAuth.
    """
    from importlib.util import find_spec  # noqa: PLC0415 - see worker

    from longshore.orchestration.settings import get_settings  # noqa: PLC0415

    if find_spec("flower") is None:
        raise ConfigError("Flower is missing", remedy="pip install 'longshore[flower]'")
    _use_embedded_if_there(get_settings())
    arguments = [*_CELERY, "flower", f"--conf={_flower_config()}"]
    arguments += [f"--port={port}", *([f"--address={address}"] if address else [])]
    arguments += [*(["--read_only=true"] if read_only else []), *more]
    if current().dry_run:
        tell(f"would run: {' '.join(arguments)}", arguments=arguments)
        return
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address or "127.0.0.1", port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:  # of anything else Flower tells by itself
                raise UsageError(f"port {port} is taken", remedy="--port takes another") from None
    os.execv(sys.executable, arguments)  # noqa: S606 - see worker


def _flower_config() -> str:
    """The file that has Flower serve the pages; to be found without importing Flower."""
    from importlib.util import find_spec  # noqa: PLC0415 - see worker

    found = find_spec("longshore.workers")
    folders = (found.submodule_search_locations if found else None) or [""]
    return f"{folders[0]}/flower_pages/config.py"


def _use_embedded_if_there(settings: Settings) -> None:
    """Without a Redis of its own, Flower looks at the embedded one, which has to be there."""
    from longshore.orchestration.client import embedded  # noqa: PLC0415 - see worker

    if settings.redis_url is None and not embedded.supervisor_pid(settings.state_dir):
        raise ConfigError(
            "there is no LONGSHORE_REDIS_URL, and no embedded server runs",
            remedy="set it, or start longshore dev in another terminal",
        )


def _with_undo(queues: str) -> list[str]:
    names: list[str] = []
    for name in filter(None, (part.strip() for part in queues.split(","))):
        names += [name] if name == "control" or name.endswith(".undo") else [f"{name}.undo", name]
    return list(dict.fromkeys(names))


@click.command()
@global_options
def dev() -> None:
    """A Redis, a worker, a beat and Flower of your own, in the foreground; nothing has to be set up."""
    from longshore.orchestration.client import embedded  # noqa: PLC0415 - see worker
    from longshore.orchestration.settings import get_settings  # noqa: PLC0415

    settings = get_settings()
    if settings.redis_url is not None:
        raise ConfigError("LONGSHORE_REDIS_URL is set", remedy="unset it for longshore dev, or start longshore worker")
    if current().dry_run:
        tell(f"would start a server, a worker, a beat and Flower, with their state in {settings.state_dir}")
        return
    settings.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    if pid := embedded.supervisor_pid(settings.state_dir):
        say(f"they run already (process {pid}), with their state in {settings.state_dir}")
        return
    say(f"server, worker and beat run until Ctrl-C; their state and logs are in {settings.state_dir}")
    say("in another terminal: longshore run PLAN, longshore runs ls")
    process = subprocess.Popen([sys.executable, "-m", embedded.SUPERVISOR, "--for-ever"])
    others = list(_beside(process, settings))
    while True:
        try:
            code = process.wait()
        except KeyboardInterrupt:
            say("stopping: the step under way ends first", err=True)
            continue
        finally:
            for other in others:
                other.terminate()
        raise SystemExit(code)


def _beside(server: subprocess.Popen[bytes], settings: Settings) -> Iterator[subprocess.Popen[bytes]]:
    """A beat, and Flower where it is installed, once the server is there. Their logs are beside the worker's."""
    from importlib.util import find_spec  # noqa: PLC0415 - see worker

    while server.poll() is None and not settings.embedded_socket.exists():
        time.sleep(0.1)
    parts = {"beat": [*_CELERY, "beat", "--pidfile", ""]}
    if find_spec("flower") is not None:
        with socket.socket() as probe:
            taken = probe.connect_ex(("127.0.0.1", _FLOWER)) == 0
        if taken:
            say(f"Flower is not started: something listens on port {_FLOWER}", err=True)
        else:
            parts["flower"] = [*_CELERY, "flower", f"--conf={_flower_config()}", f"--port={_FLOWER}"]
            say(f"runs, in Flower: http://127.0.0.1:{_FLOWER}/runs")
    for name, command in parts.items():
        with (settings.state_dir / f"{name}.log").open("ab") as out:
            yield subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out)

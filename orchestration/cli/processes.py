"""`longshore worker`, `beat`, `flower` and `dev`: the processes of an installation.

Each command replaces itself by, or starts, another program, and imports neither Celery nor the workers' modules.
"""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec

import click

from longshore.orchestration.cli.common import current_options, global_options, print_line, print_result
from longshore.orchestration.client import embedded
from longshore.orchestration.errors import ConfigError, UsageError
from longshore.orchestration.settings import Settings, get_settings, load_settings

_CELERY = (sys.executable, "-m", "celery", "-A", "longshore.workers")
#: The default port of Flower.
_FLOWER_PORT = 5555


@click.command()
@click.option(
    "-Q",
    "--queues",
    metavar="NAMES",
    help="Consume only these queues, separated by commas, and their undo queues.",
)
@click.option("-c", "--concurrency", type=click.IntRange(1, 1024), help="Number of processes. Default: one per CPU.")
@click.option(
    "-n",
    "--name",
    metavar="NAME",
    default="worker",
    help="Name of the worker, unique on its host.",
    show_default=True,
)
@click.option("--host", metavar="HOST", help="Name of this host. Default: LONGSHORE_HOST, else that of the machine.")
@click.option(
    "--label",
    "labels",
    multiple=True,
    metavar="KEY=VALUE",
    help="Label of this host, instead of LONGSHORE_LABELS; repeatable.",
)
@click.option("--loglevel", default="INFO", show_default=True, help="Log level.")
@global_options
def worker(
    queues: str | None,
    concurrency: int | None,
    name: str,
    host: str | None,
    labels: tuple[str, ...],
    loglevel: str,
) -> None:
    """Start a Celery worker in the foreground.

    Without -Q, the worker consumes the queues of all operations,
    and `control`. If -Q omits `control`, another worker must consume `control`; otherwise, no run begins or continues.

    Exit code: 2 for wrong settings, otherwise the exit code of the Celery worker.
    """
    if get_settings().redis_url is None:
        raise ConfigError(
            "LONGSHORE_REDIS_URL is not set",
            remedy="set it, or start longshore dev, which has its own Redis",
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
        arguments += ["-Q", ",".join(_with_undo_queues(queues))]
    if concurrency:
        arguments += ["-c", str(concurrency)]
    if host == "":
        raise UsageError("--host is empty", remedy="omit it to use the host name of the machine")
    if host:
        os.environ["LONGSHORE_HOST"] = host
    if labels:
        os.environ["LONGSHORE_LABELS"] = ",".join(labels)
    if host or labels:
        load_settings()  # reject a wrong name here, not with a traceback of the worker
    if current_options().dry_run:
        print_result(f"would run: {' '.join(arguments)}", arguments=arguments)
        return
    os.execv(sys.executable, arguments)  # noqa: S606 - the worker replaces this process and receives its signals


@click.command()
@click.option("--loglevel", default="INFO", show_default=True, help="Log level.")
@global_options
def beat(loglevel: str) -> None:
    """Start Celery beat in the foreground.

    Every LONGSHORE_TICK, beat sends a message, and a worker then starts the plans and jobs that are due. If
    LONGSHORE_ORCHESTRATE_EVERY is set, a worker also restarts stale stacks at this interval. Beat and the workers need
    the same settings. You can run several beats: each planned start happens once.
    """
    if get_settings().redis_url is None:
        raise ConfigError("LONGSHORE_REDIS_URL is not set", remedy="set it; schedules need a permanent Redis")
    arguments = [*_CELERY, "beat", "--pidfile", "", "-l", loglevel]
    if current_options().dry_run:
        print_result(f"would run: {' '.join(arguments)}", arguments=arguments)
        return
    os.execv(sys.executable, arguments)  # noqa: S606 - see worker


@click.command(context_settings={"ignore_unknown_options": True})
@click.option("--port", type=click.IntRange(1, 65535), default=_FLOWER_PORT, show_default=True, help="Port of Flower.")
@click.option(
    "--address",
    default="",
    help="Address of Flower. Default: 127.0.0.1. Any other address except ::1 and localhost needs a login.",
)
@click.option(
    "--read-only",
    is_flag=True,
    help="Show pages without buttons, and refuse Flower's control of workers.",
)
@click.argument("more", nargs=-1, type=click.UNPROCESSED)
@global_options
def flower(port: int, address: str, read_only: bool, more: tuple[str, ...]) -> None:
    """Start Flower with additional pages that show runs.

    Flower runs in the foreground. The pages also have buttons to cancel, resume, undo and approve. MORE are options of
    Flower itself, in the form --NAME=VALUE. To require a login, set FLOWER_BASIC_AUTH=user:password in the environment,
    or configure Flower's OAuth.
    """
    if find_spec("flower") is None:
        raise ConfigError("Flower is missing", remedy="pip install 'longshore[flower]'")
    _require_redis(get_settings())
    arguments = [*_CELERY, "flower", f"--conf={_flower_config()}"]
    arguments += [f"--port={port}", *([f"--address={address}"] if address else [])]
    arguments += [*(["--read_only=true"] if read_only else []), *more]
    if current_options().dry_run:
        print_result(f"would run: {' '.join(arguments)}", arguments=arguments)
        return
    with socket.socket() as test_socket:
        test_socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            test_socket.bind((address or "127.0.0.1", port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:  # Flower reports every other error itself
                raise UsageError(f"port {port} is in use", remedy="choose another with --port") from None
    os.execv(sys.executable, arguments)  # noqa: S606 - see worker


def _flower_config() -> str:
    """The configuration file that adds the pages to Flower, found without importing Flower."""
    found = find_spec("longshore.workers")
    folders = (found.submodule_search_locations if found else None) or [""]
    return f"{folders[0]}/flower_pages/config.py"


def _require_redis(settings: Settings) -> None:
    """Raise ConfigError unless Redis is configured or the embedded server runs."""
    if settings.redis_url is None and not embedded.supervisor_pid(settings.state_dir):
        raise ConfigError(
            "LONGSHORE_REDIS_URL is not set, and no embedded server runs",
            remedy="set it, or start longshore dev in another terminal",
        )


def _with_undo_queues(queues: str) -> list[str]:
    """The queues, each after its undo queue, because workers serve the first queue first."""
    names: list[str] = []
    for name in filter(None, (part.strip() for part in queues.split(","))):
        names += [name] if name == "control" or name.endswith(".undo") else [f"{name}.undo", name]
    return list(dict.fromkeys(names))


@click.command()
@global_options
def dev() -> None:
    """Start Redis, a worker, beat and Flower in the foreground.

    The command is for development on one machine, and needs no configuration. Ctrl-C stops all processes, and kills a
    step that does not end within 60 seconds; the data stay in the state folder (LONGSHORE_STATE_DIR). Flower starts if
    the package flower is installed.

    Exit code 2 if LONGSHORE_REDIS_URL is set, or if an embedded Redis already runs in this state folder.
    """
    settings = get_settings()
    if settings.redis_url is not None:
        raise ConfigError("LONGSHORE_REDIS_URL is set", remedy="unset it for longshore dev, or start longshore worker")
    if current_options().dry_run:
        print_result(f"would start a server, a worker, a beat and Flower, with their state in {settings.state_dir}")
        return
    settings.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    if pid := embedded.supervisor_pid(settings.state_dir):
        raise ConfigError(
            f"a server and a worker run already (process {pid}), with their state in {settings.state_dir}",
            remedy=f"wait until they have been idle for {settings.idle_timeout:g} s, or end another longshore dev",
        )
    print_line(f"server, worker and beat run until Ctrl-C, with state and logs in {settings.state_dir}")
    print_line("use another terminal for longshore run PLAN, longshore runs ls")
    process = subprocess.Popen([sys.executable, "-m", embedded.SUPERVISOR, "--for-ever"])
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # both signals end all parts
    others = list(_start_beat_and_flower(process, settings))
    while True:
        try:
            code = process.wait()
        except KeyboardInterrupt:
            print_line("stopping after the active step, at the latest in 60 seconds", err=True)
            process.terminate()  # a signal to this process alone does not reach the server
            continue
        finally:
            for other in others:
                other.terminate()
        raise SystemExit(code)


def _start_beat_and_flower(server: subprocess.Popen[bytes], settings: Settings) -> Iterator[subprocess.Popen[bytes]]:
    """Start beat, and Flower where it is installed, once the server answers. Their logs go to the state folder."""
    while server.poll() is None and not settings.embedded_socket.exists():
        time.sleep(0.1)
    parts = {"beat": [*_CELERY, "beat", "--pidfile", ""]}
    if find_spec("flower") is not None:
        with socket.socket() as test_socket:
            port_in_use = test_socket.connect_ex(("127.0.0.1", _FLOWER_PORT)) == 0
        if port_in_use:
            print_line(f"Flower not started: port {_FLOWER_PORT} is in use", err=True)
        else:
            parts["flower"] = [*_CELERY, "flower", f"--conf={_flower_config()}", f"--port={_FLOWER_PORT}"]
            print_line(f"pages of runs in Flower: http://127.0.0.1:{_FLOWER_PORT}/runs")
    for name, command in parts.items():
        with (settings.state_dir / f"{name}.log").open("ab") as out:
            yield subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out)

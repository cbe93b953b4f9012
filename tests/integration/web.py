"""Servers of web applications as processes, and their HTTP requests."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import requests

from tests.integration.processes import wait_for


@contextlib.contextmanager
def process(command: Sequence[str], folder: Path, environment: Mapping[str, str], log: Path) -> Iterator[None]:
    """Start a process in its own process group, with its output in a log."""
    with log.open("wb") as output:
        running = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=output, stderr=output, start_new_session=True
        )
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(running.pid, signal.SIGKILL)
        running.wait()


def call(url: str, method: str = "GET", form: Mapping[str, str] | None = None) -> tuple[int, Any]:
    """Send a request; return the status and the JSON of the answer."""
    answer = requests.request(method, url, data=form, timeout=20)
    return answer.status_code, answer.json()


def wait_until_served(url: str, log: Path) -> None:
    """Wait until the server answers, with any status."""

    def answers() -> bool:
        try:
            requests.get(url, timeout=2)
        except requests.ConnectionError:
            return False
        return True

    try:
        wait_for(f"{url} to answer", answers)
    except AssertionError as error:
        raise AssertionError(f"{error}\n{log.read_text()[-3000:]}") from None

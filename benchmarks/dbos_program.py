"""The same work as DBOS workflows. Runs in an environment of its own, and executes one request a line of its input.

Usage: dbos_program.py DATABASE_URL. A request is a JSON list of a name and numbers; its answer is the seconds it took.
"""

from __future__ import annotations

import json
import sys
import time

from dbos import DBOS


@DBOS.step()
def noop() -> None:
    """A step."""


@DBOS.workflow()
def line(length: int) -> None:
    """Run recorded steps, one after the other."""
    for _ in range(length):
        noop()


def workflows(count: int, length: int) -> float:
    """Run concurrent workflows of `length` steps each."""
    began = time.perf_counter()
    for handle in [DBOS.start_workflow(line, length) for _ in range(count)]:
        handle.get_result()
    return time.perf_counter() - began


def main() -> None:
    # Standard output is the channel of answers, and DBOS logs to standard error.
    DBOS(config={"name": "benchmark", "system_database_url": sys.argv[1], "log_level": "ERROR"})
    DBOS.launch()
    print(json.dumps("ready"), flush=True)
    for text in sys.stdin:
        name, *numbers = json.loads(text)
        if name != "workflows":
            raise SystemExit(f"unknown request: {name!r}")
        print(json.dumps(workflows(*numbers)), flush=True)
    DBOS.destroy()


if __name__ == "__main__":
    main()

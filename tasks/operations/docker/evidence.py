"""Evidence about a failed container, read before anything stops or removes it."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from longshore.tasks.host.engine.port import Engine, seconds_of
from longshore.tasks.implementation import Context

#: Lines of output, results of the health check, and characters of each that are kept.
_LINES, _CHECKS, _WIDTH = 50, 3, 500
#: Bytes of output that are read.
_BYTES = 64 * 1024
#: Seconds to wait for the next crash of a container that crashes again and again.
_NEXT_CRASH = 5.0
#: The number of containers that one step describes.
_CONTAINERS = 8


def evidence_of(ctx: Context, docker: Engine, container: str) -> dict[str, Any] | None:
    """Exit code, OOM flag, restarts, the last results of the health check and the last lines of output of a container;
    None if it does not exist.
    """
    raw = _after_crash(docker, container)
    if raw is None:
        return None
    state = raw["State"]
    checks = ((state.get("Health") or {}).get("Log") or [])[-_CHECKS:]
    said = [_lines(ctx.redact(check.get("Output") or "")) for check in checks]
    output = docker.logs(container, _BYTES, tail=_LINES, redact=ctx.redact)
    # An earlier start may have printed the reason as an error, before the present one printed all these lines.
    errors = output.stderr or docker.logs(container, _BYTES, tail=_LINES * 10, redact=ctx.redact).stderr
    found: dict[str, Any] = {
        "container": raw["Name"].removeprefix("/"),
        "image": raw["Config"]["Image"],
        "image_id": raw["Image"],
        "status": state["Status"],
        "exit_code": state["ExitCode"],
        "oom_killed": bool(state["OOMKilled"]),
        "restart_count": raw.get("RestartCount", 0),
        "health": [{"exit_code": one["ExitCode"], "output": text} for one, text in zip(checks, said, strict=True)],
        "stdout": _lines(output.stdout),
        "stderr": _lines(output.stderr),
    }
    return found | {"reason": _reason(found, _lines(errors) or found["stdout"])}


def _after_crash(docker: Engine, container: str) -> dict[str, Any] | None:
    """The state of a container; of one that crashes again and again between two starts, which has an exit code."""
    until = time.monotonic() + _NEXT_CRASH
    while (raw := docker.raw(container)) is not None:
        state = raw["State"]
        is_looping = state["Status"] == "running" and raw.get("RestartCount") and not state.get("Health")
        is_new = is_looping and time.time() - seconds_of(state["StartedAt"]) < _NEXT_CRASH
        if not is_new or time.monotonic() >= until:
            return raw
        time.sleep(0.1)
    return None


def _lines(text: str) -> list[str]:
    return [line[:_WIDTH] for line in text.strip("\n").splitlines()[-_LINES:]]


def reason_of(found: dict[str, Any]) -> str:
    """The line that most likely tells why: of the failed health check, else the last one that was printed."""
    return str(found["reason"])


def _reason(found: dict[str, Any], printed: list[str]) -> str:
    failed = [check for check in found["health"] if check["exit_code"]]
    if failed and found["status"] == "running":
        said = [line.strip() for line in failed[-1]["output"] if line.strip()]
        return said[0] if said else f"its health check exited with {failed[-1]['exit_code']}"
    if found["status"] == "running" and not found["restart_count"]:
        return ""
    if found["oom_killed"]:
        return "out of memory"
    return next((line.strip() for line in reversed(printed) if line.strip()), "")


def collect(ctx: Context, docker: Engine, containers: Iterable[str]) -> list[dict[str, Any]]:
    """The evidence about containers, which also becomes the output of the step."""
    found = [one for each in list(containers)[:_CONTAINERS] if (one := evidence_of(ctx, docker, each)) is not None]
    for one in found:
        memory = ", out of memory" if one["oom_killed"] else ""
        ctx.log(f"{one['container']}: {one['status']}, exit code {one['exit_code']}{memory}, "
                f"restarted {one['restart_count']} times, from {one['image']}")  # fmt: skip
        for check in one["health"]:
            said = " | ".join(check["output"])
            ctx.log(f"{one['container']}: health check exited with {check['exit_code']}: {said}")
        for stream in ("stdout", "stderr"):
            ctx.printed(stream, [f"{one['container']} | {line}" for line in one[stream]])
    return found

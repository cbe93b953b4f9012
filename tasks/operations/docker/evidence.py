"""Evidence about a failed container, read before anything stops or removes it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from longshore.tasks.host.engine.port import Engine
from longshore.tasks.implementation import Context

#: Lines of output, results of the health check, and characters of each that are kept.
_LINES, _CHECKS, _WIDTH = 50, 3, 500
#: Bytes of output that are read.
_BYTES = 64 * 1024
#: The number of containers that one step describes.
_CONTAINERS = 8


def evidence_of(ctx: Context, docker: Engine, container: str) -> dict[str, Any] | None:
    """Exit code, OOM flag, restarts, the last results of the health check and the last lines of output of a container;
    None if it does not exist.
    """
    raw = docker.raw(container)
    if raw is None:
        return None
    state = raw["State"]
    checks = ((state.get("Health") or {}).get("Log") or [])[-_CHECKS:]
    said = [_lines(ctx.redact(check.get("Output") or "")) for check in checks]
    output = docker.logs(container, _BYTES, tail=_LINES, redact=ctx.redact)
    return {
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


def _lines(text: str) -> list[str]:
    return [line[:_WIDTH] for line in text.strip("\n").splitlines()[-_LINES:]]


def reason_of(found: dict[str, Any]) -> str:
    """The line that most likely tells why: of the failed health check, else the last one that was printed."""
    failed = [check for check in found["health"] if check["exit_code"]]
    said = failed[-1]["output"] if failed and found["status"] == "running" else []
    first = next((line.strip() for line in said if line.strip()), "")
    if first or found["status"] == "running":
        return first or (f"its health check exited with {failed[-1]['exit_code']}" if failed else "")
    printed = [line.strip() for line in found["stderr"] or found["stdout"] if line.strip()]
    return "out of memory" if found["oom_killed"] else (printed[-1] if printed else "")


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

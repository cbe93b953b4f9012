"""`node.*`: system information and load of the step's machine, from its files and programs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from longshore.orchestration.errors import OperationError, Preflight
from longshore.orchestration.operations import Operation, node
from longshore.tasks.host.machine.factory import machine_of
from longshore.tasks.host.machine.port import Machine, Program
from longshore.tasks.implementation import Change, Context, NoUndo, Prediction, implements


def _text(machine: Machine, path: str) -> str:
    found = machine.text(path)
    if found is None:
        raise OperationError(f"{path} is missing or unreadable")
    return found


def _output_of(machine: Machine, *argv: str) -> str:
    done = machine.run(Program(argv, machine.environment(), timeout=10.0))
    if done.exit_code:
        raise OperationError(f"{' '.join(argv)} exited with code {done.exit_code}: {done.stderr.strip()}")
    return done.stdout


def hostname(machine: Machine) -> str:
    return _text(machine, "/proc/sys/kernel/hostname").strip()


def system(machine: Machine) -> dict[str, str]:
    words: dict[str, str] = {}
    for path in ("/etc/os-release", "/usr/lib/os-release"):
        if (found := machine.text(path)) is not None:
            pairs = (line.partition("=") for line in found.splitlines() if "=" in line)
            words = {key: value.strip().strip("\"'") for key, _, value in pairs}
            break
    kernel, _, architecture = _output_of(machine, "uname", "-r", "-m").strip().rpartition(" ")
    return {
        "distribution": words.get("ID", "unknown"),
        "version": words.get("VERSION_ID", ""),
        "name": words.get("PRETTY_NAME", ""),
        "kernel": kernel,
        "architecture": architecture,
    }


def disks(machine: Machine, path: str | None = None) -> list[dict[str, Any]]:
    """The file systems in the output of `df`, which omits unreadable ones and then exits with 1."""
    argv = ["df", "-P", "-k", *([path] if path else [])]
    done = machine.run(Program(argv, machine.environment() | {"LC_ALL": "C"}, timeout=10.0))
    found = []
    for line in done.stdout.splitlines()[1:]:
        words = line.split(maxsplit=5)
        if len(words) == 6 and words[1].isdigit() and int(words[1]):
            total, used, available = (int(word) * 1024 for word in words[1:4])
            entry = {"filesystem": words[0], "mount": words[5]}
            found.append(entry | {"total": total, "used": used, "available": available})
    if path and not found:
        raise Preflight(f"{path}: {done.stderr.strip() or 'not on a file system with a size'}")
    return found


def memory(machine: Machine) -> dict[str, int]:
    words = {}
    for line in _text(machine, "/proc/meminfo").splitlines():
        name, _, value = line.partition(":")
        words[name] = int(value.split()[0]) * 1024
    names = {"total": "MemTotal", "free": "MemFree", "available": "MemAvailable", "cached": "Cached"}
    names |= {"swap_total": "SwapTotal", "swap_free": "SwapFree"}
    return {key: words.get(name, 0) for key, name in names.items()}


def uptime(machine: Machine) -> float:
    return float(_text(machine, "/proc/uptime").split()[0])


def load(machine: Machine) -> dict[str, Any]:
    one, five, fifteen = _text(machine, "/proc/loadavg").split()[:3]
    cpus = sum(line.startswith("processor") for line in _text(machine, "/proc/cpuinfo").splitlines())
    return {"load1": float(one), "load5": float(five), "load15": float(fifteen), "cpus": cpus}


def status(machine: Machine) -> dict[str, Any]:
    return {
        "hostname": hostname(machine),
        "os": system(machine),
        "uptime_s": uptime(machine),
        "load": load(machine),
        "memory": memory(machine),
        "disks": disks(machine),
    }


def _query(operation: Operation, what: str, read: Callable[[Context, Machine, Any], dict[str, Any]]) -> None:
    """Register the implementation of a read-only query of the machine."""

    @implements(operation)
    class MachineQuery(NoUndo[Any]):
        def change(self, ctx: Context, params: Any, before: dict[str, Any]) -> Change:
            where = f" of container {ctx.container}" if ctx.container else ""
            yield Prediction(f"would read the {what}{where}", changed=False)
            return read(ctx, machine_of(ctx), params)


_query(node.HOSTNAME, "name", lambda ctx, on, _: {"hostname": hostname(on), "labels": dict(ctx.host.labels)})
_query(node.OS, "distribution and kernel", lambda _ctx, on, _params: system(on))
_query(node.DISK, "disks", lambda _ctx, on, params: {"disks": disks(on, params.path)})
_query(node.MEMORY, "memory", lambda _ctx, on, _params: dict(memory(on)))
_query(node.UPTIME, "uptime", lambda _ctx, on, _params: {"uptime_s": uptime(on)})
_query(node.LOAD, "load", lambda _ctx, on, _params: load(on))
_query(node.STATUS, "state", lambda _ctx, on, _params: status(on))

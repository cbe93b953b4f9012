"""`node.*`: what a machine is and how it stands, out of the files and programs that say so there."""

from __future__ import annotations

from typing import Any

from longshore.orchestration.errors import OperationError, Preflight
from longshore.orchestration.operations import node
from longshore.orchestration.operations.node import DiskParams
from longshore.tasks.host.machine.factory import machine_of
from longshore.tasks.host.machine.port import Machine, Program
from longshore.tasks.implementation import Context, Outcome, Prediction, ReadOnly, implements


def _text(machine: Machine, path: str) -> str:
    found = machine.text(path)
    if found is None:
        raise OperationError(f"{path} cannot be read")
    return found


def _said(machine: Machine, *argv: str) -> str:
    done = machine.run(Program(argv, machine.environment(), timeout=10.0))
    if done.exit_code:
        raise OperationError(f"{' '.join(argv)} ended with exit code {done.exit_code}: {done.stderr.strip()}")
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
    kernel, _, architecture = _said(machine, "uname", "-r", "-m").strip().rpartition(" ")
    return {
        "distribution": words.get("ID", "unknown"),
        "version": words.get("VERSION_ID", ""),
        "name": words.get("PRETTY_NAME", ""),
        "kernel": kernel,
        "architecture": architecture,
    }


def disks(machine: Machine, path: str | None = None) -> list[dict[str, Any]]:
    """As `df` says them. One that cannot be looked at is left out by df itself, which ends with 1 then."""
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
        raise Preflight(f"{path}: {done.stderr.strip() or 'is on no file system that has a size'}")
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


class _Asks(ReadOnly[Any]):
    """Asks the machine."""

    what = ""

    def look(self, ctx: Context, machine: Machine, params: Any) -> dict[str, Any]:
        raise NotImplementedError

    def act(self, ctx: Context, params: Any, before: dict[str, Any]) -> Outcome:
        return Outcome(changed=False, data=self.look(ctx, machine_of(ctx), params))

    def predict(self, ctx: Context, params: Any) -> Prediction:
        where = f" of container {ctx.container}" if ctx.container else ""
        return Prediction(f"would look at the {self.what}{where}", changed=False)


@implements(node.HOSTNAME)
class Hostname(_Asks):
    """See its schema."""

    what = "name"

    def look(self, ctx: Context, machine: Machine, params: Any) -> dict[str, Any]:
        return {"hostname": hostname(machine), "labels": dict(ctx.host.labels)}


@implements(node.OS)
class Os(_Asks):
    """See its schema."""

    what = "distribution and kernel"

    def look(self, ctx: Context, machine: Machine, params: Any) -> dict[str, Any]:
        return system(machine)


@implements(node.DISK)
class Disk(_Asks):
    """See its schema."""

    what = "disks"

    def look(self, ctx: Context, machine: Machine, params: DiskParams) -> dict[str, Any]:
        return {"disks": disks(machine, params.path)}


@implements(node.MEMORY)
class Memory(_Asks):
    """See its schema."""

    what = "memory"

    def look(self, ctx: Context, machine: Machine, params: Any) -> dict[str, Any]:
        return dict(memory(machine))


@implements(node.UPTIME)
class Uptime(_Asks):
    """See its schema."""

    what = "time since its start"

    def look(self, ctx: Context, machine: Machine, params: Any) -> dict[str, Any]:
        return {"uptime_s": uptime(machine)}


@implements(node.LOAD)
class Load(_Asks):
    """See its schema."""

    what = "load"

    def look(self, ctx: Context, machine: Machine, params: Any) -> dict[str, Any]:
        return load(machine)


@implements(node.STATUS)
class Status(_Asks):
    """See its schema."""

    what = "state"

    def look(self, ctx: Context, machine: Machine, params: Any) -> dict[str, Any]:
        return {
            "hostname": hostname(machine),
            "os": system(machine),
            "uptime_s": uptime(machine),
            "load": load(machine),
            "memory": memory(machine),
            "disks": disks(machine),
        }

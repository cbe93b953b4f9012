"""A private Docker engine with all its data in the checkout.

The engine runs in its own process and mount namespaces, which one process, the holder, keeps alive. The holder ends
with this process, and the kernel then ends the engine, its containers and its mounts. The engine shares the network of
the machine, because tests use published ports and the engine uses a registry on loopback. The engine does not change
the firewall, the forwarding or the bridges of other engines.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import IO

from tests.machine.packages import UnavailableError

PROGRAMS = ("dockerd", "containerd", "docker", "iptables", "ip", "unshare", "setpriv")
PACKAGES = ["docker.io", "docker-cli", "iptables", "iproute2"]

# Paths outside of the configured folders that dockerd and containerd always create, parents first.
OUTSIDE = [
    "/etc/docker",
    "/etc/docker/key.json",
    "/opt/containerd",
    "/opt/containerd/bin",
    "/opt/containerd/lib",
]

# The first process of the namespace reaps orphaned processes. A private /run has the sockets with fixed paths.
INIT = 'mount --no-mtab -t tmpfs tmpfs /run && { dockerd "$@" & wait; }'

# The holder of the namespaces, which the kernel kills at the end of this process.
HOLDER = ["setpriv", "--pdeathsig", "KILL", "unshare", "--fork", "--kill-child"]
HOLDER += ["--pid", "--mount-proc", "--mount", "--propagation", "slave"]

LONGEST_SOCKET = "exec/containerd/containerd-debug.sock"
SOCKET_LIMIT = 107


class Engine:
    def __init__(self, home: Path, short: Path) -> None:
        """All data are in `home`. If the path of `home` is too long for sockets, the sockets are in `short`."""
        mark = hashlib.sha256(os.fsencode(home)).hexdigest()[:8]
        self.name = f"longshore-{mark}"
        self.bridge = f"ls-{mark}"
        self.home = home
        self.short = short
        self.sockets = home if len(os.fsencode(home / LONGEST_SOCKET)) <= SOCKET_LIMIT else short
        self.url = f"unix://{self.sockets / 'docker.sock'}"
        self.log = home / "engine.log"
        self.state = home / "state.json"
        self.made: list[str] = []
        self.holder: subprocess.Popen[bytes] | None = None
        self.lock: IO[str] | None = None

    def start(self) -> None:
        self.home.mkdir(parents=True, exist_ok=True)
        self.lock = (self.home / "lock").open("w")
        fcntl.flock(self.lock, fcntl.LOCK_EX)  # one engine per checkout at a time
        self.made = [path for path in OUTSIDE if not Path(path).exists()] + self._end_killed_run()
        self._save()
        if not output("ip", "link", "show", self.bridge):
            run("ip", "link", "add", self.bridge, "type", "bridge")
        self._let_bridges_pass()
        temporary = self.home / "tmp"  # containerd writes its stack traces there after a slow start
        temporary.mkdir(exist_ok=True)
        with self.log.open("wb") as log:
            self.holder = subprocess.Popen(
                [*HOLDER, "sh", "-c", INIT, "dockerd", *self._options()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "TMPDIR": str(temporary)},
                start_new_session=True,  # no Ctrl-C: the tests still need the engine for their cleanup
            )
        self._save()
        self._wait_until_ready()
        self._remove_everything()  # containers and networks of a killed run

    def stop(self) -> None:
        """End the engine, also after a failed start. A second call has no effect."""
        if self.lock is None:
            return
        if self.holder and self.holder.poll() is None:
            self._remove_everything()  # the engine removes networks, veth pairs and cgroups
            self.holder.kill()
        try:
            if self.holder:
                self.holder.wait()
                self._wait_until_processes_end(self.sockets)
        finally:
            self._remove_traces()
            self.lock.close()
            self.lock = None

    def _options(self) -> list[str]:
        config = self.home / "daemon.json"
        config.write_text("{}")  # instead of the configuration of the machine's engine
        values = {
            "config-file": config,
            "host": self.url,
            "data-root": self.home / "data",
            "exec-root": self.sockets / "exec",
            "pidfile": self.sockets / "dockerd.pid",
            "bridge": self.bridge,
            "iptables": "false",
            "ip6tables": "false",
            "ip-forward": "false",
            "ip-masq": "false",
            "exec-opt": "native.cgroupdriver=cgroupfs",
            "cgroup-parent": f"/{self.name}",
        }
        return [f"--{name}={value}" for name, value in values.items()]

    def _end_killed_run(self) -> list[str]:
        """End the engine of a killed run. Returns the paths that the killed run has created."""
        if not self.state.exists():
            return []
        left = json.loads(self.state.read_text())
        sockets = Path(left["sockets"])
        if left["pid"] and str(sockets) in command_line(left["pid"]):
            os.kill(left["pid"], signal.SIGKILL)
        self._wait_until_processes_end(sockets)
        # The engine needs its data to find its bridges.
        remove_sockets(sockets)
        shutil.rmtree(left["short"], ignore_errors=True)
        return list(left["made"])

    def _save(self) -> None:
        pid = self.holder.pid if self.holder else None
        state = {"pid": pid, "sockets": str(self.sockets), "short": str(self.short), "made": self.made}
        self.state.write_text(json.dumps(state))

    def _let_bridges_pass(self) -> None:
        """Allow packets between containers, which the firewall rules of another engine drop, even after its end."""
        switch = Path("/proc/sys/net/bridge/bridge-nf-call-iptables")
        # Without rules, the firewall drops nothing, and a first rule would create a table.
        has_rules = output("iptables", "-w", "-S", "FORWARD") != "-P FORWARD ACCEPT"
        if has_rules and switch.exists() and switch.read_text().strip() == "1":
            self._drop_rule()
            run("iptables", "-w", "-I", *self._rule())

    def _drop_rule(self) -> None:
        for _ in range(output("iptables", "-w", "-S", "FORWARD").count(self.name)):
            run("iptables", "-w", "-D", *self._rule())

    def _rule(self) -> list[str]:
        match = ["-m", "physdev", "--physdev-is-bridged", "-m", "comment", "--comment", self.name]
        return ["FORWARD", *match, "-j", "ACCEPT"]

    def _docker(self, *words: str) -> str:
        return output("docker", "--host", self.url, *words)

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + 60
        while not self._docker("version", "--format", "{{.Server.Version}}"):
            if self.holder is None or self.holder.poll() is not None or time.monotonic() > deadline:
                lines = self.log.read_text(errors="replace").rstrip().splitlines() or ["no output"]
                raise UnavailableError(f"no Docker engine: dockerd did not start: {lines[-1]}")
            time.sleep(0.1)

    def _remove_everything(self) -> None:
        containers = self._docker("ps", "--all", "--quiet").split()
        if containers:
            self._docker("rm", "--force", "--volumes", *containers)
        self._docker("network", "prune", "--force")

    def _wait_until_processes_end(self, sockets: Path) -> None:
        mark = str(sockets / "exec")
        deadline = time.monotonic() + 20
        while any(mark in command_line(int(p.name)) for p in Path("/proc").glob("[0-9]*")):
            if time.monotonic() > deadline:
                raise RuntimeError(f"processes of the test engine still run: search for {mark} in the process list")
            time.sleep(0.02)

    def _remove_traces(self) -> None:
        if output("ip", "link", "show", self.bridge):
            run("ip", "link", "delete", self.bridge)
        self._drop_rule()
        for root in [Path("/sys/fs/cgroup") / self.name, *Path("/sys/fs/cgroup").glob(f"*/{self.name}")]:
            for folder, _, _ in os.walk(root, topdown=False):
                remove_folder(folder)
        for path in sorted(set(self.made), reverse=True):
            if Path(path).is_dir():
                remove_folder(path)
            else:
                Path(path).unlink(missing_ok=True)
        remove_sockets(self.sockets)
        for folder in ("data", "tmp"):
            shutil.rmtree(self.home / folder, ignore_errors=True)
        self.state.unlink(missing_ok=True)


def remove_sockets(folder: Path) -> None:
    shutil.rmtree(folder / "exec", ignore_errors=True)
    (folder / "docker.sock").unlink(missing_ok=True)
    # The file has a process id of the engine's namespace. The next engine would refuse to start.
    (folder / "dockerd.pid").unlink(missing_ok=True)


def remove_folder(path: str) -> None:
    with contextlib.suppress(OSError):  # missing, or in use by another engine
        os.rmdir(path)


def command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def output(*command: str, timeout: float = 60) -> str:
    """The output of a command, or an empty text if the command fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UnavailableError(f"no Docker engine: `{' '.join(command)}` failed: {done.stderr.strip()}")

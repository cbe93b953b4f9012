"""A Docker engine of our own, which keeps everything in the checkout and leaves nothing behind.

It runs in process and mount namespaces of its own, held by one process that dies with us: when that one
is killed, the kernel ends the engine, its containers and its mounts with it. It shares the machine's
network, for tests reach published ports and the engine reaches a registry on the loopback; but it never
touches the machine's firewall, forwarding, or another engine's bridge.
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

# What dockerd and containerd make elsewhere whatever they are told, parents first.
OUTSIDE = [
    "/etc/docker",
    "/etc/docker/key.json",
    "/opt/containerd",
    "/opt/containerd/bin",
    "/opt/containerd/lib",
]

# Its first process reaps what the shims leave. /run is its own, for the sockets that have fixed places.
INIT = 'mount --no-mtab -t tmpfs tmpfs /run && { dockerd "$@" & wait; }'

# Dies with us, and takes everything inside with it.
HOLDER = ["setpriv", "--pdeathsig", "KILL", "unshare", "--fork", "--kill-child"]
HOLDER += ["--pid", "--mount-proc", "--mount", "--propagation", "slave"]

LONGEST_SOCKET = "exec/containerd/containerd-debug.sock"
SOCKET_LIMIT = 107


class Engine:
    def __init__(self, home: Path, short: Path) -> None:
        """`home` takes all; only the sockets go to the folder `short` if the way to `home` is too long."""
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
        fcntl.flock(self.lock, fcntl.LOCK_EX)  # two runs in one checkout take turns
        self.made = [path for path in OUTSIDE if not Path(path).exists()] + self._end_killed_run()
        self._save()
        if not output("ip", "link", "show", self.bridge):
            run("ip", "link", "add", self.bridge, "type", "bridge")
        self._let_bridges_pass()
        temporary = self.home / "tmp"  # containerd writes its stacks there when it is slow to come up
        temporary.mkdir(exist_ok=True)
        with self.log.open("wb") as log:
            self.holder = subprocess.Popen(
                [*HOLDER, "sh", "-c", INIT, "dockerd", *self._options()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "TMPDIR": str(temporary)},
                start_new_session=True,  # Ctrl-C is for the tests: they still need the engine to clean up
            )
        self._save()
        self._wait_until_it_answers()
        self._remove_everything()  # what a killed run has left in the data

    def stop(self) -> None:
        """End all of it, also when it never came up. Called twice, it does nothing the second time."""
        if self.lock is None:
            return
        if self.holder and self.holder.poll() is None:
            self._remove_everything()  # the engine itself takes away networks, veth pairs and cgroups
            self.holder.kill()
        try:
            if self.holder:
                self.holder.wait()
                self._wait_until_all_are_gone(self.sockets)
        finally:
            self._take_back()
            self.lock.close()
            self.lock = None

    def _options(self) -> list[str]:
        config = self.home / "daemon.json"
        config.write_text("{}")  # the machine's own file is for another engine
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
        """Finish off what a run left that could not stop its engine; gives the paths which it had made."""
        if not self.state.exists():
            return []
        left = json.loads(self.state.read_text())
        sockets = Path(left["sockets"])
        if left["pid"] and str(sockets) in command_line(left["pid"]):
            os.kill(left["pid"], signal.SIGKILL)
        self._wait_until_all_are_gone(sockets)
        # The data stay: only the engine knows from them which bridges are its own.
        remove_sockets(sockets)
        shutil.rmtree(left["short"], ignore_errors=True)
        return list(left["made"])

    def _save(self) -> None:
        pid = self.holder.pid if self.holder else None
        state = {"pid": pid, "sockets": str(self.sockets), "short": str(self.short), "made": self.made}
        self.state.write_text(json.dumps(state))

    def _let_bridges_pass(self) -> None:
        """Another engine, also one long gone, makes the firewall drop what passes between containers."""
        switch = Path("/proc/sys/net/bridge/bridge-nf-call-iptables")
        # Without rules there is nothing to do, and a first rule would leave an empty table behind.
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

    def _wait_until_it_answers(self) -> None:
        deadline = time.monotonic() + 60
        while not self._docker("version", "--format", "{{.Server.Version}}"):
            if self.holder is None or self.holder.poll() is not None or time.monotonic() > deadline:
                lines = self.log.read_text(errors="replace").rstrip().splitlines() or ["it said nothing"]
                raise UnavailableError(f"no Docker engine: dockerd did not start: {lines[-1]}")
            time.sleep(0.1)

    def _remove_everything(self) -> None:
        containers = self._docker("ps", "--all", "--quiet").split()
        if containers:
            self._docker("rm", "--force", "--volumes", *containers)
        self._docker("network", "prune", "--force")

    def _wait_until_all_are_gone(self, sockets: Path) -> None:
        mark = str(sockets / "exec")
        deadline = time.monotonic() + 20
        while any(mark in command_line(int(p.name)) for p in Path("/proc").glob("[0-9]*")):
            if time.monotonic() > deadline:
                raise RuntimeError(f"processes of the test engine are left: look for {mark}")
            time.sleep(0.02)

    def _take_back(self) -> None:
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
    # It holds a number of the engine's own process namespace, which would stop the next engine.
    (folder / "dockerd.pid").unlink(missing_ok=True)


def remove_folder(path: str) -> None:
    with contextlib.suppress(OSError):  # gone, or in use by another engine
        os.rmdir(path)


def command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def output(*command: str, timeout: float = 60) -> str:
    """What a command prints; nothing if it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UnavailableError(f"no Docker engine: `{' '.join(command)}` failed: {done.stderr.strip()}")

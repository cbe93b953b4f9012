"""What is missing, from the machine's own distribution: installed, or only unpacked into the checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SERVICES = ("redis-server", "dockerd", "containerd")
QUIET = ["-qq", "-o", "Acquire::Retries=3", "-o", "Acquire::Languages=none", "-o", "DPkg::Lock::Timeout=120"]


class UnavailableError(Exception):
    """A server or tool is missing and cannot be had; the message is one line for the person."""


def can_install() -> bool:
    return os.geteuid() == 0 and shutil.which("apt-get") is not None


def install(wanted: list[str], log: Path) -> None:
    """Install packages, those of them that this distribution has, without starting a service."""
    run_logged(["apt-get", *QUIET, "update"], log)
    known = [name for name in wanted if candidate(name)]
    running = set(service_pids())
    run_logged(["apt-get", *QUIET, "install", "-y", "--no-install-recommends", *known], log)
    # Where neither systemd nor a policy-rc.d holds them back, the packages' scripts start their services.
    for service in {name for pid, name in service_pids().items() if pid not in running}:
        name = "docker" if service == "dockerd" else service
        run_logged(["service", name, "stop"], log)


def service_pids() -> dict[int, str]:
    found = {}
    for comm in Path("/proc").glob("[0-9]*/comm"):
        try:
            name = comm.read_text().strip()
        except OSError:  # the process has ended meanwhile
            continue
        if name in SERVICES:
            found[int(comm.parent.name)] = name
    return found


def fetch_compose(target: Path, scratch: Path, log: Path) -> None:
    """Put a Compose v2 plugin at `target`, out of the distribution's package or that of Debian 13."""
    if shutil.which("apt-get") is None:
        raise UnavailableError("Docker Compose v2 is missing, and there is no apt-get to fetch it")
    scratch.mkdir(parents=True, exist_ok=True)
    name = next((n for n in ("docker-compose-v2", "docker-compose") if is_version_2(candidate(n))), None)
    options: list[str] = []
    if name is None:
        name, options = "docker-compose", debian_13(scratch)
        run_logged(["apt-get", *QUIET, *options, "update"], log)
    unpacked = unpack(name, scratch, log, options)
    plugin = next(unpacked.glob("usr/*/docker/cli-plugins/docker-compose"), None)
    if plugin is None:
        raise UnavailableError(f"the package {name} holds no Compose plugin")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(plugin, target)
    target.chmod(0o755)
    shutil.rmtree(scratch)


def find_busybox() -> Path | None:
    """A static busybox: the machine's own, or the one that was fetched."""
    for path in map(Path, filter(None, (shutil.which("busybox"), str(ROOT / ".dev/busybox")))):
        # A dynamic program names its loader in its first bytes; it would not run in an empty image.
        if path.exists() and b"/ld-" not in path.read_bytes()[:4096]:
            return path
    return None


def fetch_busybox(scratch: Path, log: Path) -> None:
    """Only unpacked: installed, the package would replace the busybox that is there."""
    if shutil.which("apt-get") is None:
        raise UnavailableError("a static busybox is missing, and there is no apt-get to fetch it")
    scratch.mkdir(parents=True, exist_ok=True)
    unpacked = unpack("busybox-static", scratch, log)
    found = next(path for path in (unpacked / "usr/bin/busybox", unpacked / "bin/busybox") if path.exists())
    shutil.copy(found, ROOT / ".dev/busybox")
    shutil.rmtree(scratch)


def find_registry() -> Path | None:
    """An image registry: the machine's own, or the one that was fetched."""
    for path in map(Path, filter(None, (shutil.which("docker-registry"), str(ROOT / ".dev/docker-registry")))):
        if path.exists():
            return path
    return None


def fetch_registry(scratch: Path, log: Path) -> None:
    """Only unpacked: installed, the package would start a service."""
    if shutil.which("apt-get") is None:
        raise UnavailableError("an image registry is missing, and there is no apt-get to fetch it")
    scratch.mkdir(parents=True, exist_ok=True)
    unpacked = unpack("docker-registry", scratch, log)
    shutil.copy(unpacked / "usr/bin/docker-registry", ROOT / ".dev/docker-registry")
    shutil.rmtree(scratch)


def unpack(package: str, scratch: Path, log: Path, options: list[str] | None = None) -> Path:
    # apt-get can download without being root, but not as its own user into a person's folder.
    as_me = ["-o", "APT::Sandbox::User=root", *(options or [])]
    run_logged(["apt-get", *QUIET, *as_me, "download", package], log, cwd=scratch)
    unpacked = scratch / "unpacked"
    run_logged(["dpkg", "-x", str(next(scratch.glob(f"{package}_*.deb"))), str(unpacked)], log)
    return unpacked


def candidate(package: str) -> str:
    """The version that apt would install, or nothing."""
    answer = subprocess.run(["apt-cache", "policy", package], capture_output=True, text=True, check=False)
    lines = [line.strip() for line in answer.stdout.splitlines()]
    version = next((line.split()[1] for line in lines if line.startswith("Candidate:")), "(none)")
    return "" if version == "(none)" else version


def is_version_2(version: str) -> bool:
    """Version 2 or newer, of Compose; an epoch may stand before it."""
    major = version.rsplit(":", maxsplit=1)[-1].split(".", maxsplit=1)[0]
    return major.isdigit() and int(major) >= 2


def debian_13(scratch: Path) -> list[str]:
    """Options that let apt see Debian 13 from this machine's own mirror, with lists and caches of our own."""
    release = os_release("VERSION_CODENAME")
    suffix, entry = next(debian_entries(release), ("", ""))
    if os_release("ID") != "debian" or not entry:
        raise UnavailableError("Docker Compose v2 is missing here, and in this distribution's packages")
    lists = scratch / "lists"
    (lists / "partial").mkdir(parents=True)
    (scratch / "cache/archives/partial").mkdir(parents=True)
    sources = scratch / f"trixie{suffix}"
    sources.write_text(entry)
    values = {
        "Dir::Etc::sourcelist": sources,
        "Dir::Etc::sourceparts": "/nonexistent",
        "Dir::State::Lists": lists,
        "Dir::Cache": scratch / "cache",
        "APT::Sandbox::User": "root",
    }
    return [word for key, value in values.items() for word in ("-o", f"{key}={value}")]


def debian_entries(release: str) -> Iterator[tuple[str, str]]:
    """The apt sources of this release, each rewritten for trixie: (the file's suffix, its text)."""
    etc = Path("/etc/apt")
    for file in sorted(etc.glob("sources.list.d/*.sources")):
        for paragraph in file.read_text().split("\n\n"):
            lines = [line for line in paragraph.splitlines() if not line.startswith("#")]
            fields = {line.split(":", 1)[0]: line.split(":", 1)[1].split() for line in lines if ":" in line}
            if release in fields.get("Suites", []) and "main" in fields.get("Components", []):
                changed = {"Suites": "trixie", "Components": "main", "Types": "deb"}
                kept = [line for line in lines if line.split(":", 1)[0] not in changed]
                yield ".sources", "\n".join([*(f"{k}: {v}" for k, v in changed.items()), *kept]) + "\n"
    for file in [etc / "sources.list", *sorted(etc.glob("sources.list.d/*.list"))]:
        for line in file.read_text().splitlines() if file.exists() else []:
            words = line.split()
            if words[:1] == ["deb"] and release in words and "main" in words:
                yield ".list", " ".join([*words[: words.index(release)], "trixie", "main"]) + "\n"


def os_release(key: str) -> str:
    lines = Path("/etc/os-release").read_text().splitlines()
    return next((line.split("=", 1)[1].strip('"') for line in lines if line.startswith(f"{key}=")), "")


def run_logged(command: list[str], log: Path, cwd: Path | None = None) -> None:
    """Run it, its output in the log; a failure says where to look and what the last words were."""
    log.parent.mkdir(parents=True, exist_ok=True)
    # SYSTEMD_OFFLINE makes systemctl ignore a `start`; needrestart would restart a person's services.
    calm = {"DEBIAN_FRONTEND": "noninteractive", "SYSTEMD_OFFLINE": "1", "NEEDRESTART_SUSPEND": "1"}
    with log.open("a") as out:
        print("$", *command, file=out, flush=True)
        # In a session of its own, for Ctrl-C would leave a package half installed.
        process = subprocess.Popen(
            command, stdout=out, stderr=out, cwd=cwd, env={**os.environ, **calm}, start_new_session=True
        )
        try:
            process.wait()
        except BaseException:
            process.wait()
            raise
    if process.returncode:
        last = log.read_text(errors="replace").rstrip().splitlines()[-1]
        raise UnavailableError(f"{command[0]} failed: {last} (more in {log.parent.name}/{log.name})")

"""Missing servers and tools from packages of the distribution, installed or unpacked into the checkout."""

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
    """A server or tool is missing and not available. The message is one line for the user."""


def can_install() -> bool:
    return os.geteuid() == 0 and shutil.which("apt-get") is not None


def install(wanted: list[str], log: Path) -> None:
    """Install those of the packages that the distribution has, without their services."""
    run_logged(["apt-get", *QUIET, "update"], log)
    known = [name for name in wanted if candidate(name)]
    running = set(service_pids())
    run_logged(["apt-get", *QUIET, "install", "-y", "--no-install-recommends", *known], log)
    # Without systemd and policy-rc.d, the scripts of the packages start their services.
    for service in {name for pid, name in service_pids().items() if pid not in running}:
        name = "docker" if service == "dockerd" else service
        run_logged(["service", name, "stop"], log)


def service_pids() -> dict[int, str]:
    found = {}
    for comm in Path("/proc").glob("[0-9]*/comm"):
        try:
            name = comm.read_text().strip()
        except OSError:  # the process has ended
            continue
        if name in SERVICES:
            found[int(comm.parent.name)] = name
    return found


def fetch_compose(target: Path, scratch: Path, log: Path) -> None:
    """Copy a Compose v2 plugin to `target`, from a package of the distribution or of Debian 13."""
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
        raise UnavailableError(f"the package {name} has no Compose plugin")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(plugin, target)
    target.chmod(0o755)
    shutil.rmtree(scratch)


def find_busybox() -> Path | None:
    """The path of a static busybox, installed or fetched."""
    for path in map(Path, filter(None, (shutil.which("busybox"), str(ROOT / ".dev/busybox")))):
        # The head of a dynamic program names its loader. Such a program does not run in an empty image.
        if path.exists() and b"/ld-" not in path.read_bytes()[:4096]:
            return path
    return None


def fetch_busybox(scratch: Path, log: Path) -> None:
    """Unpack a static busybox. An installation would replace the busybox of the machine."""
    if shutil.which("apt-get") is None:
        raise UnavailableError("a static busybox is missing, and there is no apt-get to fetch it")
    scratch.mkdir(parents=True, exist_ok=True)
    unpacked = unpack("busybox-static", scratch, log)
    found = next(path for path in (unpacked / "usr/bin/busybox", unpacked / "bin/busybox") if path.exists())
    shutil.copy(found, ROOT / ".dev/busybox")
    shutil.rmtree(scratch)


def find_registry() -> Path | None:
    """The path of an image registry, installed or fetched."""
    for path in map(Path, filter(None, (shutil.which("docker-registry"), str(ROOT / ".dev/docker-registry")))):
        if path.exists():
            return path
    return None


def fetch_registry(scratch: Path, log: Path) -> None:
    """Unpack an image registry. An installation would start a service."""
    if shutil.which("apt-get") is None:
        raise UnavailableError("an image registry is missing, and there is no apt-get to fetch it")
    scratch.mkdir(parents=True, exist_ok=True)
    unpacked = unpack("docker-registry", scratch, log)
    shutil.copy(unpacked / "usr/bin/docker-registry", ROOT / ".dev/docker-registry")
    shutil.rmtree(scratch)


def unpack(package: str, scratch: Path, log: Path, options: list[str] | None = None) -> Path:
    # As root: apt's own user cannot write into a private folder.
    as_me = ["-o", "APT::Sandbox::User=root", *(options or [])]
    run_logged(["apt-get", *QUIET, *as_me, "download", package], log, cwd=scratch)
    unpacked = scratch / "unpacked"
    run_logged(["dpkg", "-x", str(next(scratch.glob(f"{package}_*.deb"))), str(unpacked)], log)
    return unpacked


def candidate(package: str) -> str:
    """The version that apt would install, or an empty text."""
    answer = subprocess.run(["apt-cache", "policy", package], capture_output=True, text=True, check=False)
    lines = [line.strip() for line in answer.stdout.splitlines()]
    version = next((line.split()[1] for line in lines if line.startswith("Candidate:")), "(none)")
    return "" if version == "(none)" else version


def is_version_2(version: str) -> bool:
    """Whether a version of Compose, with or without an epoch, is at least 2."""
    major = version.rsplit(":", maxsplit=1)[-1].split(".", maxsplit=1)[0]
    return major.isdigit() and int(major) >= 2


def debian_13(scratch: Path) -> list[str]:
    """Options of apt for Debian 13 from the mirror of this machine, with separate lists and caches."""
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
    """The suffix and text of each apt source of this release, rewritten for trixie."""
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
    """Run a command with its output in the log. The error of a failure has the last line and the path of the log."""
    log.parent.mkdir(parents=True, exist_ok=True)
    # With SYSTEMD_OFFLINE, systemctl ignores `start`. Without NEEDRESTART_SUSPEND, needrestart restarts other services.
    calm = {"DEBIAN_FRONTEND": "noninteractive", "SYSTEMD_OFFLINE": "1", "NEEDRESTART_SUSPEND": "1"}
    with log.open("a") as out:
        print("$", *command, file=out, flush=True)
        # In its own session: Ctrl-C would leave a package half installed.
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

"""Demo: one release succeeds. The check of the next release fails, and this release is compensated.

The demo runs in `.dev/demo` of the checkout, with an embedded Redis and an embedded worker, which the demo stops at the
end. If a Docker engine with Compose answers, the shop is a Compose stack, with images that the demo builds.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent / ".dev" / "demo"
PROJECT = "longshore-demo"
IMAGE = "longshore-demo-shop"
LONGSHORE = [sys.executable, "-m", "longshore.orchestration.cli"]


def say(text: str) -> None:
    print(f"\n\033[1m── {text}\033[0m" if sys.stdout.isatty() else f"\n── {text}", flush=True)


def longshore(*arguments: str) -> int:
    shown = " ".join(arguments).replace(f"{HERE}/", "examples/demo/").replace(str(ROOT), ".dev/demo")
    print(f"$ longshore {shown}", flush=True)
    return subprocess.run([*LONGSHORE, *arguments], check=False).returncode


def snapshot(folder: Path) -> dict[str, str]:
    """Digest, mode and owner of each file."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            info = path.stat()
            digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
            found[str(path.relative_to(folder))] = (
                f"{digest} {stat.S_IMODE(info.st_mode):04o} {info.st_uid}:{info.st_gid}"
            )
    return found


def docker(*arguments: str) -> str:
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


def has_docker() -> str | None:
    """None if the demo can run the stack, else the reason."""
    if shutil.which("docker") is None:
        return "no docker program"
    if not docker("version", "--format", "{{.Server.Version}}"):
        return "no Docker engine answers"
    if not docker("compose", "version", "--short"):
        return "no Compose v2 plugin"
    if not static_busybox():
        return "no static busybox to build an image from (Debian: busybox-static)"
    return None


def static_busybox() -> str | None:
    """Path of a statically linked busybox, which needs no other file in an image."""
    path = shutil.which("busybox")
    if path is None:
        return None
    linked = subprocess.run(["ldd", path], capture_output=True, text=True, check=False)
    return None if linked.returncode == 0 else path


def build_images() -> None:
    """Build an image for each release from a static busybox."""
    for tag in ("1.0", "2.0"):
        with tempfile.TemporaryDirectory(dir=ROOT) as folder:
            shutil.copy(str(static_busybox()), Path(folder) / "busybox")
            Path(folder, "release").write_text(f"{tag}\n")
            Path(folder, "Dockerfile").write_text(
                'FROM scratch\nCOPY busybox /bin/busybox\nRUN ["/bin/busybox", "--install", "-s", "/bin"]\n'
                "COPY release /release\n"
            )
            subprocess.run(
                ["docker", "build", "-q", "-t", f"{IMAGE}:{tag}", folder], check=True, stdout=subprocess.DEVNULL
            )


def stack() -> dict[str, str]:
    """Image id of each running service."""
    ids = docker("ps", "-q", "--no-trunc", "--filter", f"label=com.docker.compose.project={PROJECT}").split()
    label = '{{index .Config.Labels "com.docker.compose.service"}} {{.Image}}'
    return dict(line.split() for line in docker("inspect", "--format", label, *ids).splitlines()) if ids else {}


def clean_up_docker() -> None:
    """Remove the containers, networks and images of the demo."""
    label = f"label=com.docker.compose.project={PROJECT}"
    if containers := docker("ps", "-aq", "--filter", label).split():
        docker("rm", "-f", "-v", *containers)
    if networks := docker("network", "ls", "-q", "--filter", label).split():
        docker("network", "rm", *networks)
    ids = {docker("image", "inspect", "--format", "{{.Id}}", f"{IMAGE}:{tag}") for tag in ("1.0", "2.0")} - {""}
    for image in ids:
        docker("rmi", "-f", image)


def stop_supervisor() -> None:
    """Stop the embedded server at once, instead of after its idle timeout."""
    pid_file = ROOT / "state" / "supervisor.lock"
    if not pid_file.exists() or not pid_file.read_text().strip():
        return
    pid = int(pid_file.read_text())
    try:
        if str(ROOT / "state").encode() in Path(f"/proc/{pid}/environ").read_bytes():
            os.kill(pid, signal.SIGTERM)
            while Path(f"/proc/{pid}").exists():
                time.sleep(0.05)
    except (OSError, ValueError):
        pass


def show(before: dict[str, str], after: dict[str, str], what: str) -> bool:
    same = before == after
    for name, state in after.items():
        mark = "=" if before.get(name) == state else "≠"
        print(f"   {mark} {name}  {state}")
    for name in before.keys() - after.keys():
        print(f"   ≠ {name}  is missing")
    print(f"   {what}: {'exactly as before' if same else 'NOT as before'}")
    return same


def main() -> int:
    stop_supervisor()
    shutil.rmtree(ROOT, ignore_errors=True)
    shop = ROOT / "shop"
    (shop / "www").mkdir(parents=True)
    os.environ["LONGSHORE_STATE_DIR"] = str(ROOT / "state")
    os.environ.pop("LONGSHORE_REDIS_URL", None)
    missing = has_docker()
    try:
        return story(shop, with_stack=missing is None, missing=missing or "")
    finally:
        stop_supervisor()
        if missing is None:
            clean_up_docker()


def story(shop: Path, *, with_stack: bool, missing: str) -> int:
    plan = HERE / ("release-stack.yaml" if with_stack else "release.yaml")
    more = ["-p", f"project={PROJECT}"] if with_stack else []
    if with_stack:
        say("A Docker engine answers: building the images of two releases")
        clean_up_docker()
        build_images()
        shutil.copytree(HERE / "stack", shop / "stack")
    else:
        say(f"Files and processes only: {missing}")

    say("The plan")
    longshore("plan", "levels", str(plan))

    say("Release 1.0 succeeds")
    first = longshore("run", str(plan), "-p", "tag=1.0", "-p", f"root={shop}", *more, "--run-id", "release-1.0")
    files, images = snapshot(shop), stack()

    say("Release 2.0 fails in its check, and is compensated")
    second = longshore("run", str(plan), "-p", "tag=2.0", "-p", f"root={shop}", *more, "--run-id", "release-2.0")

    say("The state after release 2.0")
    same = show(files, snapshot(shop), "the files, by content, mode and owner")
    if with_stack:
        same &= show(images, stack(), "the stack's image ids")
    print(f"   the always step ran both times: {(ROOT / 'releases.log').read_text().split(chr(10))[:2]}")

    say("The records of both runs")
    longshore("runs", "ls")
    good = first == 0 and second == 1 and same
    say("The demo did what it promised" if good else f"The demo FAILED (exit codes {first}, {second})")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())

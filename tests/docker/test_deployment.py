"""The compose file of the deployment is one that Compose takes, and scales. Its images were not built here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import docker
import pytest
import yaml

from tests.integration.processes import wait_for
from tests.servers import IMAGE, redis_program, remove_project, require_compose

pytestmark = pytest.mark.docker
ROOT = Path(__file__).resolve().parents[2]
COMPOSE = ROOT / "compose" / "compose.yaml"
PROJECT = "lst-deployment"


def test_compose_resolves_the_deployment_without_a_warning(engine: docker.APIClient) -> None:
    require_compose()

    done = subprocess.run(
        ["docker", "compose", "-f", str(COMPOSE), "config", "--services"], capture_output=True, text=True, check=False
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(done.stdout.split()) == ["beat", "control", "redis", "worker"]


def test_the_deployment_scales_and_its_containers_are_one_host(engine: docker.APIClient, tmp_path: Path) -> None:
    """With this machine's own programs in an image that has none: nothing can be pulled here."""
    require_compose()
    folder = {"redis": redis_program(), "python": sys.base_prefix, "checkout": str(ROOT), "environment": sys.prefix}
    mounts = ["/usr", "/lib", "/lib64", "/etc/passwd", *folder.values()]
    volumes = [f"{path}:{path}:ro" for path in dict.fromkeys(mounts) if Path(path).exists()]
    state = tmp_path / "state"
    state.mkdir()
    (state / "plan.yaml").write_text(
        "name: crowd\nsteps:\n  each: {op: noop.execute, with: {sleep: 0.1}, foreach: '{{ range(20) | list }}'}\n"
        "  here: {op: file.deploy.execute, with: {path: /var/lib/longshore/hello, content: hi}, target: shop}\n"
    )
    volumes.append(f"{state}:/var/lib/longshore")
    python = str(Path(sys.prefix) / "bin" / "python")
    worker = {"entrypoint": [python, "-m", "celery", "-A", "longshore.workers", "worker"]}
    beat = {"entrypoint": [python, "-m", "longshore.orchestration.cli", "beat"]}
    client = {"entrypoint": [python, "-m", "longshore.orchestration.cli"], "profiles": ["client"]}
    client |= {"environment": {"LONGSHORE_REDIS_URL": "redis://redis:6379/0", "HOME": "/tmp"}}
    redis = {"entrypoint": [folder["redis"]], "command": ["--protected-mode", "no", "--dir", "/data"]}
    listens = "import socket; socket.create_connection(('127.0.0.1', 6379), 1)"
    redis |= {"healthcheck": {"test": ["CMD", python, "-c", listens], "interval": "1s"}}
    services = {"redis": redis, "control": worker, "worker": worker, "beat": beat, "client": client}
    override = tmp_path / "override.yaml"
    override.write_text(
        yaml.safe_dump(
            {"services": {name: {"image": IMAGE, "volumes": volumes} | more for name, more in services.items()}}
        )
    )

    def compose(*arguments: str) -> str:
        command = ["docker", "compose", "-p", PROJECT, "-f", str(COMPOSE), "-f", str(override), *arguments]
        env = os.environ | {"LONGSHORE_HOST": "shop", "LONGSHORE_LABELS": "role=shop"}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=env, timeout=150)
        assert done.returncode == 0, done.stderr + done.stdout
        return done.stdout

    def hosts() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(compose("run", "--rm", "client", "hosts", "ls", "-o", "json"))
        return found

    try:
        compose("up", "-d", "--no-build", "--scale", "worker=3")
        wait_for("a control worker and three others", lambda: [len(host["nodes"]) for host in hosts()] == [4])

        report = json.loads(compose("run", "--rm", "client", "run", "/var/lib/longshore/plan.yaml", "-o", "json"))

        assert report["state"] == "succeeded"
        assert (state / "hello").read_text() == "hi"
        [shop] = hosts()
        assert (shop["name"], shop["labels"], shop["state"]) == ("shop", {"role": "shop"}, "ready")
        compose("up", "-d", "--no-build", "--scale", "worker=1")
        wait_for("two good-byes", lambda: [len(host["nodes"]) for host in hosts()] == [2])
    finally:
        remove_project(engine, PROJECT)

"""The deployment by the commands of its page, with images that the test builds."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
import uuid
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import docker
import pytest
import yaml

from tests.acceptance.pages import DOCS, Player, blocks
from tests.conftest import require
from tests.integration.processes import wait_for
from tests.machine import images
from tests.servers import IMAGE, free_port, redis_program, remove_project, require_compose

# The timeout includes the first download of the wheels of the lock.
pytestmark = [pytest.mark.docker, pytest.mark.operations, pytest.mark.timeout(900)]
ROOT = Path(__file__).resolve().parents[2]
PAGE = DOCS / "how-to" / "deployment.md"
COMPOSE = ROOT / "compose" / "compose.yaml"
#: The tags of the images that replace those of registries.
BASE, CLI, REDIS = "los-python:1", "los-cli:1", "los-redis:1"
MADE = ("los-longshore:1", "los-longshore-client:1")
#: Two workers, so that one of them continues the run of the other.
WORKERS = 2


class Deployment:
    """The deployment of the page, with its secrets, its folder of stacks and its state folder."""

    def __init__(self, folder: Path, socket: str) -> None:
        self.project = f"los-{uuid.uuid4().hex[:6]}"
        self.folder, self.stacks, self.state = folder, folder / "srv", folder / "state"
        self.stacks.mkdir(mode=0o755)
        folder.chmod(0o755)
        (folder / "compose").symlink_to(COMPOSE.parent)
        self.port = free_port()
        self.environment = os.environ | {
            "COMPOSE_PROJECT_NAME": self.project,
            "LONGSHORE_IMAGE": MADE[0], "LONGSHORE_CLIENT_IMAGE": MADE[1], "LONGSHORE_REDIS_IMAGE": REDIS,
            "LONGSHORE_BASE": BASE, "LONGSHORE_CLI": CLI, "LONGSHORE_LABELS": "role=shop",
            "LONGSHORE_STACKS_DIR": str(self.stacks), "LONGSHORE_STATE_DIR": str(self.state),
            "LONGSHORE_PLANS": str(self.stacks), "DOCKER_SOCKET": socket,
            "LONGSHORE_ALLOWED_COMMANDS": "true", "LONGSHORE_LEASE": "3s",
            "FLOWER_PORT": str(self.port), "LONGSHORE_ACTOR": "somebody",
        }  # fmt: skip
        #: Names on the page, and the names of this deployment.
        self.names = {
            "/var/lib/longshore": str(self.state), "/var/run/docker.sock": socket, "/srv": str(self.stacks),
            "worker=4": f"worker={WORKERS}", "tag=1.36": f"tag={IMAGE.partition(':')[2]}",
        }  # fmt: skip
        self.player = Player(PAGE, folder, "", self.environment)
        self.play("longshore init secrets")
        lines = (folder / "secrets/env").read_text().splitlines()
        self.secrets = dict(line.split("=", 1) for line in lines)
        self.environment |= self.secrets | {"DOCKER_GID": str(os.stat(socket).st_gid)}

    def play(self, command: str) -> None:
        """Run the block of the page that contains a command."""
        (block,) = [one for one in blocks(PAGE) if one.language == "console" and command in one.body]
        body = block.body
        for name, ours in self.names.items():
            body = body.replace(name, ours)
        self.player.play_blocks([replace(block, body=body)])

    def compose(self, *arguments: str, timeout: float = 240, check: bool = True) -> subprocess.CompletedProcess[str]:
        command = ["docker", "compose", "-f", str(COMPOSE), *arguments]
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env=self.environment, timeout=timeout
        )
        assert not check or done.returncode == 0, done.stderr + done.stdout
        return done

    def longshore(self, *arguments: str, check: bool = True) -> Any:
        """Run a command in the client container."""
        done = self.compose("run", "--rm", "-T", "client", *arguments, "-o", "json", check=check)
        with contextlib.suppress(ValueError):
            return json.loads(done.stdout)
        return done.stdout + done.stderr

    def flower(self, path: str, login: str | None = None) -> tuple[int, str]:
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}")
        coded = b64encode((self.secrets["FLOWER_BASIC_AUTH"] if login is None else login).encode()).decode()
        request.add_header("Authorization", f"Basic {coded}")
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:  # noqa: S310
                return int(answer.status), answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, ""
        except OSError:
            return 0, ""

    def containers(self, service: str) -> list[str]:
        return self.compose("ps", "-q", service).stdout.split()


def locked_packages(folder: Path) -> Path:
    """A folder with the locked packages. `.dev` has the packages of an earlier download."""
    lock = ROOT / "requirements.lock"
    digest = hashlib.sha256(lock.read_bytes() + sys.version.encode()).hexdigest()[:16]
    kept, made = ROOT / ".dev" / "wheels" / digest, folder / "made"
    if not kept.is_dir():
        options = ["-q", "--no-deps", "--require-hashes", "-r", str(lock), "-d", str(made)]
        command = [sys.executable, "-m", "pip", "download", *options]
        subprocess.run(command, check=True, capture_output=True, cwd=folder)
        shutil.rmtree(kept.parent, ignore_errors=True)
        kept.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(made, kept.with_suffix(".part"))
        kept.with_suffix(".part").rename(kept)
    return kept


def build(folder: Path) -> None:
    """Build the base images, with the locked packages."""
    shutil.copytree(locked_packages(folder), folder / "wheels")
    images.load(f"{BASE}-bare", images.python())
    (folder / "Dockerfile").write_text(f"FROM {BASE}-bare\nCOPY wheels {images.WHEELS}\n")
    subprocess.run(["docker", "build", "-q", "-t", BASE, str(folder)], check=True, capture_output=True)
    images.load(CLI, images.cli())
    images.load(REDIS, images.redis(redis_program()))


@pytest.fixture(scope="module")
def deployment(engine: docker.APIClient, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    require_compose()
    socket = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
    if not socket.startswith("unix://") or os.geteuid() != 0 or not shutil.which("redis-cli"):
        require("the deployment needs an engine on this machine, root and redis-cli")
    folder = tmp_path_factory.mktemp("deployment")
    for parent in folder.parents:
        if parent != Path("/") and parent.stat().st_mode & 0o005 != 0o005:
            parent.chmod(parent.stat().st_mode | 0o005)  # the users of the containers need access
    build(folder)
    made = Deployment(folder, socket.removeprefix("unix://"))
    try:
        made.compose("build", "control")
        made.compose("--profile", "client", "build", "client")
        made.play("up -d --wait")
        yield made
    finally:
        made.player.close()
        if os.environ.get("LONGSHORE_KEEP_LOGS"):
            print(made.compose("logs", "--no-color", check=False).stdout[-20000:])
        made.compose("--profile", "*", "kill", check=False)
        made.compose("--profile", "*", "down", "-v", "-t", "1", check=False)
        for name in (*MADE, BASE, f"{BASE}-bare", CLI, REDIS):
            with contextlib.suppress(docker.errors.APIError):
                engine.remove_image(name, force=True)
        remove_project(engine, made.project)


def test_compose_resolves_the_deployment_without_a_warning(deployment: Deployment) -> None:
    done = deployment.compose("--profile", "*", "config", "--format", "json")
    assert done.stderr == ""
    services = json.loads(done.stdout)["services"]
    assert set(services) == {
        "beat", "client", "control", "engine", "flower", "grafana", "metrics", "prometheus", "redis", "worker",
    }  # fmt: skip
    with_socket = {
        name for name, service in services.items()
        for mount in service.get("volumes", ()) if "docker.sock" in mount["source"] + mount["target"]
    }  # fmt: skip
    assert with_socket == {"engine"}
    for name in ("beat", "client", "control", "engine", "flower", "metrics", "redis", "worker"):
        assert services[name]["cap_drop"] == ["ALL"], name
        assert services[name]["read_only"] is True, name
    published = {
        name: [port["host_ip"] for port in service["ports"]] for name, service in services.items() if "ports" in service
    }
    assert set(published) == {"flower", "prometheus", "grafana"}
    assert {ip for ips in published.values() for ip in ips} == {"127.0.0.1"}
    example = (ROOT / "compose/.env.example").read_text()
    known = {line.partition("=")[0] for line in example.splitlines() if "=" in line and not line.startswith("#")}
    passed = set(yaml.safe_load(COMPOSE.read_text())["x-part"]["environment"])
    assert {"LONGSHORE_HOST", "LONGSHORE_LABELS", "LONGSHORE_ALLOWED_IMAGES"} <= known & passed


def test_deployment_is_one_host_with_scaled_workers_and_no_process_of_root(deployment: Deployment) -> None:
    assert len(deployment.containers("worker")) == WORKERS
    (host,) = deployment.longshore("hosts", "ls")
    assert (host["name"], host["state"], host["labels"]) == ("docker", "ready", {"role": "shop"})
    assert len(host["nodes"]) == 2 + WORKERS  # control and engine
    for service in ("control", "engine", "worker", "flower", "beat", "redis"):
        (container, *_) = deployment.containers(service)
        done = subprocess.run(["docker", "exec", container, "id", "-u"], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "999", service


def test_client_container_starts_a_plan(deployment: Deployment) -> None:
    modules = "import importlib.util as u; print(sorted(n for n in ('docker', 'flower', 'tornado') if u.find_spec(n)))"
    found = deployment.compose("run", "--rm", "-T", "--entrypoint", "python3", "client", "-c", modules).stdout
    assert found.strip() == "[]"
    (deployment.stacks / "crowd.yaml").write_text(
        "name: crowd\nsteps:\n  each: {op: noop.execute, with: {sleep: 0.1}, foreach: '{{ range(20) | list }}'}\n"
        f"  web: {{op: docker.run.execute, with: {{image: {IMAGE}, command: [echo, hello]}}, after: [each]}}\n"
        "  here: {op: file.deploy.execute, with: {path: /var/lib/longshore/files/hello, content: hi}, target: docker}\n"
    )
    report = deployment.longshore("run", str(deployment.stacks / "crowd.yaml"))
    assert report["state"] == "succeeded", report
    assert "hello" in report["steps"][1]["data"]["stdout"]
    assert (deployment.state / "files/hello").read_text() == "hi"
    lines = deployment.longshore("audit", "--run", report["run_id"])
    assert [(line["what"], line["actor"]) for line in lines] == [("start", "somebody")]


def test_release_of_the_page_writes_the_env_file_and_is_reverted_after_a_failed_check(
    deployment: Deployment, engine: docker.APIClient
) -> None:
    # Given the examples of the page, with the project, image, port and folder of this deployment
    shop, project = deployment.stacks / "shop", f"{deployment.project}-shop"
    ours = {"/srv": str(deployment.stacks), "PROJECT:-shop": f"PROJECT:-{project}", "8080": str(free_port())}
    ours["default: busybox"] = f"default: {IMAGE.partition(':')[0]}"
    examples = shutil.copytree(ROOT / "examples/deployment", deployment.folder / "examples/deployment")
    for path in (examples / "release.yaml", examples / "shop/compose.yaml"):
        text = path.read_text()
        for name, own in ours.items():
            text = text.replace(name, own)
        path.write_text(text)
    try:
        deployment.play("install -m 644 examples/deployment/release.yaml")
        deployment.play("client run /srv/release.yaml")

        assert "DB_PASSWORD=correct-horse-battery" in (shop / ".env").read_text()
        (env,) = [
            engine.inspect_container(row["Id"])["Config"]["Env"]
            for row in engine.containers(filters={"label": f"com.docker.compose.project={project}"})
        ]
        assert "DB_PASSWORD=correct-horse-battery" in env
        (run,) = deployment.longshore("runs", "ls", "--plan", "release-shop")
        assert "correct-horse" not in json.dumps(deployment.longshore("runs", "show", run["run_id"]))
        # and a failed release is reverted, and its report begins with the running version
        text = (shop / "compose.yaml").read_text()
        (shop / "compose.yaml").write_text(text.replace("http://127.0.0.1/", "http://127.0.0.1/missing"))
        plan, tag = deployment.stacks / "release.yaml", IMAGE.partition(":")[2]
        failed = deployment.longshore("run", str(plan), "-p", f"tag={tag}", check=False)
        assert failed["state"] == "undone", failed
        assert failed["production"][0].startswith(f"{project} is back on revision 1 ({IMAGE}), healthy"), failed
    finally:
        remove_project(engine, project)


def test_another_worker_continues_after_a_kill_and_flower_shows_the_run(
    deployment: Deployment,
) -> None:
    plan = deployment.stacks / "long.yaml"
    plan.write_text("name: long\nsteps:\n  a: {op: noop.execute, with: {sleep: 12, changed: true}}\n")
    run_id = f"long-{uuid.uuid4().hex[:6]}"
    deployment.longshore("run", str(plan), "--run-id", run_id, "--detach")

    def owner() -> str:
        events = deployment.longshore("runs", "events", run_id)
        started = [one for one in events if one["event"] == "step_started"] if isinstance(events, list) else []
        return started[-1]["owner"] if started else ""

    name = wait_for("the step to run", owner).partition("@")[2].partition("@")[0].removeprefix("worker-")
    (container,) = [one for one in deployment.containers("worker") if one.startswith(name[:12])]
    subprocess.run(["docker", "kill", "-s", "KILL", container], check=True, capture_output=True)

    assert deployment.flower(f"/runs/{run_id}")[0] == 200
    assert deployment.flower(f"/runs/{run_id}", login="operator:wrong")[0] == 401

    report = deployment.longshore("runs", "watch", run_id)
    assert report["state"] == "succeeded", report
    assert report["steps"][0]["attempts"] == 2
    code, page = deployment.flower(f"/runs/{run_id}")
    assert code == 200
    assert "succeeded" in page
    assert "its worker was lost" in page
    wait_for("the root task in Flower", lambda: '"SUCCESS"' in deployment.flower(f"/api/task/info/{run_id}")[1])
    # Docker does not restart a container that was killed with `docker kill`.
    deployment.compose("up", "-d", "--no-build", "--wait", "--scale", f"worker={WORKERS}")
    wait_for("all workers", lambda: len(deployment.containers("worker")) == WORKERS)


def test_redis_requires_a_user_and_unsigned_messages_are_refused(deployment: Deployment) -> None:
    def redis(*words: str, user: str = "") -> str:
        password = deployment.secrets[f"LONGSHORE_{user.upper()}_URL"].split(":")[2].partition("@")[0] if user else ""
        login = ["--user", f"longshore-{user}", "-a", password, "--no-auth-warning"] if user else []
        (container,) = deployment.containers("redis")
        env = ["-e", "REDISCLI_AUTH="] if user else ["-e", "REDISCLI_AUTH"]
        command = ["docker", "exec", *env, container, "redis-cli", *login, *words]
        environment = {name: value for name, value in os.environ.items() if name != "REDISCLI_AUTH"}
        return subprocess.run(command, capture_output=True, text=True, check=False, env=environment).stdout

    assert "NOAUTH" in redis("get", "longshore:runs")
    assert "NOPERM" in redis("hset", "longshore:{x}:run", "state", "succeeded", user="client")
    assert "NOPERM" in redis("flushall", user="worker")
    headers = {"task": "longshore.step", "id": "x", "retries": 0}
    properties = {"body_encoding": "base64", "delivery_tag": "t", "delivery_info": {"routing_key": "noop"}}
    content = {"content-type": "application/json", "content-encoding": "utf-8", "body": "W1sieCIsIDBdLCB7fSwge31d"}
    forged = json.dumps(content | {"headers": headers, "properties": properties})
    assert redis("lpush", "noop", forged, user="client").strip().isdigit()

    def is_audited() -> bool:
        found = deployment.longshore("audit", "--refused")
        return any("the signature is missing" in line["why"] for line in found)

    wait_for("the refusal", is_audited)


def test_doctor_finds_no_error_in_the_deployment(deployment: Deployment) -> None:
    done = deployment.compose("run", "--rm", "-T", "client", "doctor", check=False)
    found = [line for line in done.stdout.splitlines() if line.startswith("ERROR")]
    assert (done.returncode, found) == (0, []), done.stdout
    assert "Docker" in done.stdout


def test_no_redis_user_lacks_a_permission(deployment: Deployment) -> None:
    log = deployment.compose("logs", "--no-color").stdout
    assert [line for line in log.splitlines() if "no permissions" in line] == []


def test_metrics_are_scraped_with_a_read_only_redis_user(deployment: Deployment) -> None:
    deployment.compose("--profile", "metrics", "up", "-d", "--no-build", "metrics")
    read = "import urllib.request as r; print(r.urlopen('http://metrics:9808/metrics', timeout=20).read().decode())"

    def scraped() -> str:
        arguments = ("run", "--rm", "-T", "--entrypoint", "python3", "client", "-c", read)
        return deployment.compose(*arguments, check=False).stdout

    text = wait_for("metrics", lambda: (found := scraped()) and "longshore_runs_total" in found and found)
    assert 'longshore_runs_total{plan="crowd",state="succeeded"} 1.0' in str(text)

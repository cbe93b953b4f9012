"""The compose file of the deployment is one that Compose takes. Its images were not built here."""

from __future__ import annotations

import subprocess
from pathlib import Path

import docker
import pytest

from tests.servers import require_compose

pytestmark = pytest.mark.docker
COMPOSE = Path(__file__).resolve().parents[2] / "compose" / "compose.yaml"


def test_compose_resolves_the_deployment_without_a_warning(engine: docker.APIClient) -> None:
    require_compose()

    done = subprocess.run(
        ["docker", "compose", "-f", str(COMPOSE), "config", "--services"], capture_output=True, text=True, check=False
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(done.stdout.split()) == ["control", "redis", "worker"]

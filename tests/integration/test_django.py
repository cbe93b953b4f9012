"""Longshore in the Django example, with its server and worker. A new project: docs/how-to/django.md, in acceptance."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from longshore.orchestration import ConfigError
from longshore.orchestration.django.configuration import WORKER, configure
from longshore.orchestration.settings import get_settings
from tests import servers
from tests.integration.conftest import MakeInstallation
from tests.integration.processes import PATIENCE, Installation, wait_for
from tests.integration.web import call, process, wait_until_served

EXAMPLE = Path(__file__).parents[2] / "examples" / "django"

#: Orders in transactions; one is rolled back.
ORDERS = """
from django.db import transaction
from longshore.orchestration.django import client, start_on_commit
from orders.models import Order
from orders.plans import order_plan

def place(amount, fails=False):
    with transaction.atomic():
        order = Order.objects.create(customer="ann", amount=amount)
        order.run_id = start_on_commit(order_plan(order, approve=False))
        order.save()
        assert len(client().runs()) == before, "nothing starts before the commit"
        if fails:
            raise ValueError("rolled back")
    return order

before = len(client().runs())
good = place(3)
before = len(client().runs())
report = client().get(good.run_id).wait(60)
good.refresh_from_db()
print(report.state, good.state)
before, orders = len(client().runs()), Order.objects.count()
try:
    place(3, fails=True)
except ValueError:
    print(Order.objects.count() - orders, len(client().runs()) - before)
large = place(500)
report = client().get(large.run_id).wait(60)
large.refresh_from_db()
print(report.state, large.state, report.error.message)
"""


@pytest.fixture
def installation(install: MakeInstallation) -> Installation:
    return install()


def environment(installation: Installation) -> dict[str, str]:
    """The environment of a process of a project, without settings of Longshore."""
    mine = {name: value for name, value in os.environ.items() if not name.startswith(("LONGSHORE_", "DJANGO_"))}
    return mine | {"SHOP_REDIS": installation.redis_url, "SHOP_NAMESPACE": installation.namespace}


def manage(project: Path, env: dict[str, str], *arguments: str, text: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(project / "manage.py"), *arguments]
    return subprocess.run(
        command, cwd=project.parent, env=env, input=text, capture_output=True, text=True, check=False, timeout=PATIENCE
    )


@pytest.fixture
def served(installation: Installation, tmp_path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Start the server and the worker of the example; return the URL of the server."""
    env = environment(installation) | {"SHOP_DATABASE": str(tmp_path / "shop.sqlite3")}
    done = manage(EXAMPLE, env, "migrate")
    assert done.returncode == 0, done.stderr
    url = f"127.0.0.1:{servers.free_port()}"
    python = [sys.executable, str(EXAMPLE / "manage.py")]
    with (
        process([*python, "longshore", "worker", "-c", "1"], tmp_path, env, tmp_path / "worker.log"),
        process([*python, "runserver", "--noreload", url], tmp_path, env, tmp_path / "server.log"),
    ):
        wait_until_served(f"http://{url}/orders/1/", tmp_path / "server.log")
        yield f"http://{url}", env


def test_django_example_runs(served: tuple[str, dict[str, str]], installation: Installation) -> None:
    url, env = served

    def ended(order: dict[str, object]) -> dict[str, str] | None:
        _, found = call(f"{url}/orders/{order['order']}/")
        return found if found["run"] in {"succeeded", "undone"} else None

    status, order = call(f"{url}/orders/", "POST", {"customer": "ann", "amount": "3"})
    assert status == 201
    assert wait_for("the order", lambda: ended(order)) == {"state": "shipped", "run": "succeeded"}

    status, refused = call(f"{url}/orders/", "POST", {"customer": "ann", "amount": "0"})
    assert (status, refused) == (400, {"error": "an order has at least one piece"})
    assert len(installation.client().runs()) == 1

    status, order = call(f"{url}/orders/", "POST", {"customer": "bob", "amount": "3", "approve": "yes"})
    own = f"{url}/orders/{order['order']}/"
    wait_for("the charge", lambda: call(own)[1]["state"] == "charged")
    status, _ = call(f"{own}cancel/", "POST", {})
    assert status == 200
    assert wait_for("the cancelled order", lambda: ended(order)) == {"state": "refunded", "run": "undone"}

    # the admin lists the runs for users with the permission; a rolled back order has no run, and a failed order is
    # compensated
    pages = manage(EXAMPLE, env, "shell", "-c", ADMIN + ORDERS)
    assert pages.stdout.splitlines()[-6:] == [
        "200 True True", "200 False", "403 404",
        "succeeded shipped", "0 0", "undone refunded the order is too large for a lorry",
    ], pages.stderr  # fmt: skip
    # and the project has all migrations, and the exit codes of the commands
    migrations = manage(EXAMPLE, env, "makemigrations", "--check")
    assert migrations.returncode == 0, migrations.stdout
    unknown = manage(EXAMPLE, env, "longshore", "runs", "show", "nobody")
    assert (unknown.returncode, unknown.stderr.count("\n")) == (2, 1)


ADMIN = """
from django.contrib.auth.models import Permission, User
from django.test import Client
from orders.models import Order

User.objects.create_superuser("root", password="secret")
ann = User.objects.create_user("ann", password="secret", is_staff=True)
root = Client()
root.login(username="root", password="secret")
page = root.get("/admin/longshore/run/").content.decode()
runs = [order.run_id for order in Order.objects.exclude(run_id="")]
print(root.get("/admin/longshore/run/").status_code, all(run in page for run in runs), len(runs) == 2)
page = root.get("/admin/longshore/run/?q=" + runs[0])
print(page.status_code, runs[1] in page.content.decode())
denied = Client()
denied.login(username="ann", password="secret")
print(denied.get("/admin/longshore/run/").status_code, root.get("/admin/longshore/run/add/").status_code)
"""


def test_django_settings_define_longshore_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("LONGSHORE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    os.environ["LONGSHORE_NAMESPACE"] = "from-the-environment"
    try:
        configure({"namespace": "shop", "imports": "shop.more", "max_runs": 3}, "redis://broker:6379/1")
        found = get_settings()
        assert (found.namespace, found.redis_url, found.max_runs) == (
            "from-the-environment",
            "redis://broker:6379/1",
            3,
        )
        assert found.imports == f"{WORKER},shop.more"
        configure({"redis_url": "redis://own:6379/0"}, "amqp://broker")
        with pytest.raises(ConfigError, match="unknown setting 'max_run'") as refused:
            configure({"max_run": 3})
        assert refused.value.remedy == "did you mean 'max_runs'?"
    finally:
        get_settings.cache_clear()

"""Commands, settings and files on pages that no test executes: each name exists, and each value is valid."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from importlib.metadata import metadata
from typing import Any

import click
import pytest
import yaml
from celery import Celery

from longshore.orchestration import Plan
from longshore.orchestration.cli.lazy import LazyCommand
from longshore.orchestration.cli.main import cli
from longshore.orchestration.errors import UnknownName
from longshore.orchestration.installation.acl import ROLES
from longshore.orchestration.monitoring.metrics import Collector
from longshore.orchestration.plans.validation import problems
from longshore.orchestration.settings import Settings
from longshore.orchestration.store.connection import connect
from longshore.orchestration.store.run_store import Store
from tests import servers
from tests.acceptance.pages import DOCS, Block, blocks
from tests.acceptance.test_pages import ELSEWHERE

pytestmark = pytest.mark.integration

ROOT = DOCS.parent
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
SETTING = re.compile(r"\bLONGSHORE_([A-Z][A-Z_]*)(?:=([^\s`…$'\"]+)(?=[\s`]))?")
#: Prefixes of variables with names that users choose.
OWN = ("SECRET_", "NOTICE_")
SCALING, REDIS, DEPLOYMENT = (DOCS / "how-to" / f"{name}.md" for name in ("scaling", "redis", "deployment"))


def shown(page: Any, language: str) -> list[Block]:
    return [block for block in blocks(page) if block.language == language and not block.title]


def commands() -> Iterator[tuple[str, str]]:
    """Page and text of each command in a sentence, or in a fence that no test executes."""
    for page in PAGES:
        name = str(page.relative_to(ROOT))
        prose = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
        yield from ((name, text) for text in re.findall(r"`(longshore [^`]+)`", prose))
        if name.removeprefix("docs/") in ELSEWHERE:
            text = "\n".join(block.body for block in blocks(page) if block.language in {"sh", "console"})
            yield from ((name, found) for found in re.findall(r"^(?:\$ )?(longshore .*)$", text, re.M))
            yield from ((name, f"longshore {found}") for found in re.findall(r"--rm client (.*)$", text, re.M))


def no_child(_: Plan, name: object) -> Plan:
    raise UnknownName(f"no plan {name}")


def resolved(words: list[str]) -> tuple[click.Command, list[str]]:
    """The command and the arguments of a list of words."""
    command: click.Command = cli
    while isinstance(command, click.Group) and words and words[0] in command.commands:
        command, words = command.commands[words[0]], words[1:]
        command = command.load() if isinstance(command, LazyCommand) else command
    return command, words


def test_commands_in_sentences_and_their_options_exist() -> None:
    found = list(commands())
    assert len(found) > 100
    for page, text in found:
        command, arguments = resolved(shlex.split(text, comments=True)[1:])
        assert command is not cli or arguments[0].startswith("-"), f"{page}: {text}"
        options = {name for option in command.params for name in (*option.opts, *option.secondary_opts)} | {"--help"}
        if command.context_settings.get("ignore_unknown_options"):
            continue
        for word in arguments:
            assert not word.startswith("-") or word.partition("=")[0] in options, f"{page}: {text}: {word}"


def test_settings_on_pages_exist_and_accept_the_values_of_the_pages() -> None:
    code = "".join(path.read_text() for folder in ("orchestration", "tasks", "workers", "compose")
                   for path in sorted((ROOT / folder).rglob("*")) if path.suffix in {".py", ".yaml"})  # fmt: skip
    given = 0
    for page in PAGES:
        for name, value in SETTING.findall(page.read_text()):
            if name.lower() not in Settings.model_fields:
                known = name.startswith(OWN) or name.removesuffix("_URL").lower() in ROLES
                assert known or f"LONGSHORE_{name}" in code, f"{page}: LONGSHORE_{name}"
            elif value:
                given += 1
                Settings(**{name.lower(): value})
    assert given > 20


def test_extras_on_pages_exist() -> None:
    known = set(metadata("longshore").get_all("Provides-Extra") or [])
    found = [extras for page in PAGES for extras in re.findall(r"longshore\[([\w,]+)\]", page.read_text())]
    assert {"embedded", "flower"} <= set(",".join(found).split(",")) <= known


def test_partial_plans_on_pages_are_valid() -> None:
    plans = [part for page in PAGES for block in shown(page, "yaml") for part in yaml.safe_load_all(block.body)
             if isinstance(part, dict) and "steps" in part]  # fmt: skip
    assert plans
    for part in plans:
        params = {name: {"type": "string"} for name in re.findall(r"params\.(\w+)", str(part))}
        assert problems(Plan.model_validate({"name": "shown", "params": params} | part), no_child) == []


def test_redis_urls_on_the_page_are_accepted() -> None:
    urls = re.findall(r"LONGSHORE_REDIS_URL='?((?:sentinel|rediss)://[^'\s]+)", REDIS.read_text())
    assert [url.partition(":")[0] for url in urls] == ["sentinel", "rediss"]
    for url, replicas in zip(urls, (1, 0), strict=True):
        settings = Settings(redis_url=url)
        connect(settings).close()
        assert settings.needed_replicas() == replicas


def test_kubernetes_scales_the_worker_by_the_list_of_its_queue(redis_server: servers.RedisServer) -> None:
    (block,) = [one for one in shown(SCALING, "yaml") if "keda.sh" in one.body]
    deployment, scaled = yaml.safe_load_all(block.body)
    container = deployment["spec"]["template"]["spec"]["containers"][0]
    queue = container["args"][container["args"].index("-Q") + 1]
    by_list, by_age = (trigger["metadata"] for trigger in scaled["spec"]["triggers"])

    # The command and the settings of the container exist.
    assert resolved(container["args"])[0].name == "worker"
    assert {each["name"].removeprefix("LONGSHORE_").lower() for each in container["env"]} <= set(Settings.model_fields)
    assert deployment["spec"]["selector"]["matchLabels"] == deployment["spec"]["template"]["metadata"]["labels"]
    assert scaled["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    # KEDA reads the length of a list in Redis. The names of the lists on the page are correct.
    for namespace, name in (("longshore", by_list["listName"]), ("shop", f"shop:{queue}")):
        assert name == queue or f"`{name}`" in SCALING.read_text()
        settings = Settings(redis_url=redis_server.url, namespace=namespace)
        app = Celery(broker=redis_server.url)
        app.conf.broker_transport_options = {"global_keyprefix": settings.broker_prefix()}
        with app.connection_for_write() as connection, redis_server.client() as client:
            for _ in range(3):
                app.send_task("shop.pay", queue=queue, connection=connection)
            assert client.llen(name) == 3
            client.delete(name)
    # The metric exists.
    names = {metric.name for metric in Collector(Store(Settings(redis_url=redis_server.url))).collect()}
    assert re.search(r"longshore_\w+", by_age["query"])[0] in names  # type: ignore[index]


def test_crontab_runs_the_command_of_the_page() -> None:
    (block,) = shown(DOCS / "how-to" / "cron-ci.md", "crontab")
    *times, command = block.body.strip().split(maxsplit=5)
    assert len(times) == 5
    played = [one.body.splitlines()[0] for one in shown(DOCS / "how-to" / "cron-ci.md", "sh")]
    assert command.replace("\\%", "%").partition(".venv/bin/")[2] in played


def test_compose_commands_of_the_deployment_page_name_services_and_profiles() -> None:
    services = yaml.safe_load((ROOT / "compose/compose.yaml").read_text())["services"]
    lines = [line for block in blocks(DEPLOYMENT) for line in block.body.splitlines() if "docker compose" in line]
    assert len(lines) == 6
    for line in lines:
        words = shlex.split(line)
        words = words[words.index("docker") :]
        assert words[words.index("-f") + 1] == "compose/compose.yaml"
        if "--profile" in words:
            profile = words[words.index("--profile") + 1]
            assert any(profile in service.get("profiles", ()) for service in services.values())
        if "--no-deps" in words:
            assert set(words[words.index("--no-deps") + 1 :]) <= set(services)
        if "--scale" in words:
            assert words[words.index("--scale") + 1].partition("=")[0] in services


def test_variables_of_the_deployment_page_have_the_defaults_of_the_page() -> None:
    rows = re.findall(r"^\| (`LONGSHORE_[^|]+) \| (`[^|]+) \|", DEPLOYMENT.read_text(), re.M)
    compose, found = (ROOT / "compose/compose.yaml").read_text(), 0
    for names, defaults in rows:
        for name, default in zip(names.split(", "), defaults.split(", "), strict=True):
            found += 1
            assert f"${{{name.strip('`')}:-{default.strip('`')}}}" in compose, name
    assert found == 7

"""The catalogue of operations is complete and documented, and the reference page is current."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from longshore.orchestration import Plan, PlanError
from longshore.orchestration.cli.ops import read_values
from longshore.orchestration.errors import UsageError
from longshore.orchestration.operations import NO_RETRY, Kind, Undo, all_operations, catalogue, stubs
from longshore.orchestration.operations.reference import describe, page
from longshore.tasks.implementation import Implementation, implementation
from longshore.tasks.operations import command, compose, docker, file, http, network, node, noop

FAMILIES = (command, compose, docker, file, http, network, node, noop)
PAGE = Path(__file__).resolve().parents[4] / "docs/reference/operations.md"
OWN = {
    name: operation
    for name, operation in all_operations().items()
    if name.partition(".")[0] in {"command", "compose", "docker", "file", "network", "node"}
}

#: The operations that the catalogue must contain.
TABLE = set(
    re.findall(
        r"\S+",
        """
command.exec.execute command.shell.execute file.upload file.deploy.execute file.undeploy.execute
file.status.get file.changed.get network.dns.get network.dns.update network.ping.do network.http.get
network.http.request node.hostname.get node.status.get node.disk.get node.memory.get node.uptime.get
node.load.get node.os.get docker.create.execute docker.list.get docker.inspect.get docker.start.execute
docker.stop.execute docker.restart.execute docker.remove.execute docker.exec.execute docker.run.execute
docker.logs.get docker.pull.execute docker.tag.execute docker.build.execute docker.push.execute
docker.rename.execute docker.update.execute docker.image-remove.execute docker.wait.get
docker.network-create.execute docker.network-remove.execute docker.network-inspect.get
docker.volume-create.execute docker.volume-remove.execute docker.volume-inspect.get compose.config.get
compose.ps.get compose.pull.execute compose.build.execute compose.up.execute compose.stop.execute
compose.start.execute compose.restart.execute compose.down.execute compose.exec.execute compose.run.execute
compose.rollback.execute
""",
    )
)


def test_operation_catalogue_is_complete() -> None:
    assert OWN.keys() >= TABLE


@pytest.mark.parametrize("name", OWN)
def test_every_operation_is_implemented_and_documented(name: str) -> None:
    operation, done = OWN[name], implementation(name)
    described = describe(operation)
    assert operation.about is not None
    assert all(described["about"].values())
    assert described["notes"]
    assert described["result_notes"]
    kind = type(done)
    if kind.change is Implementation.change:
        assert kind.act is not Implementation.act
        assert kind.predict is not Implementation.predict
    assert kind.undo is not Implementation.undo


def test_every_operation_of_the_catalogue_has_guarantees_and_described_parameters() -> None:
    built_in = [each for each in all_operations().values() if each.function is None]

    assert [each.name for each in built_in if each.about is None] == []
    rows = [(each.name, row) for each in built_in for row in describe(each)["parameters"]]
    assert [(name, row["name"]) for name, row in rows if not row["description"]] == []


@pytest.mark.parametrize("name", OWN)
def test_operation_names_follow_the_convention(name: str) -> None:
    operation = OWN[name]
    if name.endswith(".get"):
        assert (operation.kind, operation.undo) == (Kind.READ_ONLY, Undo.NONE)
    if operation.kind is Kind.READ_ONLY:
        assert "never" in str(describe(operation)["about"]["changed"])


def test_an_operation_that_cannot_find_its_earlier_effect_is_not_retried_by_default() -> None:
    """A temporary error may follow the effect. `network.http.request` itself tells a lost response apart."""
    names = [name for name, each in OWN.items() if not each.repeatable({}) and each.retry != NO_RETRY]

    assert names == ["network.http.request"]


def test_types_of_the_catalogue_are_current() -> None:
    path = Path(stubs.__file__).resolve().with_name("catalogue.pyi")
    assert path.read_text() == stubs.stub(), "run python -m longshore.orchestration.operations.stubs"


def test_operations_of_the_catalogue_are_objects() -> None:
    plan = Plan("p")
    plan.step("pull", catalogue.docker_pull_execute, image="shop:2")
    assert plan.steps["pull"].op == "docker.pull.execute"
    untyped: Any = plan.step
    with pytest.raises(PlanError, match=r"docker.pull.execute has no parameter 'imag'; it has image"):
        untyped("wrong", catalogue.docker_pull_execute, imag="shop:2")
    with pytest.raises(AttributeError, match="docker_pul"):
        catalogue.docker_pul  # noqa: B018


def test_reference_page_is_current() -> None:
    assert PAGE.read_text() == page(), "run python -m longshore.orchestration.operations.reference"


@pytest.mark.parametrize(
    ("pairs", "values"),
    [
        (("image=x:1", "policy=missing"), {"image": "x:1", "policy": "missing"}),
        (("argv=[echo, 'a b']",), {"argv": ["echo", "a b"]}),
        (("services=a", "services=b", "services=c"), {"services": ["a", "b", "c"]}),
        (("auth.username=me", "auth.password={{ secret('env:X') }}"),
         {"auth": {"username": "me", "password": "{{ secret('env:X') }}"}}),
        (("command=a=b",), {"command": "a=b"}),
        (("labels={a: b}",), {"labels": {"a": "b"}}),
    ],
)  # fmt: skip
def test_operation_parameters_are_parsed_from_the_command_line(pairs: tuple[str, ...], values: dict[str, Any]) -> None:
    assert read_values(pairs) == values


@pytest.mark.parametrize("pair", ["image", "=x", "a b=c", "argv=[1", f"argv={'[' * 700}"], ids=len)
def test_invalid_command_line_parameter_is_refused(pair: str) -> None:
    with pytest.raises(UsageError):
        read_values((pair,))


def test_worker_implements_every_operation() -> None:
    code = (
        "from longshore.workers import app\n"
        "from longshore.orchestration.operations import all_operations\n"
        "from longshore.tasks.implementation import implementation\n"
        "for name in all_operations(): implementation(name)\n"
        "assert app"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

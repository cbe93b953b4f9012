"""Type checkers check the parameters of a step whose operation is a function."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[4]

SHOP = """\
from dataclasses import dataclass
from typing import Any, assert_type

from longshore.orchestration import Context, E, Plan, operation, template
from longshore.orchestration.operations import catalogue as ops
from longshore.orchestration.plans.handles import StepHandle


@dataclass
class Charge:
    id: str


@operation("shop.charge", undo="shop.refund")
def charge(ctx: Context, order: str, amount: int, *, note: str = "") -> Charge:
    return Charge(order)


@operation("shop.refund")
def refund(order: str) -> None: ...


@operation("shop.mail")
async def mail(ctx: Context, to: str) -> bool:
    return True


plan = Plan("order")
"""

#: A program that type checkers accept.
GOOD = """
first = plan.step("charge", charge, order="o-7", amount=42)
assert_type(first, StepHandle)
plan.step("by position", charge, "o-7", 42, note="x")
plan.step("expression", charge, order=E.params.order, amount=first.data.amount).undo(refund, order=first.data.id)
plan.step("template", charge, order="{{ params.order }}", amount=template("{{ params.amount }}"))
plan.step("coroutine", mail, to="ann")
plan.step("catalogue", ops.docker_pull_execute, image="shop:2").timeout("5m")
plan.step("by name", "shop.charge", order=1, anything=2)
assert_type(charge(Context("run", "step", "plan"), "o-7", 42), Charge)
assert_type(refund("o-7"), None)


@charge.done
def done(ctx: Context, order: str) -> Any: ...
"""

#: Lines that type checkers refuse.
BAD = """\
plan.step("a", charge, order="o-7", amount="x")
plan.step("b", charge, order="o-7", amount=1, typo=3)
plan.step("c", charge)
plan.step("d", charge, order="o-7")
plan.step("e", charge, order="o-7", amount="{{ params.amount }}")
plan.step("f", refund, order="o-7").undo(refund, order=7)
plan.step("g", mail, to=3)
plan.step("h", print, 3)
plan.step("i", ops.docker_pull_execute, image=3)
plan.step("j", ops.docker_pull_execute, imag="shop:2")
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("types")
    (folder / "good.py").write_text(SHOP + GOOD)
    (folder / "bad.py").write_text(SHOP + BAD)
    return folder


def mypy(folder: Path) -> set[tuple[str, int]]:
    """The files and lines with errors."""
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file", "", "--cache-dir", str(folder / "cache")]
    done = subprocess.run(
        [*command, "good.py", "bad.py"], cwd=folder, capture_output=True, text=True, check=False, timeout=380
    )
    assert done.returncode in {0, 1}, done.stdout + done.stderr
    found = re.findall(r"^(\w+\.py):(\d+): error: ", done.stdout, re.MULTILINE)
    return {(name, int(line)) for name, line in found}


def pyright(folder: Path) -> set[tuple[str, int]]:
    """The files and lines with errors, by basedpyright, which contains node."""
    if find_spec("basedpyright") is None:
        pytest.skip("basedpyright is not installed")
    (folder / "pyrightconfig.json").write_text(json.dumps({"typeCheckingMode": "standard"}))
    command = [sys.executable, "-m", "basedpyright", "--outputjson", "--pythonpath", sys.executable]
    done = subprocess.run(
        [*command, "good.py", "bad.py"], cwd=folder, capture_output=True, text=True, check=False, timeout=380
    )
    found = json.loads(done.stdout)["generalDiagnostics"]
    errors = [each for each in found if each["severity"] == "error"]
    return {(Path(each["file"]).name, each["range"]["start"]["line"] + 1) for each in errors}


@pytest.mark.timeout(400)
@pytest.mark.parametrize("checker", [mypy, pyright])
def test_wrong_parameters_are_refused_with_their_position(
    checker: Callable[[Path], set[tuple[str, int]]], program: Path
) -> None:
    first = SHOP.count("\n") + 1
    assert sorted(checker(program)) == [("bad.py", first + n) for n in range(BAD.count("\n"))]

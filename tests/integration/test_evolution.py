"""Deployments that change an operation while Redis has runs of the earlier version."""

from __future__ import annotations

from pathlib import Path

import pytest

from longshore.orchestration import Client, Plan, Run
from tests.integration.conftest import MakeInstallation
from tests.integration.processes import PATIENCE, Installation, lines, wait_for

BEFORE = """
from pathlib import Path
from longshore.orchestration import operation

@operation("evolving.charge", undo="evolving.refund")
def charge(ledger: Path, order: str) -> dict:
    with ledger.open("a") as file:
        file.write(f"charge {order}\\n")
    return {"order": order}

@operation("evolving.refund")
def refund(ledger: Path, order: str) -> None:
    with ledger.open("a") as file:
        file.write(f"refund {order}\\n")
"""

RENAMED = (
    BEFORE.replace("order: str", "order_id: str").replace("{order}", "{order_id}").replace(": order}", ": order_id}")
)
DECLARED = RENAMED.replace('refund")\n', 'refund", renamed={"order": "order_id"})\n')
UPGRADED = RENAMED.replace('refund")\n', 'refund", upgrade=upgrade)\n').replace(
    "@operation", "def upgrade(params):\n    return {k.replace('order_id', 'order').replace('order', 'order_id'): v "
    "for k, v in params.items()}\n\n@operation", 1
)  # fmt: skip


@pytest.fixture
def installation(install: MakeInstallation) -> Installation:
    return install(options={"imports": "evolving"})


def deploy(installation: Installation, text: str, name: str) -> None:
    """Start a worker with this version of the application."""
    folder = installation.folder / name
    folder.mkdir()
    (folder / "evolving.py").write_text(text)
    for worker in installation.workers:
        worker.stop()
    installation.worker(name, "-c", "1", PYTHONPATH=str(folder)).start()


def test_stored_run_continues_with_renamed_parameters(installation: Installation, tmp_path: Path) -> None:
    # given runs of the earlier version with one completed and one pending step
    deploy(installation, BEFORE, "before")
    client: Client = installation.client()
    runs: dict[str, Run] = {}
    for name in ("renamed", "upgraded"):
        ledger = tmp_path / name
        (tmp_path / "plan.yaml").write_text(
            f"name: evolving\nsteps:\n  first: {{op: evolving.charge, with: {{ledger: {ledger}, order: o-1}}}}\n"
            "  ok: {op: approval.wait.execute, after: [first]}\n"
            f"  second: {{op: evolving.charge, with: {{ledger: {ledger}, order: o-2}}, after: [ok]}}\n"
            "  bad: {op: noop.execute, with: {fail: true}, after: [second]}\n"
        )
        command = ["run", str(tmp_path / "plan.yaml"), "--run-id", name, "--detach"]
        done = installation.longshore(*command, PYTHONPATH=str(installation.folder / "before"))
        assert done.code == 0, done.err
        runs[name] = client.get(name)
    for run in runs.values():
        wait_for("the approval", lambda: run.report().step("ok").status == "waiting")  # noqa: B023

    # when the parameter is renamed without a declaration, doctor names the runs
    deploy(installation, RENAMED, "silent")
    findings = installation.longshore("doctor", PYTHONPATH=str(installation.folder / "silent")).out
    for name in runs:
        finding = f"run {name} cannot be carried out as it was stored: step first: evolving.charge of worker"
        assert finding in " ".join(findings.split())
    assert "has no parameter 'order'" in " ".join(findings.split())

    # when the earlier name is declared, or a function renames it, a run continues, and its steps are compensated
    for name, text in (("renamed", DECLARED), ("upgraded", UPGRADED)):
        deploy(installation, text, f"declared-{name}")
        findings = installation.longshore("doctor", PYTHONPATH=str(installation.folder / f"declared-{name}")).out
        assert "cannot be carried out" not in " ".join(findings.split())
        runs[name].approve("ok")
        report = runs[name].wait(PATIENCE)
        assert report.state == "undone", report
        assert lines(tmp_path / name) == ["charge o-1", "charge o-2", "refund o-2", "refund o-1"]


def test_new_plan_uses_the_current_names() -> None:
    from longshore.orchestration import ConfigError, PlanError, operation, validate
    from longshore.orchestration.operations.base import _REGISTRY

    try:

        @operation("evolving.present", renamed={"order": "order_id"})
        def present(order_id: str, note: str = "") -> None: ...

        assert _REGISTRY["evolving.present"].accepts == ("order_id", "note?", "order=order_id")
        plan = Plan("p")
        plan.step("x", "evolving.present", order="o-1")
        with pytest.raises(PlanError, match="has no parameter 'order'"):
            validate(plan)
        with pytest.raises(ConfigError, match="`renamed` has 'a' for 'b'"):
            operation("evolving.wrong", renamed={"a": "b"})(lambda: None)
    finally:
        _REGISTRY.pop("evolving.present", None)

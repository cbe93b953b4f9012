"""The secrets of a run, of its child runs and of its parent, as a worker redacts them."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from longshore.orchestration import HostResult, Plan, Prediction, Result, operation
from longshore.orchestration.client.request import request_body
from longshore.orchestration.monitoring import logs
from longshore.orchestration.store.run_store import Recorded
from longshore.orchestration.testing import Sandbox
from longshore.tasks.attempts import run_secrets
from longshore.tasks.attempts.dry_run import dry_run_step
from longshore.tasks.attempts.run_secrets import redaction_of
from longshore.tasks.control.external_waits import ExternalWaits
from longshore.tasks.loaded_runs import Loaded, Plans


@pytest.fixture(autouse=True)
def no_remembered_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_secrets, "_values", type(run_secrets._values)())


def secret(name: str) -> str:
    return f"{{{{ secret('env:LONGSHORE_SECRET_{name}') }}}}"


def uses(plan: Plan, name: str) -> Plan:
    plan.step(f"uses-{name.lower()}", "command.exec.execute", argv=["true"], env={"A": secret(name)})
    return plan


def loaded(plan: Plan, **more: Any) -> Loaded:
    return Plans.load(request_body(plan, {}, "ann") | more)


def test_secrets_of_a_plan_include_steps_undos_and_child_plans(tmp_path: Path) -> None:
    inner = uses(Plan("inner"), "INNER")
    file = tmp_path / "middle.yaml"
    middle = uses(Plan("middle"), "MIDDLE")
    middle.run_plan("inner", inner)
    file.write_text(middle.to_yaml())
    plan = uses(Plan("outer"), "OUTER")
    plan.run_plan("middle", str(file))
    plan.step("undone", "noop.execute").undo("command.exec.execute", argv=["true"], stdin=secret("UNDO"))

    names = {reference.removeprefix("env:LONGSHORE_SECRET_") for reference in loaded(plan).secrets}

    assert names == {"OUTER", "MIDDLE", "INNER", "UNDO"}


def test_child_run_redacts_secrets_of_its_parent_and_siblings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OUTER", "ONE"):
        monkeypatch.setenv(f"LONGSHORE_SECRET_{name}", f"{name}-value")
    plan = uses(Plan("outer"), "OUTER")
    plan.run_plan("one", uses(Plan("one"), "ONE"))
    plan.run_plan("two", Plan("two", steps={"act": {"op": "noop.execute"}}))
    sandbox = Sandbox()
    sandbox.run(plan, run_id="r")

    parent, child = sandbox.plans.get("r"), sandbox.plans.get("r.two")

    assert child.secrets == parent.secrets
    assert len(child.secrets) == 2


def test_replaced_secret_stays_redacted_for_its_run(monkeypatch: pytest.MonkeyPatch) -> None:
    run = loaded(uses(Plan("p"), "DB"))
    other = loaded(uses(Plan("p"), "DB"))
    monkeypatch.setenv("LONGSHORE_SECRET_DB", "old-value")
    assert redaction_of(run).text("old-value new-value") == "*** new-value"

    monkeypatch.setenv("LONGSHORE_SECRET_DB", "new-value")

    assert redaction_of(run).text("old-value new-value") == "*** ***"
    assert redaction_of(other).text("old-value new-value") == "old-value ***"


def test_value_that_an_attempt_reads_is_remembered_for_its_run_and_child_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    run = loaded(uses(Plan("p"), "DB"), instance_id="1234")
    redaction_of(run).values.add("seen-value")

    child = loaded(uses(Plan("q"), "DB"), instance_id="1234.0")

    assert redaction_of(child).text("seen-value") == "***"


def test_process_remembers_a_limited_number_of_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_secrets, "_REMEMBERED", 2)
    for number in range(3):
        redaction_of(loaded(uses(Plan("p"), "DB"), instance_id=str(number))).values.add(f"value-{number}")

    assert run_secrets.redact("value-0 value-1 value-2") == "value-0 *** ***"


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.usefixtures("own_registry")
def test_results_of_hosts_are_redacted(monkeypatch: pytest.MonkeyPatch, fails: bool) -> None:
    monkeypatch.setenv("LONGSHORE_SECRET_DB", "db-value")

    @operation("unit.hosts")
    def hosts() -> Result:
        error = "no connection with db-value" if fails else None
        return Result(hosts=[HostResult("web1", changed=True, error=error, data={"text": "db-value"})])

    plan = uses(Plan("p"), "DB")
    plan.step("hosts", "unit.hosts").after("uses-db")

    report = Sandbox().run(plan)

    assert report.step("hosts").status == ("failed" if fails else "changed")
    assert report.step("hosts").hosts[0].data == {"text": "***"}
    assert "db-value" not in report.model_dump_json()


@pytest.mark.usefixtures("own_registry")
def test_prediction_is_redacted_with_its_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGSHORE_SECRET_DB", "db-value")

    @operation("unit.act")
    def act() -> None: ...

    @act.predict
    def predict() -> Prediction:
        return Prediction("would write db-value", changed=True, data={"text": "db-value"})

    plan = uses(Plan("p"), "DB")
    plan.step("act", "unit.act")

    answer = dry_run_step(request_body(plan, {}, "ann"), 1, "web1", Mock())

    assert (answer["action"], answer["data"]) == ("would write ***", {"text": "***"})


@pytest.mark.parametrize("kind", ["text", "json"])
def test_log_lines_are_redacted_with_their_tracebacks(kind: str) -> None:
    redaction_of(loaded(uses(Plan("p"), "DB"), instance_id="1")).values.add('se"cret')
    if kind == "json":
        pytest.importorskip("pythonjsonlogger")
    formatter = logs.formatter(kind, run_secrets.redact)
    try:
        raise RuntimeError('no connection with se"cret')
    except RuntimeError as error:
        record = logging.LogRecord("own", logging.INFO, "", 1, 'found se"cret', (), (RuntimeError, error, None))
    logs.About("web1").filter(record)

    line = formatter.format(record)

    assert "cret" not in line
    assert line.count("***") == 2


def test_result_and_error_of_an_applications_task_are_redacted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGSHORE_SECRET_DB", "db-value")
    plan = uses(Plan("p"), "DB")
    plan.step("ship", "celery.task.execute", task="bank.ship").timeout("1m")
    run = loaded(plan)
    store = Mock()
    store.now.return_value = 0
    store.settings.lease = 1.0
    record = {"status": "waiting", "fence": "7", "attempts": "1"}
    store.step_fields.side_effect = lambda _run, _ids, kinds: {1: tuple(map(record.get, kinds))}
    store.complete.return_value = Recorded(accepted=True, advance=False)
    waits = ExternalWaits(store, Mock(get=lambda _: run), Mock())
    monkeypatch.setattr(waits, "_why", lambda _: "RuntimeError: postgres://app:db-value@db")

    waits.task_ended({"text": "db-value"}, "r", 1, "", "7", ok=True)
    waits.task_ended("task-1", "r", 1, "", "7", ok=False)

    succeeded, failed = store.complete.call_args_list
    assert succeeded.kwargs["bulk"] == '{"data": {"text": "***"}}'
    assert failed.args[5] == '{"error": "RuntimeError: postgres://app:***@db"}'

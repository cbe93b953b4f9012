"""Monitoring of runs: metrics that agree with the reports, notifications, logs and traces."""

from __future__ import annotations

import hashlib
import hmac
import json
import threading
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace as otel
from opentelemetry.sdk.trace import TracerProvider
from prometheus_client.parser import text_string_to_metric_families

from longshore.orchestration import Client, Plan, Report
from longshore.orchestration.monitoring import counters as counting
from longshore.orchestration.monitoring import metrics
from tests.integration.conftest import QUICK
from tests.integration.listener import Listener, attributes, listener
from tests.integration.processes import PATIENCE, Installation, lines, wait_for
from tests.servers import RedisServer

pytestmark = pytest.mark.operations
assert listener

SECRET = "of-the-webhook"  # noqa: S105
Metrics = dict[tuple[str, tuple[str, ...]], float]


@pytest.fixture(scope="module")
def place(
    redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory, listener: Listener
) -> Iterator[Installation]:
    folder = tmp_path_factory.mktemp("observed")
    options = QUICK | {
        "notify_webhook": f"{listener.url}/hook",
        "notify_secret": SECRET,
        "notify_command": f"sh -c 'cat >> {folder}/notice; echo \"$LONGSHORE_NOTICE_KIND\" >> {folder}/kinds'",
        "notify_apprise": f"{listener.url.replace('http', 'json')}/apprise",
        "notify_link": "https://ops.example/flower/",
        "log_format": "json",
        "tracing": "true",
        "host": "web1",
    }
    made = Installation(redis_server.url, folder, options=options)
    where = {"OTEL_EXPORTER_OTLP_ENDPOINT": listener.url, "OTEL_EXPORTER_OTLP_COMPRESSION": "none"}
    try:
        for name in ("one", "two"):
            made.worker(name, "-c", "2", **where).start()
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def client(place: Installation) -> Client:
    return place.client()


def scraped(text: str) -> Metrics:
    return {
        (sample.name, tuple(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def by_reports(reports: list[Report]) -> Metrics:
    """The expected counters, from the reports."""
    counts: Counter[tuple[str, tuple[str, ...]]] = Counter()
    for report in reports:
        if report.ended:
            counts["longshore_runs_total", (report.plan, str(report.state))] += 1
        for step in report.steps:
            if step.status in {"changed", "unchanged", "failed", "skipped", "cancelled", "not_run", "unknown"}:
                counts["longshore_steps_total", (step.op, str(step.status))] += 1
            tries = sum(item.attempts for item in step.items) if step.items else step.attempts
            if tries:
                counts["longshore_step_attempts_total", (step.op,)] += tries
            if step.undo is not None and step.undo.duration_s is not None:
                counts["longshore_undos_total", (step.op, str(step.undo.status))] += 1
    return {name: float(value) for name, value in counts.items()}


def counters(found: Metrics) -> Metrics:
    names = {"longshore_runs_total", "longshore_steps_total", "longshore_step_attempts_total", "longshore_undos_total"}
    return {key: value for key, value in found.items() if key[0] in names}


def release(folder: Path, name: str) -> Plan:
    plan, mark = Plan(name), folder / uuid.uuid4().hex
    first = plan.step("first", "noop.execute", changed=True)
    many = plan.step("many", "noop.execute", changed=True).foreach([1, 2, 3]).after(first)
    again = plan.step("again", "command.shell.execute", command=f"test -e {mark} || {{ touch {mark}; exit 1; }}")
    again.retry(2, initial=0.05).after(first).undo("none")
    plan.step("last", "noop.execute", fail="no such table").after(many, again)
    return plan


def test_metrics_agree_with_the_reports_of_live_and_ended_runs(client: Client, place: Installation) -> None:
    gate = Plan("gated")
    ask = gate.step("ask", "approval.wait.execute").timeout(60).after(gate.step("before", "noop.execute", changed=True))
    gate.step("after", "noop.execute").after(ask)
    runs = [client.start(release(place.folder, "release")) for _ in range(3)] + [client.start(gate)]
    for run in runs[:3]:
        run.wait(timeout=PATIENCE)
    wait_for("the approval to wait", lambda: runs[3].report().step("ask").status == "waiting")

    def agreed() -> bool:
        return counters(scraped(metrics.text(client.store))) == by_reports([run.report() for run in runs])

    wait_for("metrics to agree with a live run", agreed, 20)
    found = scraped(place.longshore("metrics").out)
    assert found["longshore_runs_live", ("gated", "running")] == 1
    assert found["longshore_runs_total", ("release", "undone")] == 3
    before = counters(found)
    runs[3].approve("ask")
    runs[3].wait(timeout=PATIENCE)
    wait_for("metrics to agree with ended runs", agreed, 20)
    found = scraped(metrics.text(client.store))
    assert ("longshore_runs_live", ("gated", "running")) not in found
    assert all(counters(found)[key] >= value for key, value in before.items())
    took = sum(run.report().duration_s or 0 for run in runs[:3])
    assert found["longshore_run_duration_seconds_sum", ("release",)] == pytest.approx(took, abs=0.01)
    assert found["longshore_run_duration_seconds_count", ("release",)] == 3
    assert found["longshore_step_duration_seconds_bucket", ("+Inf", "noop.execute")] >= 9
    assert found["longshore_redis_memory_bytes", ("used",)] > 0

    # repeated and concurrent scrapes count nothing twice
    threads = [threading.Thread(target=lambda: metrics.text(place.client().store)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert agreed()

    # a reopened run keeps its earlier counts
    kept = Plan("kept", on_failure="keep")
    kept.step("a", "noop.execute", changed=True)
    run = client.start(kept)
    run.wait(timeout=PATIENCE)
    good = "longshore_runs_total", ("kept", "succeeded")
    wait_for("the run to be counted", lambda: scraped(metrics.text(client.store)).get(good) == 1)
    run.answer(run.undo())
    wait_for("the undo of the run", lambda: run.state() == "undone")
    wait_for(
        "the run to be counted",
        lambda: ("longshore_runs_total", ("kept", "undone")) in scraped(metrics.text(client.store)),
    )
    assert scraped(metrics.text(client.store))["longshore_runs_total", ("kept", "succeeded")] == 1


def test_killed_worker_is_counted(client: Client, place: Installation) -> None:
    plan = Plan("killed")
    plan.step("sleeps", "noop.execute", sleep=3)
    with place.worker("third", "-c", "1", "-Q", "noop", LONGSHORE_HOST="web3"):
        run = client.start(plan)
        wait_for("the step to run", lambda: run.report().step("sleeps").status == "running")
        for worker in place.workers:
            worker.kill()
    for worker in place.workers[:2]:
        worker.start()
    run.wait(timeout=PATIENCE)
    found = scraped(metrics.text(client.store))
    assert found["longshore_leases_lost_total", ("noop.execute",)] >= 1
    assert run.report().step("sleeps").attempts >= 2
    assert counting.totals(client.store).counts


def test_failure_approval_and_failed_undo_send_notifications(
    client: Client, place: Installation, listener: Listener
) -> None:
    listener.failures = 1  # the first request to the service fails
    failed = client.start(release(place.folder, "release"))
    failed.wait(timeout=PATIENCE)
    (notice,) = wait_for("a notice", lambda: listener.notices(failed.id))
    assert (notice["kind"], notice["state"], notice["plan"]) == ("failed", "undone", "release")
    assert "no such table" in notice["text"]
    assert notice["link"] == f"https://ops.example/flower/runs/{failed.id}"
    _, headers, body = next(one for one in listener.heard if one[0] == "/hook" and failed.id.encode() in one[2])
    mac = hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest()
    assert headers["Longshore-Signature"] == f"sha256={mac}"
    assert headers["Longshore-Notice"] == notice["id"]

    def by_apprise() -> list[dict[str, Any]]:
        found = [json.loads(body) for path, _, body in list(listener.heard) if path == "/apprise"]
        return [one for one in found if failed.id in one["title"]]

    (notice,) = wait_for("a notification by Apprise", by_apprise)
    assert "no such table" in notice["message"]

    plan = Plan("asks")
    plan.step("ask", "approval.wait.execute", message="is the backup there?").timeout(60)
    asks = client.start(plan)
    (notice,) = wait_for("a notice", lambda: listener.notices(asks.id))
    assert (notice["kind"], notice["step"]) == ("approval_wanted", "ask")
    asks.cancel()
    asks.wait(timeout=PATIENCE)

    plan = Plan("stuck")
    bad = plan.step("bad", "command.exec.execute", argv=["true"]).undo("command.exec.execute", argv=["false"])
    plan.step("fails", "noop.execute", fail="no").after(bad)
    stuck = client.start(plan)
    stuck.wait(timeout=PATIENCE)
    (notice,) = wait_for("a notice", lambda: listener.notices(stuck.id))
    assert notice["kind"] == "undo_failed"

    wait_for(
        "the notifications by command",
        lambda: {"failed", "approval_wanted", "undo_failed"} <= set(lines(place.folder / "kinds")),
    )
    assert stuck.id in (place.folder / "notice").read_text()
    assert [one["kind"] for one in listener.notices(asks.id)] == ["approval_wanted"]  # no notification of a cancel


def test_each_log_line_names_its_run_and_step(client: Client, place: Installation) -> None:
    run = client.start(release(place.folder, "logged"))
    run.wait(timeout=PATIENCE)

    def logged() -> list[dict[str, Any]]:
        texts = [line for worker in place.workers for line in lines(worker.log) if line.startswith("{")]
        return [json.loads(line) for line in texts]

    found = wait_for("log lines of the step", lambda: [one for one in logged() if one["run"] == run.id and one["step"]])
    assert {"run", "step", "attempt", "host", "level", "message", "timestamp"} <= found[0].keys()
    assert {one["host"] for one in found} == {"web1"}
    assert {one["step"] for one in found} >= {"last"}
    assert all({"run", "step", "attempt", "host"} <= one.keys() for one in logged())


def test_run_is_one_trace_across_workers_within_the_callers_trace(
    client: Client, place: Installation, listener: Listener
) -> None:
    provider = TracerProvider()
    with provider.get_tracer("application").start_as_current_span("deploy") as above:
        run = client.start(release(place.folder, "traced"))
    run.wait(timeout=PATIENCE)
    spans = wait_for("the spans of the run", lambda: listener.spans(run.id))
    report = run.report()
    assert {span.trace_id.hex() for span in spans} == {f"{above.get_span_context().trace_id:032x}"}
    root = next(span for span in spans if span.name == "traced")
    assert root.parent_span_id.hex() == f"{above.get_span_context().span_id:016x}"
    others = [span for span in spans if span is not root]
    assert {span.parent_span_id for span in others} == {root.span_id}
    assert len({span.span_id for span in spans}) == len(spans)
    names = Counter(span.name for span in others)
    assert names["traced.again"] == report.step("again").attempts == 2
    assert names["traced.many[0]"] == names["traced.many[0] (undo)"] == names["traced.first (undo)"] == 1
    last = next(span for span in others if span.name == "traced.last")
    assert last.status.code == 2
    assert "no such table" in last.status.message
    assert attributes(last)["host.name"]
    assert all(root.start_time_unix_nano <= span.start_time_unix_nano <= span.end_time_unix_nano for span in others)
    assert otel.get_current_span().get_span_context().is_valid is False

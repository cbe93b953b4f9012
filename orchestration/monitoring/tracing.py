"""One OpenTelemetry trace per run, across all workers, built from the record of the run after its end.

Span ids are derived from the run, the step and the attempt. A worker therefore knows the id of its attempt's span,
under which operations record their own spans, and a trace that is sent twice is the same trace. The environment
variables of OpenTelemetry (`OTEL_EXPORTER_OTLP_ENDPOINT`, …) set the destination. The module needs the extra `otel`.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from opentelemetry import context, trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.trace import SpanContext, Status, StatusCode, TraceFlags

from longshore.orchestration.runs.timeline import Bar, bars

if TYPE_CHECKING:
    from longshore.orchestration.client.run import Run


def _number(*parts: object, size: int) -> int:
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:size]) or 1


def _parent(traceparent: str) -> tuple[int, int] | None:
    parts = traceparent.split("-")
    try:
        return (int(parts[1], 16), int(parts[2], 16)) if len(parts) == 4 else None
    except ValueError:
        return None


def _context(run_id: str, instance_id: str, traceparent: str, *name: object) -> SpanContext:
    above = _parent(traceparent)
    trace_id = above[0] if above else _number(run_id, instance_id, size=16)
    return SpanContext(trace_id, _number(run_id, instance_id, *name, size=8), is_remote=True, trace_flags=TraceFlags(1))


@contextlib.contextmanager
def attempt(run_id: str, instance_id: str, traceparent: str, part: str, *, undo: bool, number: int) -> Iterator[None]:
    """Make the span of this attempt the parent of spans that are recorded meanwhile."""
    span = trace.NonRecordingSpan(_context(run_id, instance_id, traceparent, part, undo, number))
    token = context.attach(trace.set_span_in_context(span))
    try:
        yield
    finally:
        context.detach(token)


def spans(run: Run) -> list[ReadableSpan]:
    """The spans of a run: a root, and one span per attempt at each step and at its undo."""
    report, events, body = run.report(), run.events(), run.store.body(run.id) or {}
    instance_id, above = str(body.get("instance_id", "")), str(body.get("trace", ""))
    root = _context(run.id, instance_id, above, "run")
    parent = _parent(above)
    outside = SpanContext(root.trace_id, parent[1], is_remote=True, trace_flags=TraceFlags(1)) if parent else None
    resource = Resource.create({"service.name": "longshore"})
    good, bad = Status(StatusCode.OK), StatusCode.ERROR
    ended = next((event.at for event in reversed(events) if event.name == "run_ended"), run.store.now())
    begun = events[0].at if events else ended
    common = {"longshore.run": run.id, "longshore.plan": report.plan}
    found = [
        ReadableSpan(
            report.plan, root, outside, resource,
            common | {"longshore.state": str(report.state), "longshore.actor": report.actor},
            status=good if report.exit_code == 0 else Status(bad, report.error.message if report.error else None),
            start_time=begun * 1_000_000, end_time=ended * 1_000_000,
        )
    ]  # fmt: skip
    for bar in bars(events):
        step = run.plan.steps[run.plan.index[bar.step]]
        attributes: dict[str, Any] = common | {
            "longshore.step": bar.part, "longshore.operation": step.operation.name, "longshore.attempt": bar.attempt,
            "longshore.undo": bar.undo, "longshore.status": bar.how or "running", "longshore.worker": bar.node,
            "host.name": bar.node.partition("@")[2],
        }  # fmt: skip
        name = f"{report.plan}.{bar.part}{' (undo)' if bar.undo else ''}"
        span = _context(run.id, instance_id, above, bar.part, bar.undo, bar.attempt)
        end = bar.end if bar.end is not None else ended
        found.append(
            ReadableSpan(
                name, span, root, resource, attributes, status=Status(bad, bar.error) if _failed(bar) else good,
                start_time=bar.begin * 1_000_000, end_time=end * 1_000_000,
            )
        )  # fmt: skip
    return found


def _failed(bar: Bar) -> bool:
    return bar.how in {"failed", "unknown", "retrying", "lost", "undo_failed"}


@lru_cache(maxsize=1)
def _exporter() -> Any:
    return OTLPSpanExporter()


def send(run: Run) -> None:
    """Export the trace of a run. Raises OSError where the export fails."""
    if _exporter().export(spans(run)) is not SpanExportResult.SUCCESS:
        raise OSError(f"the trace of run {run.id} could not be sent")

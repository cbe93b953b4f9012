"""The trace context of the caller, as a request carries it."""

from __future__ import annotations


def current_traceparent() -> str:
    """The W3C `traceparent` of the current span, which becomes the parent of the run; '' without one."""
    try:
        from opentelemetry import trace  # noqa: PLC0415 - an extra
    except ImportError:
        return ""
    here = trace.get_current_span().get_span_context()
    return f"00-{here.trace_id:032x}-{here.span_id:016x}-{here.trace_flags:02x}" if here.is_valid else ""

"""Traces, metrics and logs of every process."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import structlog
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from prometheus_client import Counter, Gauge, Histogram
from temporalio.contrib.opentelemetry import create_tracer_provider

from runtime.settings import Settings

API_REQUESTS = Histogram(
    "duranova_api_request_seconds",
    "Time to answer an API request",
    ["service", "method", "status"],
)
OPERATIONS = Counter("duranova_operations_total", "Operations that ended", ["lifecycle", "outcome"])
OPERATIONS_LIVE = Gauge("duranova_operations_live", "Operations that have not ended", ["lifecycle"])
HOST_UP = Gauge("duranova_host_up", "Whether the host reports (1) or is silent (0)", ["host"])
HOST_USED = Gauge("duranova_host_used", "What claims take of a host", ["host", "resource"])
HOST_TOTAL = Gauge("duranova_host_total", "What a host has", ["host", "resource"])


def configure(settings: Settings, process: str, log: Path | None = None) -> TracerProvider:
    """Set up logs (to ``log``, or standard error) and the global tracer provider. Once per process; shut
    the result down at exit."""
    _configure_logs(settings, log)
    # Replay-safe: a workflow's spans are exported once, not again with each replay.
    resource = Resource.create({"service.name": f"duranova-{process}"})
    provider: Any = create_tracer_provider(resource=resource)
    if settings.otlp_endpoint:
        exporter = OTLPSpanExporter(endpoint=f"{settings.otlp_endpoint.rstrip('/')}/v1/traces")
        provider.add_span_processor(BatchSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    return provider  # type: ignore[no-any-return]  # a wrapper with the same interface


def _configure_logs(settings: Settings, log: Path | None) -> None:
    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        _add_trace_id,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderer: Any = (
        structlog.processors.JSONRenderer()
        if settings.log_json
        else structlog.dev.ConsoleRenderer()
    )
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = logging.FileHandler(log) if log else logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                renderer,
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    logging.getLogger("httpx").setLevel(logging.WARNING)


def _add_trace_id(_logger: Any, _method: str, event: Any) -> Any:
    context = trace.get_current_span().get_span_context()
    if context.is_valid:
        event["trace_id"] = trace.format_trace_id(context.trace_id)
    return event

"""Traces, metrics and logs of a process, set up in one place."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from opentelemetry import propagate, trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.semconv.attributes.service_attributes import SERVICE_NAME
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from temporalio.contrib.opentelemetry import create_tracer_provider
from temporalio.runtime import (
    LogForwardingConfig,
    LoggingConfig,
    PrometheusConfig,
    Runtime,
    TelemetryConfig,
    TelemetryFilter,
)

from domain.errors import Unavailable
from runtime.logs import configure_logs
from runtime.metrics import listening
from runtime.settings import Settings

_EXPORT_S = 3.0
"""For one export with all its retries; a collector that is not there holds up no stop for longer."""
_WORKER_HEARTBEAT = timedelta(seconds=60)


@contextmanager
def observed(
    settings: Settings,
    process: str,
    log: Path | None = None,
    metrics_listen: str | None = None,
    *,
    worker_heartbeats: bool = True,
) -> Iterator[None]:
    """Logs (to ``log``, or standard error), traces and, if wanted, metrics of ``duranova-<process>``
    inside the block. Once per process, before its Temporal client. What is not exported yet leaves at
    the end. ``worker_heartbeats`` shows this process's workers to Temporal's operators, for a thread of
    each worker. Unavailable when an address for metrics cannot be had.
    """
    configure_logs(settings, log)
    _observe_temporal(settings, _WORKER_HEARTBEAT if worker_heartbeats else None)
    provider = _tracer_provider(settings, process)
    trace.set_tracer_provider(provider)
    # Not its baggage: what a client says there would travel on into workflow histories.
    propagate.set_global_textmap(TraceContextTextMapPropagator())
    with listening(metrics_listen):
        try:
            yield
        finally:
            provider.shutdown()


def _tracer_provider(settings: Settings, process: str) -> Any:
    resource = Resource.create({SERVICE_NAME: f"duranova-{process}"})
    # Replay-safe: a workflow's spans are exported once, not again with each replay.
    if not settings.otlp_endpoint:
        # Spans without content: they cost nothing, and trace ids still join the lines of all logs.
        return create_tracer_provider(ALWAYS_OFF, resource, shutdown_on_exit=False)
    provider = create_tracer_provider(resource=resource, shutdown_on_exit=False)
    endpoint = f"{settings.otlp_endpoint.rstrip('/')}/v1/traces"
    exporter = OTLPSpanExporter(endpoint=endpoint, timeout=_EXPORT_S)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return provider


def _observe_temporal(settings: Settings, worker_heartbeat: timedelta | None) -> None:
    """Bring the lines of the SDK's native part into our log, and its metrics to a port of their own."""
    forwarding = LogForwardingConfig(
        logging.getLogger("temporalio.core"),
        append_target_to_name=False,
        prepend_target_on_message=False,
        append_log_fields_to_message=False,
    )
    metrics = settings.temporal_metrics_listen
    telemetry = TelemetryConfig(
        logging=LoggingConfig(TelemetryFilter(core_level="WARN", other_level="ERROR"), forwarding),
        metrics=PrometheusConfig(bind_address=metrics) if metrics else None,
    )
    try:
        runtime = Runtime(telemetry=telemetry, worker_heartbeat_interval=worker_heartbeat)
    except (RuntimeError, ValueError) as error:
        raise Unavailable(f"cannot serve Temporal's metrics on {metrics}: {error}") from error
    Runtime.set_default(runtime, error_if_already_set=False)

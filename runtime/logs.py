"""Structured logs: one JSON line per event, with the ids of what it belongs to."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from contextvars import ContextVar
from logging.handlers import WatchedFileHandler
from pathlib import Path
from typing import Any

import structlog
from opentelemetry import trace
from temporalio import activity, workflow

from runtime.settings import Settings

Facts = dict[str, str]
_facts: ContextVar[Facts | None] = ContextVar("request_facts", default=None)
_TEMPORAL = ("workflow_id", "workflow_type", "run_id", "activity_type", "attempt")
"""What of the SDK's description of a workflow or activity a line keeps."""
_SAID_BETTER = ("Exception in ASGI application", "Completing activity as failed")
"""Lines of libraries about errors that we have logged before them, with their ids."""


def configure_logs(settings: Settings, log: Path | None) -> None:
    """Send every logger of the process to ``log``, or to standard error."""
    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        _add_facts,
        _add_trace_id,
        structlog.stdlib.add_logger_name,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = _handler(settings, log, shared)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    logging.captureWarnings(True)
    for chatty in ("httpx", "httpcore", "uvicorn.access"):  # they quote headers and queries
        logging.getLogger(chatty).setLevel(logging.WARNING)
    # A worker that stops lets go of the workflows that wait: each would be reported as an error.
    logging.getLogger("opentelemetry.context").setLevel(logging.CRITICAL)
    workflow.logger.workflow_info_on_message = False
    activity.logger.activity_info_on_message = False


def _handler(settings: Settings, log: Path | None, shared: list[Any]) -> logging.Handler:
    renderer: Any = (
        structlog.processors.JSONRenderer()
        if settings.log_json
        else structlog.dev.ConsoleRenderer()
    )
    handler = _LogFile(log) if log else logging.StreamHandler(sys.stderr)
    handler.addFilter(lambda record: not str(record.msg).startswith(_SAID_BETTER))
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, _add_temporal_ids],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                renderer,
            ],
        )
    )
    return handler


class _LogFile(WatchedFileHandler):
    """Whoever rotates the file need not tell us. Where it cannot be opened again, its line is lost, and the
    reason on standard error; the standard library would raise that in whoever had something to say."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            super().emit(record)
        except OSError:
            self.handleError(record)


@contextmanager
def request_facts(**facts: str) -> Iterator[Facts]:
    """Put these into every line of the block, also of the threads it starts; yields what ``note`` adds."""
    gathered = dict(facts)
    token = _facts.set(gathered)
    try:
        yield gathered
    finally:
        _facts.reset(token)


def note(**facts: str) -> None:
    """Something learned about the request being served: in all its lines from now on, whatever thread
    learned it. Nothing outside a request."""
    gathered = _facts.get()
    if gathered is not None:
        gathered.update(facts)


def _add_facts(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> Any:
    return {**(_facts.get() or {}), **event}


def _add_trace_id(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> Any:
    context = trace.get_current_span().get_span_context()
    if context.is_valid:
        event["trace_id"] = trace.format_trace_id(context.trace_id)
    return event


def _add_temporal_ids(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> Any:
    """Fields instead of the SDK's dictionaries, for its own lines and those of workflows."""
    record = event["_record"]
    for kind in ("temporal_workflow", "temporal_activity"):
        details = getattr(record, kind, {})
        event.update({key: details[key] for key in _TEMPORAL if key in details})
    core = getattr(record, "temporal_log", None)
    if core is not None:
        event.update({f"core_{key}": value for key, value in core.fields.items()})
    return event

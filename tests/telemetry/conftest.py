"""A cloud in process whose spans, log lines and metrics can be read."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import structlog
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from temporalio import activity, workflow

from runtime.logs import configure_logs
from runtime.settings import Settings
from tests.stack import Stack, running_stack
from tests.temporal_server import temporal_server


@dataclass
class Spans:
    """What was exported since the test began."""

    exporter: InMemorySpanExporter

    def all(self) -> list[ReadableSpan]:
        """Every span that has ended, in the order of their ends."""
        return list(self.exporter.get_finished_spans())

    def of(self, trace_id: int) -> list[ReadableSpan]:
        """The spans of one trace."""
        return [s for s in self.all() if s.get_span_context().trace_id == trace_id]


@pytest.fixture
def spans() -> Iterator[Spans]:
    exporter = InMemorySpanExporter()
    provider: Any = trace.get_tracer_provider()  # set by tests.temporal_server
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    yield Spans(exporter)
    exporter.shutdown()  # a processor cannot be taken away, but it can be made to keep nothing


@dataclass
class Log:
    """The process's log file."""

    path: Path

    def text(self) -> str:
        """All of it."""
        return self.path.read_text()

    def lines(self, **having: Any) -> list[dict[str, Any]]:
        """The lines in which these fields have these values."""
        found = [json.loads(line) for line in self.text().splitlines()]
        return [line for line in found if having.items() <= line.items()]


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    """Everything is logged, at level debug, into a file of this test."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    structured = structlog.get_config()
    said = workflow.logger.workflow_info_on_message, activity.logger.activity_info_on_message
    path = tmp_path / "duranova.log"
    configure_logs(Settings(log_level="debug"), path)
    structlog.configure(cache_logger_on_first_use=False)
    yield Log(path)
    for handler in root.handlers:
        handler.close()
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)
    structlog.configure(**structured)
    workflow.logger.workflow_info_on_message, activity.logger.activity_info_on_message = said


@pytest.fixture(scope="session")
def address() -> Iterator[str]:
    with temporal_server() as address:
        yield address


@pytest.fixture
async def stack(tmp_path: Path, address: str) -> AsyncIterator[Stack]:
    """Two hosts."""
    async with running_stack(tmp_path, address, hosts=2) as stack:
        yield stack

"""What is seen of each request from outside its handler: a span, a metric and a line in the log."""

from __future__ import annotations

import re
from collections.abc import MutableMapping
from time import perf_counter
from typing import Any

import structlog
from fastapi.telemetry import TelemetryConfig
from opentelemetry import trace
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from runtime.logs import Facts, request_facts
from runtime.metrics import API_REQUESTS

SERVICES = ("compute", "identity", "image", "network", "operations", "internal")
_METHODS = {"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"}
_ROUTINE = re.compile(r"/(healthz|readyz|metrics|static/.*|internal/v1/hosts/[^/]+/report)")
"""Paths that machines ask every few seconds: no span, and a line only at level debug."""

_log = structlog.get_logger(__name__)


def _routine(scope: MutableMapping[str, Any]) -> bool:
    return _ROUTINE.fullmatch(scope["path"]) is not None


TRACING: TelemetryConfig = {
    "exclude": _routine,
    "logs": False,  # ours have the ids
    "metrics": False,  # ours are Prometheus's
    "operation_spans": False,  # one span for a request, not one for each of its dependencies
}
"""How FastAPI traces: a server span for each request, named by its route, that goes on with the client's
trace."""


class Observed:
    """ASGI layer inside that span: what the span may say of the caller, a duration in ``API_REQUESTS``,
    and one line in the log with what ``runtime.logs.note`` learned on the way."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        with request_facts(request_id=scope["request_id"]) as facts:
            await _Exchange(scope, facts).run(self.app, receive, send)


class _Exchange:
    """One request and its answer."""

    def __init__(self, scope: Scope, facts: Facts) -> None:
        self._scope = scope
        self._facts = facts
        self._path = scope["path"]
        self._status: int | None = None
        self._started = perf_counter()

    async def run(self, app: ASGIApp, receive: Receive, send: Send) -> None:
        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._answered(message["status"])
            await send(message)

        try:
            await app(self._scope, receive, counted)
        except Exception:  # raised again: only counted and logged on its way
            if self._status is None:  # else whoever answered has logged it
                _log.exception("request failed outside its handler", path=self._path)
                self._answered(500)
            raise
        finally:
            self._tell()

    def _answered(self, status: int) -> None:
        self._status = status
        method = self._scope["method"]
        # Clients can make up methods and paths; labels must not grow with them.
        labels = (_service(self._path), method if method in _METHODS else "OTHER", str(status))
        API_REQUESTS.labels(*labels).observe(perf_counter() - self._started)
        span = trace.get_current_span()
        if span.is_recording():
            span.set_attributes({f"duranova.{key}": value for key, value in self._facts.items()})
            if self._scope["query_string"]:
                span.set_attribute("url.query", "REDACTED")  # filters may quote what is secret

    def _tell(self) -> None:
        say = _log.debug if _routine(self._scope) else _log.info
        say(
            "request",
            method=self._scope["method"],
            path=self._path,
            status=self._status,
            ms=round((perf_counter() - self._started) * 1000, 1),
        )


def _service(path: str) -> str:
    first = path.split("/", 2)[1] if path.startswith("/") else ""
    return first if first in SERVICES else "other"

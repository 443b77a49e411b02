"""What is seen of each request from outside its handler: a span, a metric and a line in the log."""

from __future__ import annotations

import re
from time import perf_counter
from typing import Any

import structlog
from opentelemetry import trace
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
from opentelemetry.semconv.attributes.http_attributes import HTTP_ROUTE
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from runtime.logs import Facts, request_facts
from runtime.metrics import API_REQUESTS

SERVICES = ("compute", "identity", "image", "network", "operations", "internal")
_METHODS = {"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"}
_ROUTINE = re.compile(r"/(healthz|readyz|metrics|static/.*|internal/v1/hosts/[^/]+/report)")
"""Paths that machines ask every few seconds: no span, and a line only at level debug."""
_SHOWN_HEADERS = {b"host", b"user-agent", b"traceparent", b"tracestate"}
_HEADER_BYTES = 512

_log = structlog.get_logger(__name__)


class Observed:
    """ASGI layer: a server span that goes on with the client's trace, a duration in ``API_REQUESTS``,
    and one line in the log, which has what ``runtime.logs.note`` learned on the way."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._traced = OpenTelemetryMiddleware(
            self._in_span,
            default_span_details=lambda scope: (_method(scope), {}),
            exclude_spans=["receive", "send"],
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        with request_facts(request_id=scope["request_id"]) as facts:
            scope["facts"] = facts
            if _ROUTINE.fullmatch(scope["path"]):
                await _Exchange(scope).run(self._app, receive, send)
            else:
                await self._traced(_shown(scope), receive, send)

    async def _in_span(self, shown: Scope, receive: Receive, send: Send) -> None:
        scope = shown["duranova"]
        span = trace.get_current_span()

        async def named(message: Message) -> None:
            if message["type"] == "http.response.start" and span.is_recording():
                _describe(span, scope)
            await send(message)

        await _Exchange(scope).run(self._app, receive, named)


class _Exchange:
    """One request and its answer, measured and logged."""

    def __init__(self, scope: Scope) -> None:
        self._scope = scope
        self._path = scope["path"]
        self._status: int | None = None
        self._started = perf_counter()

    async def run(self, app: ASGIApp, receive: Receive, send: Send) -> None:
        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._status = message["status"]
                labels = (_service(self._path), _method(self._scope), str(self._status))
                API_REQUESTS.labels(*labels).observe(perf_counter() - self._started)
            await send(message)

        try:
            await app(self._scope, receive, counted)
        except Exception:
            if self._status is None:  # else whoever answered has logged it
                self._status = 500
                _log.exception("request failed outside its handler", path=self._path)
            raise
        finally:
            self._tell()

    def _tell(self) -> None:
        say = _log.debug if _ROUTINE.fullmatch(self._path) else _log.info
        say(
            "request",
            method=self._scope["method"],
            path=self._path,
            status=self._status,
            ms=round((perf_counter() - self._started) * 1000, 1),
        )


def _shown(scope: Scope) -> Scope:
    """What the tracing library gets to see: no query, for it may hold what only its owner may know, no
    baggage, which would travel on into histories, and no header that it could choke on."""
    headers = [
        (name, value)
        for name, value in scope["headers"]
        if name in _SHOWN_HEADERS and value.isascii() and len(value) <= _HEADER_BYTES
    ]
    wanted = ("type", "http_version", "method", "scheme", "path", "server", "client")
    shown: dict[str, Any] = {key: scope.get(key) for key in wanted}
    return {**shown, "query_string": b"", "headers": headers, "duranova": scope}


def _describe(span: trace.Span, scope: Scope) -> None:
    facts: Facts = scope["facts"]
    span.set_attributes({f"duranova.{key}": value for key, value in facts.items()})
    template = getattr(scope.get("route"), "path_format", None)
    if template is None:  # no route took it
        span.update_name(f"{_method(scope)} {_service(scope['path'])}")
        return
    route = f"{scope.get('root_path', '')}{template}"
    span.set_attribute(HTTP_ROUTE, route)
    span.update_name(f"{_method(scope)} {route}")


def _service(path: str) -> str:
    first = path.split("/", 2)[1] if path.startswith("/") else ""
    return first if first in SERVICES else "other"


def _method(scope: Scope) -> str:
    # Clients can make up methods; neither names of spans nor labels may grow with them.
    return scope["method"] if scope["method"] in _METHODS else "OTHER"

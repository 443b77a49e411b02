"""What is counted and measured where it happens. Gauges of the record are read from it at each scrape."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import (
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    start_http_server,
)

from domain.errors import Unavailable

# Else each series has a second one, which nobody asks for.
disable_created_metrics()  # type: ignore[no-untyped-call]  # the library forgot its annotation

API_REQUESTS = Histogram(
    "duranova_api_request_seconds",
    "Time to answer an API request",
    ["service", "method", "status"],
)

_LONG = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900, 3600)
OPERATIONS = Counter("duranova_operations_total", "Operations that ended", ["lifecycle", "outcome"])
OPERATION_SECONDS = Histogram(
    "duranova_operation_seconds",
    "Time from accepting an operation to its end",
    ["lifecycle", "outcome"],
    buckets=_LONG,
)
HOLDS = Counter(
    "duranova_operation_holds_total",
    "Times an operation began to wait for an operator, by the step that failed",
    ["lifecycle", "step"],
)
ACTIVITY_SECONDS = Histogram(
    "duranova_activity_seconds",
    "Time of one attempt of an activity; the outcome of one that failed is the kind of its error",
    ["activity", "outcome"],
    buckets=_LONG,
)

WEBHOOK_DELIVERIES = Counter(
    "duranova_webhook_deliveries_total",
    "Attempts to hand an event to a webhook: accepted, refused (an answer but no 2xx) or unreachable",
    ["webhook", "outcome"],
)

STEP_SECONDS = Histogram(
    "duranova_host_step_seconds",
    "Time of one stage of a driver call on a host",
    ["activity", "step"],
    buckets=_LONG,
)
DRIVER_ERRORS = Counter(
    "duranova_host_driver_errors_total",
    "Driver calls that failed, by the stage they had reached",
    ["activity", "step", "kind"],
)
HOST_TRANSITIONS = Counter(
    "duranova_host_transitions_total", "Hosts that went silent or came back", ["host", "to"]
)
GUESTS = Gauge("duranova_host_guests", "Guests on a host", ["host", "power_state"])


@contextmanager
def listening(address: str | None) -> Iterator[None]:
    """Serve this process's metrics on ``HOST:PORT`` inside the block; nothing for None or "".

    Unavailable when the address cannot be had.
    """
    if not address:
        yield
        return
    host, _, port = address.rpartition(":")
    try:
        server, thread = start_http_server(int(port), host.strip("[]") or "127.0.0.1")
    except (OSError, ValueError, OverflowError) as error:
        raise Unavailable(f"cannot serve metrics on {address}: {error}") from error
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

"""The record as gauges, read from the database at each scrape: the same from every replica, never stale."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector
from sqlalchemy import Engine
from sqlmodel import Session

from db.events import event_after, get_mark, newest_event, webhook_mark
from db.hosts import is_up, list_hosts, usage_by_host
from db.operations import LiveCount, count_live
from db.reconcilers import Reconciler, reconcilers
from db.servers import count_by_state
from db.session import now, reading
from db.sightings import orphan_counts
from domain.lifecycle import LIFECYCLES
from domain.states import LIVE_OPERATION_STATES, VmState
from domain.usage import NOTHING_USED
from runtime.settings import Settings

_RESOURCES = ("vcpus", "ram_mb", "disk_gb")


class RecordGauges(Collector):
    """Operations that have not ended, servers by state, hosts and what is taken of them, and what the
    reconcilers saw and did."""

    def __init__(self, engine: Engine, settings: Settings) -> None:
        self._engine = engine
        self._settings = settings

    def collect(self) -> Iterator[Metric]:
        with reading(self._engine) as session:
            live, by_state = count_live(session), count_by_state(session)
            hosts = list(_hosts(session, self._settings))
            webhooks = list(_webhooks(session, self._settings))
            orphans, ran = orphan_counts(session), reconcilers(session)
        yield from _operations(live)
        servers = GaugeMetricFamily("duranova_servers", "Servers by VM state", labels=["vm_state"])
        for state in VmState:
            if state is not VmState.DELETED:
                servers.add_metric([state], by_state.get(state, 0))
        yield servers
        yield from hosts
        yield from webhooks
        gauge = GaugeMetricFamily(
            "duranova_orphans", "What a host has and no server accounts for", labels=["host"]
        )
        for host, count in orphans.items():
            gauge.add_metric([host], count)
        yield gauge
        yield from _reconcilers(ran)


def _reconcilers(ran: Mapping[str, Reconciler]) -> Iterator[Metric]:
    success = GaugeMetricFamily(
        "duranova_reconciler_last_success_seconds",
        "When a reconciler ended well last, in seconds since 1970",
        labels=["reconciler"],
    )
    fixes = CounterMetricFamily(
        "duranova_reconciler_fixes", "What a reconciler has put right", labels=["reconciler"]
    )
    for name, row in ran.items():
        fixes.add_metric([name], row.fixes)
        if row.succeeded_at is not None:
            success.add_metric([name], row.succeeded_at.timestamp())
    yield from (success, fixes)
    yield from _findings(ran)


def _findings(ran: Mapping[str, Reconciler]) -> Iterator[Metric]:
    """What the audit and the look at the queues found."""
    violations = GaugeMetricFamily(
        "duranova_audit_violations", "What does not hold, by invariant", labels=["invariant"]
    )
    pollers = GaugeMetricFamily(
        "duranova_queue_pollers", "Workers that poll a task queue", labels=["queue"]
    )
    if audit := ran.get("audit"):
        for invariant, count in audit.findings.items():
            violations.add_metric([invariant], count)
        if audit.succeeded_at is not None:
            yield GaugeMetricFamily(
                "duranova_audit_last_run_seconds",
                "When the audit ran last, in seconds since 1970",
                value=audit.succeeded_at.timestamp(),
            )
    if queues := ran.get("queues"):
        for queue, seen in queues.findings.items():
            pollers.add_metric([queue], seen["pollers"])
    yield from (violations, pollers)


def _operations(live: list[LiveCount]) -> Iterator[Metric]:
    counts = {(row.lifecycle, row.state): row.count for row in live}
    gauge = GaugeMetricFamily(
        "duranova_operations_live",
        "Operations that have not ended",
        labels=["lifecycle", "state"],
    )
    for lifecycle in LIFECYCLES:
        for state in LIVE_OPERATION_STATES:
            gauge.add_metric([lifecycle, state], counts.get((lifecycle, state), 0))
    yield gauge
    yield GaugeMetricFamily(
        "duranova_operation_oldest_live_seconds",
        "Age of the oldest operation that has not ended; 0 when there is none",
        value=_oldest_s(live),
    )
    oldest = GaugeMetricFamily(
        "duranova_operation_oldest_seconds",
        "Age of the oldest operation in a state; 0 when there is none",
        labels=["state"],
    )
    for state in LIVE_OPERATION_STATES:
        oldest.add_metric([state], _oldest_s(row for row in live if row.state == state))
    yield oldest


def _oldest_s(live: Iterable[LiveCount]) -> float:
    oldest = min((row.oldest for row in live), default=None)
    return max(0.0, (now() - oldest).total_seconds()) if oldest else 0.0


def _webhooks(session: Session, settings: Settings) -> Iterator[Metric]:
    behind = GaugeMetricFamily(
        "duranova_webhook_lag_events",
        "Events that a webhook has not accepted, those that it does not want included",
        labels=["webhook"],
    )
    since = GaugeMetricFamily(
        "duranova_webhook_lag_seconds",
        "Age of the oldest of them; 0 when there is none",
        labels=["webhook"],
    )
    newest = newest_event(session)
    for webhook in settings.webhooks:
        mark = get_mark(session, webhook_mark(webhook.name))
        next_one = None if mark is None else event_after(session, mark)
        behind.add_metric([webhook.name], newest - (newest if mark is None else mark))
        age_s = (now() - next_one.time).total_seconds() if next_one else 0.0
        since.add_metric([webhook.name], max(0.0, age_s))
    yield from (behind, since)


def _hosts(session: Session, settings: Settings) -> Iterator[Metric]:
    up = GaugeMetricFamily(
        "duranova_host_up", "Whether the host reports (1) or is silent (0)", labels=["host"]
    )
    labels = ["host", "resource"]
    total = GaugeMetricFamily("duranova_host_total", "What a host has", labels=labels)
    used = GaugeMetricFamily("duranova_host_used", "What claims take of a host", labels=labels)
    servers = GaugeMetricFamily("duranova_host_servers", "Servers on a host", labels=["host"])
    usage = usage_by_host(session)
    for host in list_hosts(session):
        taken = usage.get(host.name, NOTHING_USED)
        up.add_metric([host.name], is_up(host, settings, now()))
        servers.add_metric([host.name], taken.servers)
        for what in _RESOURCES:
            total.add_metric([host.name, what], getattr(host, what))
            used.add_metric([host.name, what], getattr(taken, what))
    yield from (up, total, used, servers)

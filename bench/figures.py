"""Every figure: its unit, what it should be, and what real Nova was measured at. One table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One row of the report."""

    title: str
    unit: str
    """``s``, ``/s``, ``MiB``, ``x`` (a ratio), ``%`` (of one processor) or empty (a count)."""
    at_most: float | None = None
    at_least: float | None = None
    """The target; on two processors, with embedded, persisted Temporal and SQLite."""
    nova: float | None = None
    """Nova 34 with all that it needs, on two processors as well; the middle where a range was measured."""

    def meets(self, value: float) -> bool | None:
        """Whether a value reaches the target; None without a target."""
        if self.at_most is not None:
            return value <= self.at_most
        return None if self.at_least is None else value >= self.at_least


FIGURES: dict[str, dict[str, Figure]] = {
    "lifecycle": {
        "create_cpu": Figure(
            title="CPU of the cloud per server created", unit="s", at_most=0.10, nova=1.38
        ),
        "delete_cpu": Figure(
            title="CPU of the cloud per server deleted", unit="s", at_most=0.08, nova=0.82
        ),
        "post_p50": Figure(
            title="POST, one at a time, p50", unit="s", at_most=0.020, nova=0.11
        ),
        "post_p95": Figure(title="POST, one at a time, p95", unit="s"),
        "active_p50": Figure(
            title="POST → ACTIVE, one at a time, p50", unit="s", at_most=0.20, nova=0.755
        ),
        "active_p95": Figure(
            title="POST → ACTIVE, one at a time, p95", unit="s", at_most=0.35, nova=0.9
        ),
        "gone_p50": Figure(title="DELETE → 404, one at a time, p50", unit="s", nova=0.48),
        "gone_p95": Figure(title="DELETE → 404, one at a time, p95", unit="s"),
        "creates_rate": Figure(
            title="100 creates, 20 at once", unit="/s", at_least=15, nova=1.3
        ),
        "load_post_p50": Figure(title="… the POST, p50", unit="s", nova=3.4),
        "load_post_p95": Figure(title="… the POST, p95", unit="s", nova=5.1),
        "load_active_p50": Figure(title="… POST → ACTIVE, p50", unit="s"),
        "load_active_p95": Figure(title="… POST → ACTIVE, p95", unit="s"),
        "deletes_rate": Figure(
            title="100 deletes, 20 at once", unit="/s", at_least=20, nova=2.1
        ),
        "load_gone_p50": Figure(title="… DELETE → gone, p50", unit="s"),
        "load_gone_p95": Figure(title="… DELETE → gone, p95", unit="s"),
        "errors": Figure(title="… errors", unit="", at_most=0),
    },
    "reads": {
        "detail_p50": Figure(
            title="GET /servers/detail?limit=100, p50", unit="s", at_most=0.030, nova=0.82
        ),
        "detail_p95": Figure(title="… p95", unit="s"),
        "detail_rate": Figure(title="… 8 at once", unit="/s", at_least=60, nova=1.35),
        "detail_cpu": Figure(title="… CPU each", unit="s", nova=0.93),
        "names_p50": Figure(title="GET /servers?limit=100, p50", unit="s", nova=0.29),
        "names_rate": Figure(title="… 8 at once", unit="/s", nova=5),
        "names_cpu": Figure(title="… CPU each", unit="s"),
        "show_p50": Figure(
            title="GET /servers/{id}, p50", unit="s", at_most=0.005, nova=0.064
        ),
        "show_rate": Figure(title="… 8 at once", unit="/s", at_least=500, nova=23),
        "show_cpu": Figure(title="… CPU each", unit="s"),
        "flavors_p50": Figure(title="GET /flavors/detail, p50", unit="s", nova=0.021),
        "flavors_rate": Figure(title="… 8 at once", unit="/s", nova=76),
        "flavors_cpu": Figure(title="… CPU each", unit="s"),
        "token_p50": Figure(title="token by password, p50", unit="s", nova=0.32),
        "token_rate": Figure(title="… 8 at once", unit="/s", at_least=40, nova=6),
        "token_cpu": Figure(title="… CPU each", unit="s"),
    },
    "lists": {
        **{
            f"{place}_{count}": Figure(
                title=f"detail?limit=100 of {count:,} servers, {words}, p50",
                unit="s",
                nova=0.82 if (place, count) == ("first", 500) else None,
            )
            for count in (500, 10_000, 100_000)
            for place, words in (("first", "first page"), ("deep", "page in the middle"))
        },
        "growth": Figure(
            title="slowest of these pages ÷ first page of 500", unit="x", at_most=1.5
        ),
        "growth_cpu": Figure(title="… the same in CPU, chores included", unit="x"),
        "idle_cpu_100000": Figure(title="idle with 125,000 servers, CPU", unit="%"),
    },
    "placement": {
        **{
            f"decision_{p}_{hosts}": Figure(
                title=f"decision and claim, {hosts:,} hosts, {p}",
                unit="s",
                at_most={("p99", 1000): 0.010, ("p99", 10_000): 0.050}.get((p, hosts)),
                nova={("p50", 10): 0.13, ("p50", 1000): 4.0}.get((p, hosts)),
            )
            for hosts in (10, 100, 1000, 10_000)
            for p in ("p50", "p99")
        },
        "claims_rate": Figure(title="200 claims, 50 at once, just enough room", unit="/s"),
        "overbooked": Figure(title="… hosts overbooked", unit="", at_most=0),
        "spurious": Figure(title="… refused although there was room", unit="", at_most=0),
    },
    "guest": {
        "guest_active": Figure(title="real guest: POST → ACTIVE", unit="s"),
        "guest_libvirt": Figure(title="… what libvirt and QEMU need for it alone", unit="s"),
        "guest_overhead": Figure(title="… ours beyond that", unit="s", at_most=0.5),
        "guest_beyond_stages": Figure(
            title="… ours beyond its own stages disk, define and start", unit="s"
        ),
    },
    "footprint": {
        "rss": Figure(
            title="idle, RSS of all processes", unit="MiB", at_most=600, nova=4005
        ),
        "pss": Figure(title="idle, PSS of all processes", unit="MiB", nova=3147),
        "processes": Figure(title="idle, processes", unit="", nova=35),
        "idle_cpu": Figure(title="idle, CPU", unit="%"),
        "ready_new": Figure(title="start → ready, new data directory", unit="s", at_most=5),
        "ready_new_cpu": Figure(title="… CPU", unit="s"),
        "ready_again": Figure(title="start → ready, again", unit="s", at_most=5),
        "ready_again_cpu": Figure(title="… CPU", unit="s"),
    },
}  # fmt: skip
"""Part → figure → what it is."""


@dataclass(frozen=True, slots=True)
class Spread:
    """A figure over all rounds."""

    median: float
    low: float
    high: float


def spread(values: Sequence[float]) -> Spread:
    """Of at least one value."""
    return Spread(median(values), min(values), max(values))


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest of the values that is at least as large as this percentage of them (nearest rank);
    ValueError without values."""
    if not values:
        raise ValueError("no values")
    rank = math.ceil(percent / 100 * len(values))
    return sorted(values)[max(0, rank - 1)]

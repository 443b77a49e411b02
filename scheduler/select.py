"""Filters, then weighers: the ranked hosts, why each other one was refused, and the nearest fix."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from heapq import nlargest, nsmallest
from zlib import crc32

from scheduler.filters import Filter
from scheduler.model import HostState, Ranked, Refused, Request, Selection
from scheduler.weighers import Weigher

KEPT = 100
"""Ranked hosts returned; the rest is only counted."""
_EXAMINED = 200
"""Refused hosts that are examined for the nearest fix."""

_DIGITS = 9
_SAME = 10**-_DIGITS
"""Totals that differ less are equal: the rest is rounding."""

_Refusal = tuple[HostState, int, str]
"""host, index of the filter, reason"""


def select(
    hosts: Iterable[HostState],
    request: Request,
    filters: Sequence[Filter],
    weighers: Sequence[tuple[Weigher, float]],
) -> Selection:
    """Decide about one request; every host is asked once and takes constant time per filter."""
    active = [f for f in filters if (f.binds_forced or not request.forced) and f.concerns(request)]
    passed, refusals = _sift(hosts, request, active)
    return Selection(
        ranked=_rank(passed, request, weighers),
        hosts=len(passed) + len(refusals),
        passed=len(passed),
        refusals={host.name: f"{active[i].name}: {why}" for host, i, why in refusals},
        refused=_by_filter(refusals, request, active, explain=not passed),
        nearest="" if passed else _nearest(refusals, request, active),
    )


def _sift(
    hosts: Iterable[HostState], request: Request, active: Sequence[Filter]
) -> tuple[list[HostState], list[_Refusal]]:
    asks = [(i, f.passes) for i, f in enumerate(active)]
    passed: list[HostState] = []
    refusals: list[_Refusal] = []
    for host in hosts:
        for i, passes in asks:
            reason = passes(host, request)
            if reason is not None:
                refusals.append((host, i, reason))
                break
        else:
            passed.append(host)
    return passed, refusals


def _rank(
    passed: Sequence[HostState], request: Request, weighers: Sequence[tuple[Weigher, float]]
) -> tuple[Ranked, ...]:
    columns = {
        weigher.name: column
        for weigher, multiplier in weighers
        if weigher.concerns(request)
        and (column := _normalised([weigher.weigh(h, request) for h in passed], multiplier))
    }
    telling = [column for column in columns.values() if any(column)]
    totals = [sum(row) for row in zip(*telling, strict=True)] or [0.0] * len(passed)
    least = min(nlargest(KEPT, totals), default=0.0) - _SAME
    # Equal hosts are taken in an order of the server's own, so that a burst spreads over them.
    salt = crc32(request.server_id.encode())
    keys = [
        (-round(total, _DIGITS), crc32(host.name.encode(), salt), host.name, i)
        for i, (total, host) in enumerate(zip(totals, passed, strict=True))
        if total >= least
    ]
    best = nsmallest(KEPT, keys)
    return tuple(
        Ranked(passed[i].name, totals[i], {name: column[i] for name, column in columns.items()})
        for *_, i in best
    )


def _normalised(values: list[float], multiplier: float) -> list[float]:
    """Brought to 0..1, times the multiplier; all zero when the hosts do not differ."""
    if not values:
        return []
    low = min(values)
    span = max(values) - low
    if not span:
        return [0.0] * len(values)
    scale = multiplier / span
    return [(value - low) * scale for value in values]


def _by_filter(
    refusals: Sequence[_Refusal], request: Request, active: Sequence[Filter], *, explain: bool
) -> tuple[Refused, ...]:
    rows: dict[int, list[_Refusal]] = {}
    for refusal in refusals:
        rows.setdefault(refusal[1], []).append(refusal)
    found = []
    for i, row in sorted(rows.items()):
        best = row[0]
        if explain:
            best = min(row, key=lambda r: (active[i].fix(r[0], request)[0], r[0].name))
        found.append(Refused(active[i].name, len(row), best[0].name, best[2]))
    return tuple(found)


def _nearest(refusals: Sequence[_Refusal], request: Request, active: Sequence[Filter]) -> str:
    """What the host with the fewest and smallest obstacles would need."""
    if not refusals:
        return ""
    near = sorted(refusals, key=lambda r: (-r[1], active[r[1]].fix(r[0], request)[0], r[0].name))[
        :_EXAMINED
    ]
    candidates = []
    for host, first, _reason in near:
        blocking = [f for f in active[first:] if f.passes(host, request) is not None]
        fixes = [f.fix(host, request) for f in blocking]
        distance = sum(d for d, _ in fixes)
        candidates.append((len(fixes), distance, host.name, [words for _, words in fixes]))
    _, _, name, words = min(candidates)
    return f"{name} {' and '.join(words)}"


def explain(selection: Selection, limit: int | None = None) -> str:
    """The decision in a sentence or two; with ``limit`` no longer than so many characters.

    Names the filters with their host counts, and when no host passed, the nearest fix.
    """
    if selection.ranked:
        return _cut(_chosen(selection), limit)
    if not selection.hosts:
        return _cut(f"{_NO_HOST} No host has reported to this cloud yet.", limit)
    reasons = ", ".join(
        f"{r.hosts}{' refused' if i == 0 else ''} by {r.filter} ({_example(r, selection)})"
        for i, r in enumerate(selection.refused)
    )
    whole = f"{_NO_HOST} {_hosts(selection.hosts)}: {reasons}. Nearest: {selection.nearest}."
    if limit is None or len(whole) <= limit:
        return whole
    counts = ", ".join(f"{r.hosts} by {r.filter}" for r in selection.refused)
    return _cut(
        f"{_NO_HOST} {_hosts(selection.hosts)}: {counts}. Nearest: {selection.nearest}.", limit
    )


_NO_HOST = "No valid host was found."


def _hosts(n: int) -> str:
    return f"{n} host{'' if n == 1 else 's'}"


def _example(row: Refused, selection: Selection) -> str:
    return row.reason if selection.hosts == 1 else f"closest {row.best}: {row.reason}"


def _chosen(selection: Selection) -> str:
    first = selection.ranked[0]
    text = f"{first.host} was chosen: {selection.passed} of {_hosts(selection.hosts)} passed"
    refused = ", ".join(f"{r.hosts} refused by {r.filter}" for r in selection.refused)
    text += f", {refused}." if refused else "."
    weights = sorted(first.weights.items(), key=lambda pair: -abs(pair[1]))
    said = ", ".join(f"{name} {weight:+.2f}" for name, weight in weights if weight)
    return f"{text} Weight {first.total:+.2f} ({said})." if said else text


def _cut(text: str, limit: int | None) -> str:
    return text if limit is None or len(text) <= limit else text[: limit - 1] + "…"

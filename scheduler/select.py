"""Filters, then weighers: the ranked hosts, why each other one was refused, and the nearest fix."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from heapq import nlargest, nsmallest
from itertools import compress
from operator import not_
from zlib import crc32

from scheduler.filters import Filter, Verdict
from scheduler.model import HostState, Ranked, Refused, Request, Selection
from scheduler.weighers import Weigher

KEPT = 100
"""Ranked hosts returned; the rest is only counted."""
_EXAMINED = 200
"""Refused hosts that are examined for the nearest fix."""

_DIGITS = 9
_SAME = 10**-_DIGITS
"""Totals that differ less are equal: the rest is rounding."""


@dataclass(frozen=True, slots=True)
class _Sieve:
    """A filter of this decision, and what it refused."""

    filter: Filter
    request: Request
    hosts: list[HostState]
    verdicts: list[Verdict]

    def reason(self, i: int) -> str:
        verdict = self.verdicts[i]
        said = (
            verdict if isinstance(verdict, str) else self.filter.passes(self.hosts[i], self.request)
        )
        return said or ""

    def closest(self, count: int) -> list[int]:
        """The hosts that need least to pass."""
        fix, hosts = self.filter.fix, self.hosts
        distances = (fix(host, self.request)[0] for host in hosts)
        keys = (
            (distance, host.name, i)
            for i, (distance, host) in enumerate(zip(distances, hosts, strict=True))
        )
        return [i for *_, i in nsmallest(count, keys)]


def select(
    hosts: Iterable[HostState],
    request: Request,
    filters: Sequence[Filter],
    weighers: Sequence[tuple[Weigher, float]],
) -> Selection:
    """Decide about one request; every host is judged once by each filter until one refuses it."""
    active = [f for f in filters if (f.binds_forced or not request.forced) and f.concerns(request)]
    looked_at = list(hosts)
    passed, sieves = _sift(looked_at, request, active)
    closest = [[0] if passed else sieve.closest(_EXAMINED) for sieve in sieves]
    return Selection(
        ranked=_rank(passed, request, weighers),
        hosts=len(looked_at),
        passed=len(passed),
        refusals=_reasons(sieves),
        refused=tuple(_summary(*pair) for pair in zip(sieves, closest, strict=True)),
        nearest="" if passed else _nearest(sieves, closest, request, active),
    )


def _sift(
    hosts: list[HostState], request: Request, active: Sequence[Filter]
) -> tuple[list[HostState], list[_Sieve]]:
    """The hosts that pass, and those filters that refused any."""
    sieves = []
    for judging in active:
        verdicts = judging.judge(hosts, request)
        if any(verdicts):
            refused = list(compress(hosts, verdicts))
            sieves.append(_Sieve(judging, request, refused, list(filter(None, verdicts))))
            hosts = list(compress(hosts, map(not_, verdicts)))
    return hosts, sieves


def _reasons(sieves: Sequence[_Sieve]) -> dict[str, str]:
    """host → filter and reason, of the first so many by name."""
    refused = (
        (h.name, number, i) for number, s in enumerate(sieves) for i, h in enumerate(s.hosts)
    )
    return {
        name: f"{sieves[number].filter.name}: {sieves[number].reason(i)}"
        for name, number, i in nsmallest(KEPT, refused)
    }


def _rank(
    passed: Sequence[HostState], request: Request, weighers: Sequence[tuple[Weigher, float]]
) -> tuple[Ranked, ...]:
    columns = {
        weigher.name: column
        for weigher, multiplier in weighers
        if weigher.concerns(request)
        and (column := _normalised(weigher.column(passed, request), multiplier))
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


def _normalised(values: Sequence[float], multiplier: float) -> list[float]:
    """Brought to 0..1, times the multiplier; all zero when the hosts do not differ."""
    if not values:
        return []
    low = min(values)
    span = max(values) - low
    if not span:
        return [0.0] * len(values)
    scale = multiplier / span
    return [(value - low) * scale for value in values]


def _summary(sieve: _Sieve, closest: Sequence[int]) -> Refused:
    best = closest[0]
    return Refused(sieve.filter.name, len(sieve.hosts), sieve.hosts[best].name, sieve.reason(best))


def _nearest(
    sieves: Sequence[_Sieve],
    closest: Sequence[Sequence[int]],
    request: Request,
    active: Sequence[Filter],
) -> str:
    """What the host with the fewest and smallest obstacles would need."""
    candidates: list[tuple[int, float, str, list[str]]] = []
    for sieve, near in reversed(list(zip(sieves, closest, strict=True))):  # who came furthest first
        blocking = active[active.index(sieve.filter) :]
        for host in (sieve.hosts[i] for i in near[: _EXAMINED - len(candidates)]):
            fixes = [f.fix(host, request) for f in blocking if f.passes(host, request) is not None]
            distance = sum(d for d, _ in fixes)
            candidates.append((len(fixes), distance, host.name, [words for _, words in fixes]))
    if not candidates:
        return ""
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

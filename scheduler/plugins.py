"""Filters and weighers by class name: our own, or another project's through its entry points."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.metadata import entry_points
from typing import Any, TypeVar

from domain.errors import BadRequest
from scheduler import constraints, filters, weighers
from scheduler.filters import Filter
from scheduler.weighers import Weigher

FILTER_GROUP = "duranova.filters"
WEIGHER_GROUP = "duranova.weighers"

_FILTERS: dict[str, type[Filter]] = {
    f.__name__: f for f in (*filters.BUILT_IN, *constraints.BUILT_IN)
}
_WEIGHERS: dict[str, type[Weigher]] = {w.__name__: w for w in weighers.BUILT_IN}

Plugin = TypeVar("Plugin", Filter, Weigher)


def load_filters(names: Iterable[str]) -> tuple[Filter, ...]:
    """The filters of these names in this order, after those that always apply.

    BadRequest for a name that is neither ours nor registered.
    """
    return (
        *(always() for always in filters.ALWAYS),
        *(_find(name, _FILTERS, FILTER_GROUP, Filter)() for name in names),
    )


def load_weighers(multipliers: Mapping[str, float]) -> tuple[tuple[Weigher, float], ...]:
    """The weighers with a multiplier other than zero. BadRequest for an unknown name."""
    found = (
        (_find(name, _WEIGHERS, WEIGHER_GROUP, Weigher), multiplier)
        for name, multiplier in multipliers.items()
    )
    return tuple((weigher(), multiplier) for weigher, multiplier in found if multiplier)


def _find(
    name: str, built_in: Mapping[str, type[Plugin]], group: str, kind: type[Any]
) -> type[Plugin]:
    if name in built_in:
        return built_in[name]
    for entry in entry_points(group=group, name=name):
        found: type[Plugin] = entry.load()
        if isinstance(found, type) and issubclass(found, kind):
            return found
        raise BadRequest(f"Entry point {name} of {group} is not a {kind.__name__}")
    raise BadRequest(f"No {kind.__name__} is called {name}, here or under entry points {group}")

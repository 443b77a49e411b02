"""The microversion engine, and its agreement with the list in ``api.history``."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Annotated, Any

import pytest
from pydantic import Field, ValidationError

from api import compute, history, microversion
from api.history import HISTORY
from api.microversion import MAX, MIN, Body, Span, Version, View, since, span, until
from api.paging import Params


@contextmanager
def speaking(version: str) -> Iterator[None]:
    token = microversion._current.set(Version.parse(version))
    try:
        yield
    finally:
        microversion._current.reset(token)


# --- every declaration, walked


def subclasses(root: type) -> Iterator[type]:
    for cls in root.__subclasses__():
        yield cls
        yield from subclasses(cls)


def models(*roots: type) -> Iterator[Any]:
    seen: set[type] = set()
    for root in roots:
        for cls in subclasses(root):
            if cls not in seen and cls.__module__.startswith("api."):
                seen.add(cls)
                yield cls


def spans(field: Any) -> list[Span]:
    return [mark for mark in field.metadata if isinstance(mark, Span)]


def wire_names(cls: Any) -> dict[str, list[Span]]:
    """Wire name → the ranges of the fields that bear it."""
    names: dict[str, list[Span]] = defaultdict(list)
    for name, field in cls.model_fields.items():
        wire = field.serialization_alias or field.alias or name
        names[wire].extend(spans(field) or [Span()])
    return names


def routes() -> Iterator[Any]:
    for router in compute.routers:
        yield from router.routes


def declared() -> Iterator[tuple[str, Span]]:
    for cls in models(View, Body, Params):
        for name, ranges in wire_names(cls).items():
            for wanted in ranges:
                yield f"{cls.__qualname__}.{name}", wanted
    for route in routes():
        wanted = getattr(route.endpoint, "span", None)
        if wanted is not None:
            yield f"{sorted(route.methods)} {route.path}", wanted


LISTED = {Version.parse(change.version): change for change in HISTORY}


def test_the_list_has_every_version_once_in_order() -> None:
    assert list(LISTED) == [Version(2, minor) for minor in range(1, MAX.minor + 1)]
    assert len(HISTORY) == len(LISTED)
    assert (min(LISTED), max(LISTED)) == (MIN, MAX)


@pytest.mark.parametrize("change", HISTORY, ids=lambda change: change.version)
def test_each_entry_is_a_sentence_with_what_it_touches(change: history.Change) -> None:
    assert change.says.endswith(".")
    assert change.touches


def edges() -> set[Version]:
    """The versions at which something begins or is gone."""
    found = set()
    for _, wanted in declared():
        if wanted.since != MIN:
            found.add(wanted.since)
        if wanted.until != MAX:
            found.add(Version(wanted.until.major, wanted.until.minor + 1))
    return found


def test_every_version_a_field_or_route_begins_or_ends_at_is_listed() -> None:
    unlisted = [
        f"{where}: {wanted}"
        for where, wanted in declared()
        if wanted.since not in LISTED or wanted.until not in LISTED
    ]
    assert unlisted == []
    assert edges() <= LISTED.keys()


def test_what_is_listed_with_names_is_declared_somewhere() -> None:
    unused = [
        change.version
        for version, change in LISTED.items()
        if change.offered
        and change.touches not in ("behaviour", "everything")
        and version not in edges()
    ]
    assert unused == []


def overlapping(ranges: Iterable[Span]) -> bool:
    ordered = sorted(ranges, key=lambda wanted: wanted.since)
    return any(a.until >= b.since for a, b in pairwise(ordered))


def test_no_wire_name_has_two_fields_in_one_version() -> None:
    clashes = [
        f"{cls.__qualname__}.{name}"
        for cls in models(View, Body, Params)
        for name, ranges in wire_names(cls).items()
        if overlapping(ranges)
    ]
    assert clashes == []


def test_no_path_has_two_handlers_in_one_version() -> None:
    found: dict[tuple[str, str], list[Span]] = defaultdict(list)
    for route in routes():
        for method in route.methods:
            wanted = getattr(route.endpoint, "span", Span())
            found[(method, route.path)].append(wanted)
    assert [key for key, ranges in found.items() if overlapping(ranges)] == []


def test_the_walk_sees_real_declarations() -> None:
    seen = {where for where, wanted in declared() if wanted != Span()}
    assert "FlavorView.extra_specs" in seen
    assert "ListKeypairs.user_id" in seen
    assert "NewFlavor.description" in seen
    assert any("os-hypervisors/statistics" in where for where in seen)


# --- the engine


class Sample(View):
    always: int = 1
    text: Annotated[str, until("2.9"), Field(serialization_alias="value")] = "old"
    number: Annotated[int, since("2.10"), Field(serialization_alias="value")] = 2
    late: Annotated[int, since("2.20", until="2.29")] = 3


@pytest.mark.parametrize(
    ("version", "shown"),
    [
        ("2.1", {"always": 1, "value": "old"}),
        ("2.9", {"always": 1, "value": "old"}),
        ("2.10", {"always": 1, "value": 2}),
        ("2.20", {"always": 1, "value": 2, "late": 3}),
        ("2.29", {"always": 1, "value": 2, "late": 3}),
        ("2.30", {"always": 1, "value": 2}),
    ],
)
def test_a_view_shows_the_fields_of_the_version(version: str, shown: dict[str, Any]) -> None:
    with speaking(version):
        assert Sample().model_dump() == shown


class Asked(Body):
    name: str = ""
    tags: Annotated[list[str] | None, since("2.52")] = None
    networks: Annotated[str | None, since("2.37", required=True)] = None
    wire: Annotated[int, Field(alias="os-x:wire")] = 0


@pytest.mark.parametrize(
    ("version", "body", "refusal"),
    [
        ("2.51", {"networks": "auto", "tags": []}, "'tags' was unexpected"),
        ("2.52", {"networks": "auto", "tags": []}, None),
        ("2.36", {}, None),
        ("2.37", {}, "'networks' is a required property"),
        ("2.36", {"networks": "auto"}, "'networks' was unexpected"),
        ("2.1", {"colour": "red"}, "Extra inputs are not permitted"),
        ("2.1", {"os-x:wire": 1}, None),
        ("2.1", {"wire": 1}, "Extra inputs are not permitted"),
    ],
)
def test_a_body_takes_the_fields_of_the_version(
    version: str, body: dict[str, Any], refusal: str | None
) -> None:
    with speaking(version):
        if refusal is None:
            Asked.model_validate(body)
            return
        with pytest.raises(ValidationError) as caught:
            Asked.model_validate(body)
    assert refusal in str(caught.value)


def test_ranges_hold_both_ends() -> None:
    wanted = span("2.10", "2.20")
    inside = [v for v in LISTED if v in wanted]
    assert (inside[0], inside[-1], len(inside)) == (Version(2, 10), Version(2, 20), 11)


@pytest.mark.parametrize("text", ["", "2", "2.", ".1", "2.x", "02.1", "2.01", "2.1 ", "-2.1"])
def test_what_is_no_version_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=text.replace(".", r"\.") or "^$"):
        Version.parse(text)


def test_versions_order_by_number_not_by_text() -> None:
    assert Version.parse("2.9") < Version.parse("2.10")


@pytest.mark.parametrize("predicate", ["refuses_unknown_query", "checks_extra_specs"])
def test_behaviour_changes_once(predicate: str) -> None:
    ask = getattr(history, predicate)
    answers = []
    for change in HISTORY:
        with speaking(change.version):
            answers.append(ask())
    assert answers == sorted(answers)
    assert not answers[0]
    assert answers[-1]

"""Keyset pages: every row once, in order, whatever ties and NULLs there are."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from sqlalchemy import Engine
from sqlmodel import Session, col, select

from db.flavors import Flavor
from db.paging import keyset
from db.session import reading, transaction

COLUMNS: dict[str, Any] = {
    "description": col(Flavor.description),
    "vcpus": col(Flavor.vcpus),
    "name": col(Flavor.name),
}


@pytest.fixture
def flavors(engine: Engine) -> None:
    rows = itertools.product([None, "a", "b"], [1, 2], range(2))
    with transaction(engine) as session:
        for n, (description, vcpus, _) in enumerate(rows):
            session.add(
                Flavor(
                    flavor_id=f"{n}", name=f"{n:02}", vcpus=vcpus, ram_mb=1, disk_gb=1,
                    description=description,
                )
            )  # fmt: skip


def pages(session: Session, order: list[tuple[Any, bool]], size: int) -> list[Flavor]:
    seen: list[Flavor] = []
    after = None
    for _ in range(20):
        page = list(session.scalars(keyset(select(Flavor), order, after, size)))
        seen += page
        if len(page) < size:
            return seen
        after = [getattr(page[-1], column.key) for column, _ in order]
    raise AssertionError("the pages do not end")


@pytest.mark.usefixtures("flavors")
@pytest.mark.parametrize("size", [1, 2, 5, 12, 50])
@pytest.mark.parametrize(
    "keys",
    [("name",), ("vcpus", "name"), ("description", "name"), ("description", "vcpus", "name")],
)
@pytest.mark.parametrize("descending", [False, True])
def test_the_pages_are_the_whole_list_in_order(
    engine: Engine, keys: tuple[str, ...], size: int, descending: bool
) -> None:
    order = [(COLUMNS[key], descending) for key in keys]
    with reading(engine) as session:
        seen = pages(session, order, size)

    def rank(flavor: Flavor) -> list[Any]:  # NULLs behind every value
        values = [getattr(flavor, key) for key in keys]
        return [(value is None, value if value is not None else "") for value in values]

    assert seen == sorted(seen, key=rank, reverse=descending)
    assert len({f.id for f in seen}) == 12


@pytest.mark.usefixtures("flavors")
def test_a_row_that_comes_or_goes_neither_repeats_nor_hides_another(engine: Engine) -> None:
    order = [(COLUMNS["vcpus"], False), (COLUMNS["name"], False)]
    with reading(engine) as session:
        first = list(session.scalars(keyset(select(Flavor), order, None, 4)))
    with transaction(engine) as session:
        session.delete(first[0])
        session.add(Flavor(flavor_id="new", name="000", vcpus=1, ram_mb=1, disk_gb=1))
    with reading(engine) as session:
        after = [first[-1].vcpus, first[-1].name]
        rest = list(session.scalars(keyset(select(Flavor), order, after, 50)))
    names = [f.name for f in first + rest]
    assert len(names) == len(set(names)) == 12
    assert "000" not in names

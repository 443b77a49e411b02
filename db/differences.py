"""Two tables held against each other from end to end, without reading a row of either."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from sqlalchemy import Select, except_, literal_column, select
from sqlmodel import Session, col

_PAGE = 500
"""Ids in one statement: below every database's limit of parameters."""


def columns(*wanted: Any) -> Select[Any]:
    """A query for columns and not for entities, as many as wanted: SQLModel's own knows the types of four."""
    return select(*wanted)


def differing(session: Session, said: Any, held: Any) -> list[str]:
    """Ids, the first columns of the rows of ``said`` that ``held`` does not have in the same way.

    Where both have an index that begins with their columns in this order, the database reads the two side by
    side and hands out what differs: 125,000 rows against as many take it some 30 ms, and Python nothing.
    """
    order: list[Any] = [literal_column(str(n + 1)) for n in range(len(said.selected_columns))]
    rows = session.connection().execute(except_(said, held).order_by(*order))
    return list(dict.fromkeys(row[0] for row in rows))


def looked_at(session: Session, query: Any, column: Any, ids: Iterable[str]) -> Iterator[Any]:
    """The rows of a query whose ``column`` is one of the ids, read a page of ids at a time."""
    rest = iter(ids)
    while page := list(islice(rest, _PAGE)):
        yield from session.connection().execute(query.where(col(column).in_(page))).all()

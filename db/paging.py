"""Keyset pages: a page is found by its marker's values, so none is lost or doubled under churn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, false, literal, or_


def keyset(
    statement: Select[Any],
    order: Sequence[tuple[Any, bool]],
    after: Sequence[Any] | None,
    limit: int,
) -> Select[Any]:
    """``statement`` sorted, cut to the rows behind ``after``, at most ``limit`` of them.

    ``order`` is (column, descending) pairs and must end in a unique column. ``after`` holds the
    marker row's values of those columns. NULLs sort behind every value.
    """
    if after is not None:
        statement = statement.where(_behind(order, after))
    for column, descending in order:
        term = column.desc() if descending else column.asc()
        if _nullable(column):
            term = term.nulls_first() if descending else term.nulls_last()
        statement = statement.order_by(term)
    return statement.limit(limit)


def _nullable(column: Any) -> bool:
    return bool(getattr(column, "nullable", False) or getattr(column.expression, "nullable", False))


def _behind(order: Sequence[tuple[Any, bool]], after: Sequence[Any]) -> ColumnElement[bool]:
    branches = []
    equal: list[ColumnElement[bool]] = []
    for (column, descending), value in zip(order, after, strict=True):
        branches.append(and_(*equal, _past(column, descending, value)))
        equal.append(column.is_(None) if value is None else column == value)
    return and_(*_bound(*order[0], after[0]), or_(*branches))


def _bound(column: Any, descending: bool, value: Any) -> list[ColumnElement[bool]]:
    """What the first column alone says of the rows behind. The branches imply it, but no database draws
    from them where in an index to begin."""
    if value is None or (_nullable(column) and not descending):
        return []
    bound = literal(value, column.type)
    return [column <= bound if descending else column >= bound]


def _past(column: Any, descending: bool, value: Any) -> ColumnElement[bool]:
    if value is None:
        past: ColumnElement[bool] = column.is_not(None) if descending else false()
        return past
    bound = literal(value, column.type)  # booleans have no order as plain Python values
    if descending:
        smaller: ColumnElement[bool] = column < bound
        return smaller
    return or_(column > bound, column.is_(None)) if _nullable(column) else and_(column > bound)

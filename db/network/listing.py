"""Lists of network resources: any attribute filters, any attribute sorts, pages by marker."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Generic, TypeVar

from sqlalchemy import ColumnElement, and_, exists, false, func, not_, or_, true
from sqlalchemy import select as sql_select
from sqlmodel import Session, SQLModel, select

from db.paging import keyset
from domain.errors import BadRequest, NotFound

T = TypeVar("T", bound=SQLModel)
_EVERYTHING = 2**31 - 1
_TRUE, _FALSE = ("true", "1", "yes", "on", "t"), ("false", "0", "no", "off", "f")
Condition = Callable[[Sequence[str]], ColumnElement[bool]]


@dataclass(frozen=True, slots=True)
class Attributes(Generic[T]):
    """What can be filtered and sorted: wire name → column; constants every row has; special filters."""

    model: type[T]
    columns: Mapping[str, Any]
    missing: Callable[[str], NotFound]
    constants: Mapping[str, Any] = field(default_factory=dict)
    special: Mapping[str, Condition] = field(default_factory=dict)
    tagged: bool = True
    admin_only: Collection[str] = ()
    """What only admins may filter and sort by, because only they see it."""


@dataclass(frozen=True, slots=True)
class Page:
    """What a list request asks. Values of one filter are alternatives."""

    filters: Mapping[str, Sequence[str]] = field(default_factory=dict)
    sort: Sequence[tuple[str, bool]] = ()
    """(attribute, descending)"""
    limit: int | None = None
    marker: str | None = None
    reverse: bool = False
    """The page before the marker instead of the one behind it."""


def list_rows(
    session: Session, of: Attributes[T], visible: ColumnElement[bool], page: Page
) -> tuple[list[T], bool]:
    """A page of the visible rows, and whether more lie beyond it in the page's direction.

    BadRequest for an unknown filter, sort key or value; NotFound for an unknown marker.
    """
    ident = of.columns["id"]
    order = [(_sortable(of, name), descending) for name, descending in page.sort]
    if all(column is not ident for column, _ in order):
        order.append((ident, False))
    if page.reverse:
        order = [(column, not descending) for column, descending in order]
    after = None
    if page.marker is not None:
        marked = session.exec(select(of.model).where(ident == page.marker, visible)).first()
        if marked is None:
            raise of.missing(page.marker)
        after = [getattr(marked, column.key) for column, _ in order]
    wanted = _EVERYTHING if page.limit is None else page.limit + 1
    conditions = [_filter(session, of, name, values) for name, values in page.filters.items()]
    statement = keyset(sql_select(of.model).where(visible, *conditions), order, after, wanted)
    rows: list[T] = list(session.execute(statement).scalars())
    more = page.limit is not None and len(rows) > page.limit
    rows = rows[: page.limit]
    return (rows[::-1] if page.reverse else rows), more


def _sortable(of: Attributes[Any], name: str) -> Any:
    if name not in of.columns:
        raise BadRequest(f"['{name:.64}'] is invalid attribute for sort_keys")
    return of.columns[name]


def _filter(
    session: Session, of: Attributes[Any], name: str, values: Sequence[str]
) -> ColumnElement[bool]:
    if name in of.special:
        return of.special[name](values)
    if name in of.columns:
        return or_(*(_equals(name, of.columns[name], value) for value in values))
    if name in of.constants:
        shown = str(of.constants[name] if of.constants[name] is not None else "").lower()
        return true() if shown in [value.lower() for value in values] else false()
    if name == "changed_since":
        return and_(*(of.columns["updated_at"] >= _instant(value) for value in values))
    if of.tagged and name in _TAG_FILTERS:
        tags = [tag for value in values for tag in value.split(",")]
        has = [_has_tag(session, of.model, tag) for tag in tags]
        return _TAG_FILTERS[name](has)
    raise BadRequest(f"['{name:.64}'] is invalid attribute for filtering")


def _equals(name: str, column: Any, text: str) -> ColumnElement[bool]:
    kind = column.type.python_type
    value: Any = text
    if kind is bool:
        value = _boolean(name, text)
    elif kind is int and text:
        value = _integer(name, text)
    elif kind is datetime:
        value = _instant(text)
    if text == "" and column.nullable:
        empty: ColumnElement[bool] = (
            column.is_(None) if kind is int else column.in_(("",)) | column.is_(None)
        )
        return empty
    equal: ColumnElement[bool] = column == value
    return equal


def _boolean(name: str, text: str) -> bool:
    if text.lower() in _TRUE:
        return True
    if text.lower() in _FALSE:
        return False
    raise BadRequest(f"Invalid input for {name}. Reason: '{text:.40}' is not a boolean.")


def _integer(name: str, text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = _EVERYTHING + 1
    if abs(value) > _EVERYTHING:
        raise BadRequest(f"Invalid input for {name}. Reason: '{text:.40}' is not an integer.")
    return value


def _instant(text: str) -> datetime:
    try:
        value = datetime.fromisoformat(text)
    except ValueError:
        raise BadRequest(f"Invalid time '{text:.40}': ISO 8601 is expected.") from None
    return value if value.tzinfo else value.replace(tzinfo=UTC)


def _has_tag(session: Session, model: Any, tag: str) -> ColumnElement[bool]:
    if session.get_bind().dialect.name == "postgresql":
        values = func.json_array_elements_text(model.tags).table_valued("value")
    else:
        values = func.json_each(model.tags).table_valued("value")
    return exists(sql_select(1).select_from(values).where(values.c.value == tag))


_TAG_FILTERS: dict[str, Callable[[list[ColumnElement[bool]]], ColumnElement[bool]]] = {
    "tags": lambda has: and_(*has),
    "tags-any": lambda has: or_(*has),
    "not-tags": lambda has: not_(and_(*has)),
    "not-tags-any": lambda has: not_(or_(*has)),
}

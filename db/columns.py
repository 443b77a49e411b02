"""Column shorthands shared by every table module."""

from __future__ import annotations

from collections.abc import Callable
from inspect import Signature
from typing import Any

from sqlalchemy import JSON
from sqlmodel import Field

from db.session import UtcDateTime, now
from domain.ids import new_id


class _Factory:
    """Makes a default value. Pydantic looks at a factory's signature for each row that is made; to find that
    of ``list`` takes longer than all else of a row, and this one is at hand."""

    __signature__ = Signature()

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make

    def __call__(self) -> Any:
        return self._make()


def id_column() -> Any:
    """Primary key: a fresh UUID as text."""
    return Field(default_factory=_Factory(new_id), primary_key=True, max_length=36)


def json_column(default: Any = dict) -> Any:
    """A JSON document; ``default`` is its factory. Replace the value, never change it in place."""
    return Field(default_factory=_Factory(default), sa_type=JSON, nullable=False)


def stamped() -> Any:
    """When the row was made or changed: now."""
    return Field(default_factory=_Factory(now), sa_type=UtcDateTime, nullable=False)


def instant(*, index: bool = False) -> Any:
    """An optional instant."""
    return Field(default=None, sa_type=UtcDateTime, nullable=True, index=index)

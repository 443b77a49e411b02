"""What each reconciler did: in the record, so that every replica of the API shows the same."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlmodel import Field, Session, SQLModel, select

from db.columns import instant, json_column


class Reconciler(SQLModel, table=True):
    """One reconciler, by name."""

    __tablename__ = "reconciler"
    name: str = Field(primary_key=True, max_length=32)
    succeeded_at: datetime | None = instant()
    """When it ended well last."""
    fixes: int = 0
    """How many things it has put right since it exists."""
    findings: dict[str, Any] = json_column()
    """What it saw last: the audit's violations by invariant, the queues' pollers, the hosts that are down."""


def note_success(
    session: Session,
    name: str,
    at: datetime,
    fixes: int = 0,
    findings: dict[str, Any] | None = None,
) -> None:
    """Write down that a reconciler ended well, and what it did and saw."""
    row = session.get(Reconciler, name, with_for_update=True) or Reconciler(name=name)
    row.succeeded_at = at
    row.fixes += fixes
    if findings is not None:
        row.findings = findings
    session.add(row)


def reconcilers(session: Session) -> dict[str, Reconciler]:
    """Name → what it did; those that never ran are missing."""
    return {row.name: row for row in session.exec(select(Reconciler))}


def findings_of(session: Session, name: str) -> dict[str, Any]:
    """What a reconciler saw last; nothing if it never ran."""
    row = session.get(Reconciler, name)
    return dict(row.findings) if row else {}

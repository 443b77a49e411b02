"""Operations (Nova's instance actions), their events, and the placement decisions they took."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlmodel import Field, SQLModel

from db.columns import id_column, instant, json_column, stamped


class Operation(SQLModel, table=True):
    """One accepted request on one server, from accept to end."""

    __tablename__ = "operation"
    id: str = id_column()
    request_id: str = Field(max_length=64, index=True)
    action: str = Field(max_length=64)
    """The instance action's name (``domain.lifecycle``)."""
    lifecycle: str = Field(max_length=64)
    """The key in ``domain.lifecycle.LIFECYCLES``."""
    server_id: str = Field(foreign_key="server.id", max_length=36, index=True)
    project_id: str = Field(max_length=36, index=True)
    user_id: str = Field(max_length=36)
    state: str = Field(default="accepted", max_length=24, index=True)
    step: str | None = Field(default=None, max_length=64)
    attempt: int = 0
    """Hosts tried so far."""
    percent: int | None = None
    host: str | None = Field(default=None, max_length=255)
    input: dict[str, Any] = json_column()
    """The request, as far as the server row does not hold it."""
    error: str | None = None
    created_at: datetime = stamped()
    started_at: datetime | None = instant()
    updated_at: datetime = stamped()
    finished_at: datetime | None = instant()


class OperationEvent(SQLModel, table=True):
    """One step of an operation (Nova's instance action event)."""

    __tablename__ = "operation_event"
    id: int | None = Field(default=None, primary_key=True)
    operation_id: str = Field(foreign_key="operation.id", max_length=36, index=True)
    name: str = Field(max_length=128)
    """Nova's event name where it has one, e.g. ``compute__do_build_and_run_instance``."""
    host: str | None = Field(default=None, max_length=255)
    started_at: datetime = stamped()
    finished_at: datetime | None = instant()
    result: str | None = Field(default=None, max_length=16)
    """``Success`` or ``Error``."""
    details: str | None = None


class Decision(SQLModel, table=True):
    """Why this host, why not each other one: one placement decision of one operation."""

    __tablename__ = "decision"
    id: int | None = Field(default=None, primary_key=True)
    operation_id: str = Field(foreign_key="operation.id", max_length=36, index=True)
    server_id: str = Field(max_length=36, index=True)
    attempt: int
    host: str | None = Field(default=None, max_length=255)
    """The chosen host; None when no host passed."""
    weights: dict[str, Any] = json_column()
    """host → {weigher: normalised × multiplier, ..., "total": sum} of the hosts that passed."""
    refusals: dict[str, str] = json_column()
    """host → "Filter: reason" for the others."""
    summary: str = ""
    """The sentence a fault shows."""
    created_at: datetime = stamped()

"""How alembic meets our database: our engine, our metadata, one transaction for the whole upgrade."""

from __future__ import annotations

from typing import Any, Literal

import sqlalchemy as sa
from alembic import context
from alembic.autogenerate.api import AutogenContext
from alembic.util import CommandError
from sqlalchemy.engine.default import DefaultDialect
from sqlmodel import AutoString

from db import tables
from db.session import UtcDateTime, open_engine

_UPGRADE_LOCK = 0x64756D69  # two programs that start at once must not both create the tables

_DEFAULT_DIALECT = DefaultDialect()


def _render(kind: str, item: Any, _context: AutogenContext) -> str | Literal[False]:
    """Write our column types as SQLAlchemy's own, so that revisions outlive our modules."""
    if kind != "type":
        return False
    if isinstance(item, UtcDateTime):
        return "sa.DateTime()"
    if isinstance(item, AutoString):
        length = item.load_dialect_impl(_DEFAULT_DIALECT).length  # type: ignore[attr-defined]  # a String
        return f"sa.String(length={length})" if length else "sa.String()"
    return False


def _options() -> dict[str, Any]:
    return {
        "target_metadata": tables.metadata,
        "render_item": _render,
        "render_as_batch": True,
        "compare_type": True,
        "transactional_ddl": True,
    }


def _offline() -> None:
    context.configure(url=_url(), literal_binds=True, **_options())
    with context.begin_transaction():
        context.run_migrations()


def _online() -> None:
    engine = open_engine(_url())
    try:
        with engine.begin() as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_UPGRADE_LOCK)))
            context.configure(connection=connection, **_options())
            with context.begin_transaction():
                context.run_migrations()
    finally:
        engine.dispose()


def _url() -> str:
    """As given by the caller; by hand: ``alembic -x url=sqlite:///… upgrade head``."""
    given = context.config.get_main_option("sqlalchemy.url")
    url = given or context.get_x_argument(as_dictionary=True).get("url")
    if not url:
        raise CommandError("say which database: alembic -x url=sqlite:///path.db …")
    return url


if context.is_offline_mode():
    _offline()
else:
    _online()

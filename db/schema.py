"""The schema's version: bring a database up to date, or say whether this program can work with it."""

from __future__ import annotations

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine

from db.session import open_engine

HEAD = "head"


def config(url: str) -> Config:
    """Alembic's configuration for this database."""
    settings = Config()
    settings.set_main_option("script_location", "db:migrations")
    settings.set_main_option("path_separator", "os")
    settings.set_main_option("sqlalchemy.url", url.replace("%", "%%"))
    return settings


def upgrade(url: str, revision: str = HEAD) -> None:
    """Bring the database to this revision; all in one transaction, one program at a time."""
    command.upgrade(config(url), revision)


def downgrade(url: str, revision: str) -> None:
    """Take the database back to an earlier revision; ``base`` empties it."""
    command.downgrade(config(url), revision)


def head() -> str:
    """The newest revision this program knows."""
    revision = ScriptDirectory.from_config(config("")).get_current_head()
    assert revision is not None, "there is always a first revision"  # noqa: S101  # our own files
    return revision


def current(url: str) -> str | None:
    """The database's revision; None for one that was never upgraded."""
    engine = open_engine(url)
    try:
        return _current(engine)
    finally:
        engine.dispose()


def is_compatible(url: str) -> bool:
    """Whether the database is exactly at the revision this program was written for."""
    return current(url) == head()


def is_known(url: str) -> bool:
    """Whether this program knows the database's revision, so that it can bring it up to date."""
    found = current(url)
    script = ScriptDirectory.from_config(config(""))
    return found is None or found in {r.revision for r in script.walk_revisions()}


def _current(engine: Engine) -> str | None:
    with engine.connect() as connection:
        return MigrationContext.configure(connection).get_current_revision()

"""Alembic's side of the schema: ``env`` and the revisions. Programs call ``db.schema``."""

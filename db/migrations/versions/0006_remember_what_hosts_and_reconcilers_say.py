"""Remember what hosts report, what reconcilers did, and each server's power policy.

Revision 0006, based on 0005.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "host_sighting",
        sa.Column("host", sa.String(length=255), nullable=False),
        sa.Column("guests", sa.JSON(), nullable=False),
        sa.Column("residue", sa.JSON(), nullable=False),
        sa.Column("residue_at", sa.DateTime(), nullable=True),
        sa.Column("orphans", sa.JSON(), nullable=False),
        sa.Column("orphan_count", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["host"], ["host.name"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("host"),
    )
    op.create_table(
        "reconciler",
        sa.Column("name", sa.String(length=32), nullable=False),
        sa.Column("succeeded_at", sa.DateTime(), nullable=True),
        sa.Column("fixes", sa.Integer(), nullable=False),
        sa.Column("findings", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    op.add_column("server", sa.Column("power_policy", sa.String(length=16), nullable=True))


def downgrade() -> None:
    op.drop_column("server", "power_policy")
    op.drop_table("reconciler")
    op.drop_table("host_sighting")

"""Let operations wait for an operator, and builds be retried.

Revision 0005, based on 0004.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("operation", sa.Column("retry_of", sa.String(length=36), nullable=True))
    op.add_column("operation", sa.Column("holds", sa.Integer(), nullable=False, server_default="0"))
    op.add_column(
        "operation", sa.Column("verbs", sa.JSON(), nullable=False, server_default=sa.text("'[]'"))
    )
    op.add_column("operation", sa.Column("deadline_at", sa.DateTime(), nullable=True))


def downgrade() -> None:
    for column in ("deadline_at", "verbs", "holds", "retry_of"):
        op.drop_column("operation", column)

"""Remember which host worker saw a guest last.

Revision 0002, based on 0001.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("server", sa.Column("seen_by", sa.String(length=36), nullable=True))


def downgrade() -> None:
    op.drop_column("server", "seen_by")

"""Index the lists of servers.

Revision 0007, based on 0006.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_LIVE: dict[str, Any] = {
    "sqlite_where": sa.text("deleted_at IS NULL"),
    "postgresql_where": sa.text("deleted_at IS NULL"),
}


def upgrade() -> None:
    op.create_index("server_live", "server", ["created_at", "id", "name", "deleted_at"], **_LIVE)
    op.create_index(
        "server_live_in_project",
        "server",
        ["project_id", "created_at", "id", "name", "vcpus", "ram_mb", "deleted_at"],
        **_LIVE,
    )
    op.create_index("server_live_in_state", "server", ["vm_state", "created_at", "id"], **_LIVE)
    op.create_index(
        "server_live_in_project_state",
        "server",
        ["project_id", "vm_state", "created_at", "id"],
        **_LIVE,
    )
    op.create_index("server_on_host", "server", ["host", "created_at", "id"])
    op.create_index("server_changed", "server", ["updated_at"])
    op.drop_index("ix_server_host", "server")
    op.drop_index("server_project_created", "server")


def downgrade() -> None:
    op.create_index(
        "server_project_created", "server", ["project_id", "deleted_at", "created_at", "id"]
    )
    op.create_index("ix_server_host", "server", ["host"])
    op.drop_index("server_changed", "server")
    op.drop_index("server_on_host", "server")
    op.drop_index("server_live_in_project_state", "server")
    op.drop_index("server_live_in_state", "server")
    op.drop_index("server_live_in_project", "server")
    op.drop_index("server_live", "server")

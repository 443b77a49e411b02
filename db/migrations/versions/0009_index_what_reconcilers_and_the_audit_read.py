"""Index what the reconcilers and the audit read.

Revision 0009, based on 0008.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

_SIZES = ("vcpus", "ram_mb", "disk_gb")
_MISCOUNTED = (
    "deleted_at IS NULL AND ("
    + " OR ".join(f"{n} != CAST(json_extract(flavor, '$.{n}') AS REAL)" for n in _SIZES)
    + ")",
    "deleted_at IS NULL AND ("
    + " OR ".join(f"{n} <> (flavor ->> '{n}')::float8" for n in _SIZES)
    + ")",
)
_NEW: tuple[tuple[str, str, list[str], tuple[str, str] | None], ...] = (
    # name, table, columns, condition for SQLite and for PostgreSQL
    (
        "server_share",
        "server",
        ["id", "host", "vcpus", "ram_mb", "disk_gb", "deleted_at"],
        ("deleted_at IS NULL",) * 2,
    ),
    ("server_place", "server", ["id", "project_id", "host", "deleted_at"], None),
    ("server_in_task", "server", ["task_state"], ("task_state IS NOT NULL",) * 2),
    ("server_deleted", "server", ["deleted_at"], ("deleted_at IS NOT NULL",) * 2),
    ("server_miscounted", "server", ["project_id", "id"], _MISCOUNTED),
    (
        "server_in_group",
        "server",
        ["group_id", "project_id"],
        ("group_id IS NOT NULL",) * 2,
    ),
    ("server_from_image", "server", ["image_id", "project_id"], ("image_id IS NOT NULL",) * 2),
    ("operation_of_server", "operation", ["server_id", "project_id"], None),
    ("operation_finished", "operation", ["finished_at"], None),
    ("claim_of_server", "claim", ["server_id", "host", "vcpus", "ram_mb", "disk_gb"], None),
    ("claim_building", "claim", ["server_id"], ("building = 1", "building")),
    ("port_of_device", "port", ["device_id", "project_id", "host", "made_by_server"], None),
    ("port_on_network", "port", ["network_id", "project_id"], None),
    ("port_project", "port", ["id", "project_id"], None),
    ("port_network", "port", ["id", "network_id"], None),
    ("fixed_ip_of_port", "fixed_ip", ["port_id", "subnet_id"], None),
)
_OLD = (
    # each is the beginning of a new one
    ("ix_server_group_id", "server", ["group_id"]),
    ("ix_operation_server_id", "operation", ["server_id"]),
    ("ix_port_device_id", "port", ["device_id"]),
    ("ix_port_network_id", "port", ["network_id"]),
    ("ix_fixed_ip_port_id", "fixed_ip", ["port_id"]),
)


def upgrade() -> None:
    for name, table, columns, condition in _NEW:
        where: dict[str, Any] = {}
        if condition is not None:
            sqlite, postgresql = map(sa.text, condition)
            where = {"sqlite_where": sqlite, "postgresql_where": postgresql}
        op.create_index(name, table, columns, **where)
    for name, table, _columns in _OLD:
        op.drop_index(name, table)


def downgrade() -> None:
    for name, table, columns in _OLD:
        op.create_index(name, table, columns)
    for name, table, _columns, _condition in reversed(_NEW):
        op.drop_index(name, table)

"""Note in the database itself when a host, its claims or its aggregates change.

Revision 0008, based on 0007.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

_NOTED = {
    "claim": ("host", "host, vcpus, ram_mb, disk_gb, building"),
    "host": (
        "name",
        "name, availability_zone, vcpus, ram_mb, disk_gb, hypervisor_type, "
        "hypervisor_version, hypervisor_hostname, cpu_arch, cpu_model, host_ip, "
        "capabilities, cpu_allocation_ratio, ram_allocation_ratio, "
        "disk_allocation_ratio",
    ),
    "aggregate_host": ("", "aggregate_id, host"),
    "aggregate": ("", "name, metadata_"),
}
"""Table → its column with the host's name, and the columns that a placement decision reads."""

_UPSERT = """
INSERT INTO host_change (host, version)
VALUES ({host}, (SELECT coalesce(max(version), 0) + 1 FROM host_change))
ON CONFLICT (host) DO UPDATE SET version = excluded.version;"""

_FUNCTION = f"""
CREATE FUNCTION note_host_change() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
old_host text := coalesce(to_jsonb(OLD) ->> TG_ARGV[0], '');
new_host text := coalesce(to_jsonb(NEW) ->> TG_ARGV[0], '');
BEGIN
PERFORM pg_advisory_xact_lock(1685417317);
IF TG_OP <> 'DELETE' THEN
{_UPSERT.format(host="new_host")}
END IF;
IF TG_OP <> 'INSERT' AND (TG_OP = 'DELETE' OR old_host <> new_host) THEN
{_UPSERT.format(host="old_host")}
END IF;
RETURN NULL;
END $$"""


def _sqlite() -> list[str]:
    made = []
    for table, (name, columns) in _NOTED.items():
        for change, rows in (("INSERT", "NEW"), ("UPDATE", "OLD NEW"), ("DELETE", "OLD")):
            hosts = [f"{row}.{name}" if name else "''" for row in rows.split()]
            of = f"UPDATE OF {columns}" if change == "UPDATE" else change
            body = "".join(_UPSERT.format(host=host) for host in dict.fromkeys(hosts))
            trigger = f"{table}_noted_{change.lower()}"
            made.append(f"CREATE TRIGGER {trigger} AFTER {of} ON {table} BEGIN{body} END")
    return made


def _postgresql() -> list[str]:
    return [
        _FUNCTION,
        *(
            f"CREATE CONSTRAINT TRIGGER {table}_noted "
            f"AFTER INSERT OR DELETE OR UPDATE OF {columns} ON {table} "
            f"DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION note_host_change('{name}')"
            for table, (name, columns) in _NOTED.items()
        ),
    ]


def _is_postgresql() -> bool:
    return op.get_bind().dialect.name == "postgresql"


def upgrade() -> None:
    op.create_table(
        "host_change",
        sa.Column("host", sa.String(length=255), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("host"),
    )
    op.create_index("ix_host_change_version", "host_change", ["version"])
    # The triggers first: from then on no writer comes in between until this is committed.
    for statement in _postgresql() if _is_postgresql() else _sqlite():
        op.execute(statement)
    # What is there already counts as changed once. (WHERE: SQLite's grammar wants it before ON.)
    there = "INSERT INTO host_change (host, version) SELECT name, 1 FROM host WHERE true"
    op.execute(f"{there} ON CONFLICT DO NOTHING")
    op.execute("INSERT INTO host_change (host, version) VALUES ('', 1) ON CONFLICT DO NOTHING")


def downgrade() -> None:
    for table in _NOTED:
        if _is_postgresql():
            op.execute(f"DROP TRIGGER {table}_noted ON {table}")
        else:
            for change in ("insert", "update", "delete"):
                op.execute(f"DROP TRIGGER {table}_noted_{change}")
    if _is_postgresql():
        op.execute("DROP FUNCTION note_host_change()")
    op.drop_table("host_change")

"""What a placement decision reads of hosts: only those that changed since the last decision.

The database itself notes each change, in triggers, so that no writer can forget it: not another release of
the program, not a bulk statement, not an operator's own SQL. Versions come in the order of commits: a reader
that has seen version 7 will never find a new version 6.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy import BigInteger, Connection, Row, event
from sqlmodel import Field, Session, SQLModel, col

from db.events import EVENT_LOCK
from db.groups import Aggregate, AggregateHost
from db.hosts import CLAIMED, Claim, Host

AGGREGATES = ""
"""Stands for a host where an aggregate or a membership of one has changed."""


class HostChange(SQLModel, table=True):
    """When a host or its claims changed last. The row outlives its host, or nobody would learn of that."""

    __tablename__ = "host_change"
    host: str = Field(primary_key=True, max_length=255)
    """Its name, or ``AGGREGATES``."""
    version: int = Field(sa_type=BigInteger, index=True)


# --- reading

_COLUMNS: tuple[Any, ...] = (
    Host.name,
    Host.availability_zone,
    Host.vcpus,
    Host.ram_mb,
    Host.disk_gb,
    Host.hypervisor_type,
    Host.hypervisor_version,
    Host.hypervisor_hostname,
    Host.cpu_arch,
    Host.cpu_model,
    Host.host_ip,
    Host.capabilities,
    Host.cpu_allocation_ratio,
    Host.ram_allocation_ratio,
    Host.disk_allocation_ratio,
)
"""What a decision keeps in hand; whether a host is up it asks each time."""
_AFTER = sa.bindparam("after", type_=BigInteger)
_NEWER = col(HostChange.version) > _AFTER
_USED = (
    sa.select(*CLAIMED)
    .where(col(Claim.host).in_(sa.select(col(HostChange.host)).where(_NEWER)))
    .group_by(col(Claim.host))
    .subquery()
)
_CHANGES = (
    sa.select(
        col(HostChange.host).label("changed"),
        col(HostChange.version),
        *_COLUMNS,
        *(column for column in _USED.c if column.name != "host"),
    )
    .outerjoin(Host, col(Host.name) == col(HostChange.host))
    .outerjoin(_USED, _USED.c.host == col(HostChange.host))
    .where(_NEWER)
)


def read_changes(session: Session, after: int) -> Sequence[Row[Any]]:
    """The hosts that changed after this version, as they are now, all at one instant.

    Columns: ``changed`` (the host, or ``AGGREGATES``), ``version``, ``name`` (None when the host is gone),
    the host's own as in the table, and the sums of its claims ``used_vcpus``, ``used_ram_mb``,
    ``used_disk_gb``, ``used_servers``, ``used_building`` (None without any).
    """
    return session.connection().execute(_CHANGES, {"after": after}).all()


# --- noting: keep with the migrations; tests hold the two against each other

_NOTED: tuple[tuple[str, str, Sequence[Any]], ...] = (
    ("claim", "host", (Claim.host, Claim.vcpus, Claim.ram_mb, Claim.disk_gb, Claim.building)),
    ("host", "name", _COLUMNS),
    ("aggregate_host", "", (AggregateHost.aggregate_id, AggregateHost.host)),
    ("aggregate", "", (Aggregate.name, Aggregate.metadata_)),
)
"""Table, its column with the host's name (none: ``AGGREGATES``), and the columns that a decision reads."""

_UPSERT = """
INSERT INTO host_change (host, version)
VALUES ({host}, (SELECT coalesce(max(version), 0) + 1 FROM host_change))
ON CONFLICT (host) DO UPDATE SET version = excluded.version;"""

# Deferred to the commit: nothing waits for a lock while it holds this one. The events' lock is the same,
# so that there is no order of two of them to get wrong.
_FUNCTION = f"""
CREATE FUNCTION note_host_change() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
old_host text := coalesce(to_jsonb(OLD) ->> TG_ARGV[0], '');
new_host text := coalesce(to_jsonb(NEW) ->> TG_ARGV[0], '');
BEGIN
PERFORM pg_advisory_xact_lock({EVENT_LOCK});
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
    for table, name, columns in _NOTED:
        for change, rows in (("INSERT", "NEW"), ("UPDATE", "OLD NEW"), ("DELETE", "OLD")):
            hosts = [f"{row}.{name}" if name else f"'{AGGREGATES}'" for row in rows.split()]
            of = f"UPDATE OF {_names(columns)}" if change == "UPDATE" else change
            body = "".join(_UPSERT.format(host=host) for host in dict.fromkeys(hosts))
            trigger = f"{table}_noted_{change.lower()}"
            made.append(f"CREATE TRIGGER {trigger} AFTER {of} ON {table} BEGIN{body} END")
    return made


def _postgresql() -> list[str]:
    return [
        _FUNCTION,
        *(
            f"CREATE CONSTRAINT TRIGGER {table}_noted "
            f"AFTER INSERT OR DELETE OR UPDATE OF {_names(columns)} ON {table} "
            f"DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION note_host_change('{name}')"
            for table, name, columns in _NOTED
        ),
    ]


def _names(columns: Sequence[Any]) -> str:
    return ", ".join(column.name for column in columns)


@event.listens_for(SQLModel.metadata, "after_create")
def _make_triggers(_metadata: Any, connection: Connection, tables: Any, **_options: Any) -> None:
    if any(table.name == HostChange.__tablename__ for table in tables):
        postgresql = connection.dialect.name == "postgresql"
        for statement in _postgresql() if postgresql else _sqlite():
            connection.exec_driver_sql(statement)

"""More servers and hosts than could be made through the API in the time there is: copies of real rows.

A server that was made through the API is the template: each of its rows in every table is copied with new
ids, names and addresses, moved back in time, onto hosts that are copies as well. What the cloud's
own audit asks of the record holds for the copies too: every claim, port and address has its owner, and the hosts
"report" the guests that they should have.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from ipaddress import IPv4Address, IPv4Network
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Engine

from db.session import transaction
from db.tables import metadata
from domain.ids import new_id

PER_HOST = 40
"""Servers on each copied host."""
_AT_ONCE = 2000
"""Servers in one transaction: the cloud that runs on the same database must get its turn."""
_OLDER = timedelta(days=1)
"""Than its template is the newest copy: what is looked after as just made is none of them."""
_OWNED = (
    # table, the column that says whose the row is
    ("server", "id"),
    ("server_tag", "server_id"),
    ("claim", "server_id"),
    ("operation", "server_id"),
    ("decision", "server_id"),
    ("port", "device_id"),
    ("operation_event", "operation_id"),
    ("fixed_ip", "port_id"),
    ("port_security_group", "port_id"),
)
"""Parents first."""
Row = dict[str, Any]


def seed_hosts(
    engine: Engine, template: str, names: Sequence[str], **columns: object
) -> Sequence[str]:
    """Copies of a host that reports, under these names, with these columns instead of its own; returns the names."""
    with transaction(engine) as session:
        connection = session.connection()
        host = _rows(connection, "host", "name", [template])[0]
        sighting = {"guests": {}, "residue": [], "orphans": [], "orphan_count": 0}
        connection.execute(
            sa.insert(metadata.tables["host"]),
            [
                host
                | {
                    "name": name,
                    "uuid": new_id(),
                    "service_id": new_id(),
                    "hypervisor_hostname": name,
                    **columns,
                }
                for name in names
            ],
        )
        connection.execute(
            sa.insert(metadata.tables["host_sighting"]),
            [{"host": name, **sighting} for name in names],
        )
    return names


def seed_zone(engine: Engine, zone: str, hosts: Sequence[str]) -> None:
    """Put hosts into an aggregate that is a zone."""
    with transaction(engine) as session:
        connection = session.connection()
        values = {"uuid": new_id(), "name": zone, "metadata_": {"availability_zone": zone}}
        table = metadata.tables["aggregate"]
        connection.execute(table.insert().values(**values, created_at=_now(connection)))
        number = connection.execute(sa.select(table.c.id).where(table.c.name == zone)).scalar_one()
        rows = [{"id": new_id(), "aggregate_id": number, "host": host} for host in hosts]
        connection.execute(sa.insert(metadata.tables["aggregate_host"]), rows)


@dataclass(slots=True)
class Seeder:
    """Copies servers, counting on from the last one."""

    engine: Engine
    templates: Sequence[str]
    """Ids of servers at rest, copied in turn."""
    addresses: IPv4Network
    """Where copies get theirs, in the subnets of the templates; free, and with room for all."""
    name: str = "seeded"
    """Before the number in the names of copies and of their hosts."""
    ids: list[str] = field(default_factory=list)
    """Of all copies, newest first as a list shows them: each copy is a second older than the last one."""

    def add(self, count: int) -> None:
        """So many more, with the hosts that they need."""
        while count > 0:
            step = min(count, _AT_ONCE)
            self._add(step)
            count -= step

    def _add(self, count: int) -> None:
        with transaction(self.engine) as session:
            patterns = [_pattern(session.connection(), each) for each in self.templates]
        first = len(self.ids)
        hosts = [f"{self.name}-host-{first + n:06d}" for n in range(0, count, PER_HOST)]
        seed_hosts(self.engine, patterns[0].host, hosts)
        rows: dict[str, list[Row]] = defaultdict(list)
        guests: dict[str, Row] = defaultdict(dict)
        for n in range(count):
            pattern = patterns[(first + n) % len(patterns)]
            host, ip = hosts[n // PER_HOST], self.addresses[first + n + 1]
            copy = pattern.copy(f"{self.name}-{first + n}", first + n, host, ip)
            for table, row in copy:
                rows[table].append(row)
            server = copy[0][1]
            guests[host][server["id"]] = [server["power_state"], server["epoch"]]
            self.ids.append(server["id"])
        with transaction(self.engine) as session:
            connection = session.connection()
            for table, _ in _OWNED:
                _insert(connection, table, rows[table])
            seen = metadata.tables["host_sighting"]
            for host, known in guests.items():
                connection.execute(seen.update().where(seen.c.host == host).values(guests=known))


@dataclass(frozen=True, slots=True)
class _Pattern:
    """All rows of one server, in order, and every id of its own among them."""

    rows: Sequence[tuple[str, Row]]
    ids: frozenset[str]
    host: str

    def copy(self, name: str, number: int, host: str, ip: IPv4Address) -> list[tuple[str, Row]]:
        """The same rows for another server; its own comes first."""
        fresh: dict[object, object] = {old: new_id() for old in self.ids}
        fresh[self.host] = host
        older = _OLDER + timedelta(seconds=number)
        special = {
            "server": {"name": name, "hostname": name},
            "port": {"mac": f"fa:{number >> 24 & 255:02x}:" + _mac(number)},
            "fixed_ip": {"ip": str(ip)},
        }
        return [
            (table, _changed(row, fresh, older) | special.get(table, {}))
            for table, row in self.rows
        ]


def _mac(number: int) -> str:
    return f"5e:{number >> 16 & 255:02x}:{number >> 8 & 255:02x}:{number & 255:02x}"


def _changed(row: Row, fresh: Mapping[object, object], older: timedelta) -> Row:
    def change(value: object) -> object:
        if isinstance(value, datetime):
            return value - older
        return fresh.get(value, value) if isinstance(value, str) else value

    return {name: change(value) for name, value in row.items()}


def _pattern(connection: sa.Connection, server_id: str) -> _Pattern:
    found: list[tuple[str, Row]] = []
    ids = {server_id}
    for name, owner in _OWNED:
        numbered = isinstance(metadata.tables[name].c[_key(name)].type, sa.Integer)
        for row in _rows(connection, name, owner, ids):
            if numbered:
                del row[_key(name)]  # the database counts
            elif _key(name) == "id":
                ids.add(row["id"])
            if "request_id" in row:
                ids.add(row["request_id"])
            found.append((name, row))
    host = found[0][1]["host"]
    if host is None:
        raise ValueError(f"server {server_id} is on no host")
    return _Pattern(tuple(found), frozenset(ids), host)


def _key(table: str) -> str:
    """The first column of the primary key."""
    return str(next(iter(metadata.tables[table].primary_key)).name)


def _rows(
    connection: sa.Connection, name: str, owner: str, owners: Sequence[str] | set[str]
) -> list[Row]:
    table = metadata.tables[name]
    query = table.select().where(table.c[owner].in_(sorted(owners)))
    return [dict(row._mapping) for row in connection.execute(query)]


def _insert(connection: sa.Connection, table: str, rows: list[Row]) -> None:
    if rows:
        connection.execute(sa.insert(metadata.tables[table]), rows)


def _now(connection: sa.Connection) -> datetime:
    latest = connection.execute(sa.select(sa.func.max(metadata.tables["host"].c.updated_at)))
    moment: datetime = latest.scalar_one()
    return moment

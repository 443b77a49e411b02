"""Rows of a cloud at rest, to be broken one at a time."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import Engine
from sqlmodel import Session

from db.hosts import Claim, report_host
from db.network import FixedIp, Network, Port, Subnet
from db.operations import Operation
from db.servers import Server
from db.session import now, transaction
from db.sightings import note_sighting
from domain.guest import GuestReport, Inventory
from domain.ids import new_id
from domain.states import PowerState, VmState

FLAVOR = {"vcpus": 1, "ram_mb": 512, "disk_gb": 1, "extra_specs": {}}
RUNNING = PowerState.RUNNING


class Record:
    """Writes whole rows with defaults that fit each other."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def server(self, host: str | None = "one", **given: Any) -> str:
        """An idle active server with its claim on a host that must have been added; returns its id."""
        row = {
            "project_id": "p", "user_id": "u", "name": "s", "vm_state": VmState.ACTIVE, "epoch": 1,
            "power_state": RUNNING, "flavor": FLAVOR, "vcpus": 1, "ram_mb": 512, "disk_gb": 1,
        }  # fmt: skip
        with transaction(self.engine) as session:
            server = Server(**(row | given), host=host)
            session.add(server)
            session.flush()
            if host is not None:
                session.add(claim(server.id, host))
            return server.id

    def host(self, *names: str) -> None:
        for name in names:
            self.report(name)

    def report(
        self,
        host: str,
        guests: Iterable[tuple[str, PowerState]] = (),
        residue: list[str] | None = None,
    ) -> None:
        """What the host says of itself, now; every guest of epoch 1."""
        inventory = Inventory(8, 8192, 100, "fake", 1, host, uuid=f"{host:0>36}")
        with transaction(self.engine) as session:
            report_host(session, host, inventory, "e", now(), None)
            session.flush()
            note_sighting(session, host, [GuestReport(s, p, 1) for s, p in guests], residue, now())

    def operation(self, server_id: str, state: str = "running", **given: Any) -> str:
        row = {"request_id": "r", "action": "stop", "lifecycle": "stop", "user_id": "u"}
        with transaction(self.engine) as session:
            project_id = session.get_one(Server, server_id).project_id
            row |= {"server_id": server_id, "project_id": project_id, "state": state}
            operation = Operation(**(row | given))
            session.add(operation)
            return operation.id

    def port(self, server_id: str, **given: Any) -> str:
        """A port of a server on a network of its own, bound to host ``one``; returns its id."""
        network = Network(project_id="p", segment=hash(new_id()) % 10**8)
        with transaction(self.engine) as session:
            session.add(network)
            session.flush()
            subnet = Subnet(network_id=network.id, project_id="p", cidr="10.0.0.0/24")
            row = {
                "project_id": "p", "device_owner": "compute:nova", "mac": new_id()[:17], "host": "one",
                "made_by_server": True,
            }  # fmt: skip
            port = Port(**(row | given), network_id=network.id, device_id=server_id)
            session.add_all((subnet, port))
            session.flush()
            session.add(FixedIp(port_id=port.id, subnet_id=subnet.id, ip="10.0.0.7"))
            return port.id

    def change(self, table: type[Any], id: str, **values: Any) -> None:
        with transaction(self.engine) as session:
            change(session, table, id, **values)

    def bury(self, server_id: str) -> None:
        """Only the row: as if everything else had been forgotten."""
        gone = {"vm_state": VmState.DELETED, "deleted_at": now(), "host": None}
        self.change(Server, server_id, **gone)

    def add(self, *rows: Any) -> None:
        with transaction(self.engine) as session:
            session.add_all(rows)


def claim(server_id: str, host: str) -> Claim:
    return Claim(
        server_id=server_id, host=host, operation_id="o", epoch=1, vcpus=1, ram_mb=512, disk_gb=1,
        building=False,
    )  # fmt: skip


def change(session: Session, table: type[Any], id: str, **values: Any) -> None:
    row = session.get_one(table, id)
    for name, value in values.items():
        setattr(row, name, value)
    session.add(row)

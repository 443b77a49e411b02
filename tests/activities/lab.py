"""A record with hosts and servers in it, and placement over it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import Engine
from sqlmodel import col, select

from activities.control.placement import Placement
from db.groups import Aggregate, AggregateHost, ServerGroup
from db.hosts import Claim, report_host
from db.operations import Decision, Operation, OperationEvent
from db.servers import Server
from db.session import now, reading, transaction
from domain.guest import Inventory
from domain.ids import new_id
from runtime.settings import Settings
from workflows.contract import ClaimHost, Placed, Ref

FLAVOR = {
    "id": "1",
    "name": "m1.tiny",
    "vcpus": 1,
    "ram_mb": 512,
    "disk_gb": 1,
    "ephemeral_gb": 0,
    "swap_mb": 0,
    "extra_specs": {},
}
IMAGE = {
    "checksum": "c" * 128,
    "disk_format": "qcow2",
    "size_bytes": 1024**2,
    "min_disk": 0,
    "min_ram": 0,
    "properties": {"hw_disk_bus": "virtio"},
}


class Lab:
    """A cloud's record without a cloud: hosts that reported, servers that wait to be placed."""

    def __init__(self, engine: Engine, settings: Settings) -> None:
        self.engine = engine
        self.settings = settings
        self.placement = Placement(engine, settings)

    def with_settings(self, **changes: Any) -> Lab:
        return Lab(self.engine, self.settings.model_copy(update=changes))

    def add_hosts(
        self, *names: str, vcpus: int = 4, ram_mb: int = 4608, disk_gb: int = 100
    ) -> None:
        for name in names:
            inventory = Inventory(
                vcpus=vcpus,
                ram_mb=ram_mb,
                disk_gb=disk_gb,
                hypervisor_type="QEMU",
                hypervisor_version=9000000,
                hypervisor_hostname=f"{name}.example",
                capabilities=("COMPUTE_ACCEL_TCG",),
                uuid=new_id(),
            )
            with transaction(self.engine) as session:
                report_host(session, name, inventory, "e", now(), None)

    def add_server(self, **given: Any) -> Ref:
        flavor = {**FLAVOR, **given.pop("flavor", {})}
        image = {**IMAGE, **given.pop("image", {})}
        asked = given.pop("input", {})
        row = {"project_id": "p", "user_id": "u", "name": "s", "task_state": "scheduling"}
        with transaction(self.engine) as session:
            server = Server(**(row | given), flavor=flavor, image=image, image_id=new_id())
            session.add(server)
            session.flush()
            operation = Operation(
                request_id="req-1",
                action="create",
                lifecycle="create",
                server_id=server.id,
                project_id=server.project_id,
                user_id="u",
                input=asked,
            )
            session.add(operation)
            return Ref(operation.id, server.id, server.project_id, "req-1", "create")

    def add_group(self, policy: str, max_server_per_host: int = 1) -> str:
        with transaction(self.engine) as session:
            group = ServerGroup(
                project_id="p",
                user_id="u",
                name="g",
                policy=policy,
                max_server_per_host=max_server_per_host,
            )
            session.add(group)
            return group.id

    def add_aggregate(self, hosts: Iterable[str], **metadata: str) -> None:
        with transaction(self.engine) as session:
            aggregate = Aggregate(name=new_id(), metadata_=metadata)
            session.add(aggregate)
            session.flush()
            assert aggregate.id is not None
            for host in hosts:
                session.add(AggregateHost(aggregate_id=aggregate.id, host=host))

    def change(self, table: type[Any], id: str, **values: Any) -> None:
        with transaction(self.engine) as session:
            row = session.get(table, id)
            for name, value in values.items():
                setattr(row, name, value)
            session.add(row)

    def claim(self, ref: Ref, attempt: int = 1, passed_over: tuple[str, ...] = ()) -> Placed:
        return self.placement.claim(ClaimHost(ref, attempt, passed_over))

    def place(self, **given: Any) -> Placed:
        return self.claim(self.add_server(**given))

    def server(self, ref: Ref) -> Server:
        with reading(self.engine) as session:
            return session.get_one(Server, ref.server_id)

    def operation(self, ref: Ref) -> Operation:
        with reading(self.engine) as session:
            return session.get_one(Operation, ref.operation_id)

    def claims(self) -> list[Claim]:
        with reading(self.engine) as session:
            return list(session.exec(select(Claim)))

    def decisions(self, ref: Ref) -> list[Decision]:
        with reading(self.engine) as session:
            query = select(Decision).where(Decision.operation_id == ref.operation_id)
            return list(session.exec(query.order_by(col(Decision.id))))

    def events(self, ref: Ref) -> list[tuple[str, str | None, str | None]]:
        with reading(self.engine) as session:
            query = select(OperationEvent).where(OperationEvent.operation_id == ref.operation_id)
            rows = session.exec(query.order_by(col(OperationEvent.id)))
            return [(e.name, e.host, e.result) for e in rows]

"""Late calls on behalf of an operation that has ended take nothing from the server it served."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine
from sqlmodel import select

from activities.control.placement import Placement
from activities.control.records import Records
from activities.control.sweep import Sweep, ref_of
from db.hosts import Claim, report_host
from db.operations import Operation
from db.servers import Server, ServerFault
from db.session import now, reading, transaction
from domain.guest import Inventory
from domain.states import OperationState, PowerState, TaskState, VmState
from runtime.settings import Settings
from runtime.temporal import connect
from tests.temporal_server import temporal_server
from workflows.contract import Begin, ClaimHost, Finish, GuestPower, Ref, ReleaseClaim


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with temporal_server() as address:
        yield address


def claimed(engine: Engine, settings: Settings) -> Ref:
    """A server claimed on host ``one`` by its create, which is live."""
    with transaction(engine) as session:
        flavor = {"vcpus": 1, "ram_mb": 64, "disk_gb": 1, "extra_specs": {}}
        image = {"checksum": "0" * 128, "disk_format": "qcow2", "size_bytes": 1}
        server = Server(
            project_id="p",
            user_id="u",
            name="s",
            flavor=flavor,
            image=image,
            image_id="i",
            vcpus=1,
            ram_mb=64,
            disk_gb=1,
        )
        session.add(server)
        session.flush()
        operation = Operation(
            request_id="req-1",
            action="create",
            lifecycle="create",
            server_id=server.id,
            project_id="p",
            user_id="u",
        )
        session.add(operation)
        inventory = Inventory(8, 8192, 100, "fake", 1, "one", uuid="0" * 36)
        report_host(session, "one", inventory, "e", now(), None)
        session.flush()
        ref = ref_of(operation)
    Placement(engine, settings).claim(ClaimHost(ref, 1))
    return ref


def claims(engine: Engine) -> list[str]:
    with reading(engine) as session:
        return [c.host for c in session.exec(select(Claim))]


def test_a_release_after_success_spares_the_servers_claim(
    engine: Engine, settings: Settings
) -> None:
    ref = claimed(engine, settings)
    Records(engine, settings).finish(
        Finish(ref, succeeded=True, guest=GuestPower(PowerState.RUNNING))
    )
    Placement(engine, settings).release(ReleaseClaim(ref, 1))
    assert claims(engine) == ["one"]


@pytest.mark.temporal
async def test_the_sweep_leaves_an_operation_alone_that_ended_while_it_looked(
    engine: Engine, settings: Settings, address: str
) -> None:
    ref = claimed(engine, settings)
    records = Records(engine, settings)
    with reading(engine) as session:
        seen_live = session.get(Operation, ref.operation_id)
    assert seen_live is not None
    assert seen_live.state == OperationState.RUNNING
    records.finish(Finish(ref, succeeded=True, guest=GuestPower(PowerState.RUNNING)))

    class Late(Sweep):
        """Has read the live operations before the end above was written."""

        def _live(self) -> list[Operation]:
            return [seen_live]

    swept = await Late(await connect(address, "default"), engine, records).run()
    assert swept.restarted == ()
    assert swept.closed == ()
    assert claims(engine) == ["one"]


def test_what_has_succeeded_is_not_unwound(engine: Engine, settings: Settings) -> None:
    ref = claimed(engine, settings)
    records = Records(engine, settings)
    records.finish(Finish(ref, succeeded=True, guest=GuestPower(PowerState.RUNNING)))
    assert not records.may_unwind(Begin(ref)).allowed


def test_a_success_that_comes_after_the_unwinding_began_is_not_taken(
    engine: Engine, settings: Settings
) -> None:
    ref = claimed(engine, settings)
    records = Records(engine, settings)
    assert records.may_unwind(Begin(ref)).allowed
    records.finish(Finish(ref, succeeded=True, guest=GuestPower(PowerState.RUNNING)))
    with reading(engine) as session:
        server = session.get(Server, ref.server_id)
        assert server is not None
        assert server.vm_state == VmState.BUILDING


def test_an_operation_that_fails_of_a_delete_was_cancelled_and_leaves_no_fault(
    engine: Engine, settings: Settings
) -> None:
    ref = claimed(engine, settings)
    with transaction(engine) as session:
        session.get_one(Server, ref.server_id).task_state = TaskState.DELETING
    late = Finish(ref, succeeded=False, error="Instance is being deleted")
    Records(engine, settings).finish(late)
    with reading(engine) as session:
        operation = session.get_one(Operation, ref.operation_id)
        assert operation.state == OperationState.CANCELLED
        assert session.get_one(Server, ref.server_id).vm_state == VmState.BUILDING
        assert session.exec(select(ServerFault)).first() is None

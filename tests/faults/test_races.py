"""What happens at once, twice, late or in an unlucky order."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from temporalio.worker import ActivityInboundInterceptor, ExecuteActivityInput, Interceptor

from activities.control.records import Records
from activities.control.sweep import GRACE, Sweep
from db.operations import Operation
from db.servers import Server
from db.session import transaction
from domain.ids import server_workflow_id
from domain.states import VmState
from tests.faults.cases import act, booted, delete, operations, residue, until
from tests.stack import Stack, running_stack
from workers import control as control_module
from workers import host as host_module
from workers.interceptors import DomainErrors

pytestmark = pytest.mark.temporal
STAGES = ("image", "nics", "start")
ROUND_TRIP = (
    "stop",
    "start",
    "pause",
    "unpause",
    "suspend",
    "resume",
    "reboot_soft",
    "reboot_hard",
)


async def test_a_delete_at_any_stage_of_a_build_wins_and_leaves_nothing(stack: Stack) -> None:
    for stage in STAGES:
        held = [driver.faults.hold(stage) for driver in stack.drivers.values()]
        server_id = (await stack.boot(stage, config_drive=True)).json()["server"]["id"]
        await until(lambda held=held: any(h.reached.is_set() for h in held))
        assert await delete(stack, server_id) == 204
        await stack.until(server_id, "DELETED")
        for driver in stack.drivers.values():
            driver.faults.clear()
        assert residue(stack, server_id) == []
        states = {o.lifecycle: o.state for o in operations(stack, server_id)}
        assert states == {"create": "cancelled", "delete": "succeeded"}


async def test_many_deletes_at_once_answer_204_or_404_and_are_one_delete(stack: Stack) -> None:
    server_id = await booted(stack, "wanted")
    answers = await asyncio.gather(*(delete(stack, server_id) for _ in range(10)))
    assert set(answers) <= {204, 404}
    assert 204 in answers
    await stack.until(server_id, "DELETED")
    assert await delete(stack, server_id) == 404
    assert residue(stack, server_id) == []
    assert [o.state for o in operations(stack, server_id) if o.lifecycle == "delete"] == [
        "succeeded"
    ]


async def test_a_delete_works_in_every_state(stack: Stack) -> None:
    for state in (s for s in VmState if s is not VmState.DELETED):
        server_id = await booted(stack, state)
        with transaction(stack.engine) as session:
            session.get_one(Server, server_id).vm_state = state
        assert await delete(stack, server_id) == 204, state
        await stack.until(server_id, "DELETED")
        assert residue(stack, server_id) == [], state


async def test_a_busy_server_names_who_holds_it_and_is_free_when_that_ends(stack: Stack) -> None:
    server_id = await booted(stack, "busy")
    held = [driver.faults.hold("stop") for driver in stack.drivers.values()]
    assert (await act(stack, server_id, "stop")).status_code == 202
    await until(lambda: any(h.reached.is_set() for h in held))
    [_create, stop] = operations(stack, server_id)
    refused = await act(stack, server_id, "pause")
    assert refused.status_code == 409
    assert stop.id in refused.json()["conflictingRequest"]["message"]
    for driver in stack.drivers.values():
        driver.faults.clear()
    await stack.until(server_id, "SHUTOFF")
    assert (await act(stack, server_id, "start")).status_code == 202
    await stack.until(server_id, "ACTIVE")


async def test_a_lock_whose_workflow_was_terminated_is_released_by_the_sweep(stack: Stack) -> None:
    server_id = await booted(stack, "orphan")
    held = [driver.faults.hold("stop") for driver in stack.drivers.values()]
    assert (await act(stack, server_id, "stop")).status_code == 202
    await until(lambda: any(h.reached.is_set() for h in held))
    handle = stack.temporal.get_workflow_handle(server_workflow_id(server_id))
    await handle.terminate("by hand")
    for driver in stack.drivers.values():
        driver.faults.clear()
    stop = operations(stack, server_id)[-1]
    with transaction(stack.engine) as session:  # older than the API's own time to start it
        session.get_one(Operation, stop.id).created_at -= 2 * GRACE
    records = Records(stack.engine, stack.settings)
    swept = await Sweep(stack.temporal, stack.engine, records).run()
    assert swept.closed == (stop.id,)
    [stop] = [o for o in operations(stack, server_id) if o.id == stop.id]
    assert stop.state == "failed"
    assert "terminated" in (stop.error or "")
    assert (await act(stack, server_id, "reboot_hard")).status_code == 202
    await stack.until(server_id, "ACTIVE")


class Twice(Interceptor):
    """Executes every activity twice, as Temporal does when an acknowledgement is lost."""

    def __init__(self) -> None:
        self.repeated: set[str] = set()

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:
        repeated = self.repeated

        class Inbound(ActivityInboundInterceptor):
            async def execute_activity(self, input: ExecuteActivityInput) -> Any:
                await super().execute_activity(input)
                repeated.add(input.fn.__name__)
                return await super().execute_activity(input)

        return Inbound(next)


@pytest.fixture
def twice(monkeypatch: pytest.MonkeyPatch) -> Iterator[Twice]:
    interceptor = Twice()

    def both() -> Interceptor:
        return _Chain(interceptor, DomainErrors())

    monkeypatch.setattr(control_module, "DomainErrors", both)
    monkeypatch.setattr(host_module, "DomainErrors", both)
    return interceptor


class _Chain(Interceptor):
    def __init__(self, outer: Interceptor, inner: Interceptor) -> None:
        self._outer, self._inner = outer, inner

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:
        return self._outer.intercept_activity(self._inner.intercept_activity(next))


async def test_every_activity_may_run_twice(address: str, tmp_path: Path, twice: Twice) -> None:
    async with running_stack(tmp_path, address, hosts=2) as stack:
        server_id = await booted(stack, "twice", config_drive=True)
        for lifecycle in ROUND_TRIP:
            assert (await act(stack, server_id, lifecycle)).status_code == 202, lifecycle
            await until(lambda: all(o.finished_at for o in operations(stack, server_id)))
            last = operations(stack, server_id)[-1]
            assert (last.lifecycle, last.state) == (lifecycle, "succeeded"), last.error
            await stack.temporal.get_workflow_handle(server_workflow_id(server_id)).result()
        assert await delete(stack, server_id) == 204
        await stack.until(server_id, "DELETED")
        assert residue(stack, server_id) == []
        for driver in stack.drivers.values():
            driver.faults.fail("define", times=9, after=True)
        failed = await booted(stack, "fails twice", "ERROR")
        for driver in stack.drivers.values():
            assert driver.residue(failed) == []
            driver.faults.clear()
    records = {"begin_operation", "claim_host", "finish_operation", "may_unwind", "release_claim"}
    assert twice.repeated >= records | {"spawn_guest", "destroy_guest", "change_power"}

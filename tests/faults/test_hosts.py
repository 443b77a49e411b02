"""Hosts that hang, go away, come back, or do the same thing beside themselves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from activities.host import guests
from db.hosts import get_host
from db.session import reading
from domain.ids import server_workflow_id
from domain.states import PowerState
from runtime.sealing import host_key
from tests.faults.cases import WITHIN_S, act, booted, delete, operations, residue, until
from tests.stack import SECRET, Stack, running_stack
from virt.driver import Driver
from workers.host import HostPlan, host_worker
from workflows import operation

pytestmark = pytest.mark.temporal
AWAY = "host-9"


@asynccontextmanager
async def another_host(stack: Stack) -> AsyncIterator[Driver]:
    """A host that can go away and come back with what it had."""
    directory = stack.settings.data_dir / "hosts" / AWAY
    plan = HostPlan(AWAY, "fake", directory, host_key(SECRET, AWAY))
    async with host_worker(stack.temporal, plan, stack.settings) as driver:
        yield driver


async def test_a_server_deleted_while_its_host_was_away_is_gone_and_stays_gone(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Seen by the workflows because their modules are passed through, as in the control worker.
    monkeypatch.setattr(operation, "HOST_ANSWERS_WITHIN", timedelta(seconds=1))
    async with running_stack(tmp_path, address) as stack:
        async with another_host(stack):
            zone = f"nova:{AWAY}"
            server_id = await booted(stack, "far", who="admin", availability_zone=zone)
        assert await delete(stack, server_id) == 204
        await stack.until(server_id, "DELETED")
        assert residue(stack, server_id) == []
        async with another_host(stack) as driver:
            assert driver.residue(server_id) != []  # it knows nothing of the delete yet
            await until(lambda: driver.residue(server_id) == [])
        async with another_host(stack) as driver:
            assert driver.guests() == []
        assert (await stack.show(server_id))["status"] == "DELETED"


async def test_a_hung_guest_holds_up_neither_other_guests_nor_the_hosts_reports(
    stack: Stack,
) -> None:
    driver = stack.drivers["host-1"]
    on_it = {"who": "admin", "availability_zone": "nova:host-1"}
    hung, other = await booted(stack, "hung", **on_it), await booted(stack, "other", **on_it)
    stuck = driver.faults.hold("stop")
    assert (await act(stack, hung, "stop")).status_code == 202
    await until(stuck.reached.is_set)

    def reported() -> object:
        with reading(stack.engine) as session:
            return get_host(session, "host-1").reported_at

    before = reported()
    assert (await act(stack, other, "reboot_hard")).status_code == 202
    await stack.until(other, "ACTIVE")
    third = await booted(stack, "third", **on_it)
    assert await delete(stack, third) == 204
    await stack.until(third, "DELETED")
    driver.set_power(other, driver.power_state(other))  # news: the next report comes at once
    await until(lambda: reported() != before)
    assert [o.state for o in operations(stack, hung)] == ["succeeded", "running"]
    driver.faults.clear()
    await stack.until(hung, "SHUTOFF")


async def test_a_second_try_of_a_step_that_still_runs_waits_for_it(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first try's heartbeats are lost: Temporal starts the second while the driver still works."""
    driver = stack.drivers["host-1"]
    stuck = driver.faults.hold("disk")
    monkeypatch.setattr(guests, "HEARTBEAT_S", 3600.0)
    zone = {"who": "admin", "availability_zone": "nova:host-1"}
    server_id = (await stack.boot("slow", **zone)).json()["server"]["id"]
    await until(stuck.reached.is_set)
    handle = stack.temporal.get_workflow_handle(server_workflow_id(server_id))

    async def attempt() -> int:
        [pending] = (await handle.describe()).raw_description.pending_activities
        return pending.attempt

    async with asyncio.timeout(WITHIN_S):
        while await attempt() != 2:  # noqa: ASYNC110  # only polls
            await asyncio.sleep(0.2)
    assert list(driver.faults.reached).count("disk") == 1
    monkeypatch.undo()
    driver.faults.clear()
    await stack.until(server_id, "ACTIVE")
    assert driver.power_state(server_id) is PowerState.RUNNING


async def test_a_host_has_one_worker_at_a_time(stack: Stack) -> None:
    """The first one may still be ending its calls when the second is started."""
    entered = asyncio.Event()

    async def second() -> None:
        async with another_host(stack):
            entered.set()

    async with another_host(stack):
        with capture_logs() as said:
            starting = asyncio.create_task(second())
            await until(lambda: any("earlier worker" in line["event"] for line in said))
        assert not entered.is_set()
    async with asyncio.timeout(WITHIN_S):
        await starting
    assert entered.is_set()

"""Builds that fail: undone where they failed, tried elsewhere, and at the end explained."""

from __future__ import annotations

import base64

import pytest

from domain.errors import GuestFailure, GuestRefused
from domain.ids import server_workflow_id
from tests.faults.cases import act, booted, delete, operations, residue
from tests.stack import Stack

pytestmark = pytest.mark.temporal
STAGES = ("image", "disk", "config_drive", "nics", "define", "start")


async def test_a_failure_at_any_stage_leaves_the_host_as_it_was_and_names_its_cause(
    stack: Stack,
) -> None:
    before = {name: driver.residue() for name, driver in stack.drivers.items()}
    for stage in STAGES:
        for driver in stack.drivers.values():  # after the effect: there is something to take away
            error = GuestRefused(f"no {stage} to be had")
            driver.faults.fail(stage, times=9, error=error, after=True)
        server_id = await booted(stack, stage, "ERROR", config_drive=True)
        fault = (await stack.show(server_id))["fault"]
        assert f"no {stage} to be had" in fault["message"]
        for driver in stack.drivers.values():
            driver.faults.clear()
        assert {name: d.residue() for name, d in stack.drivers.items()} == before
        [create] = operations(stack, server_id)
        assert (create.lifecycle, create.state) == ("create", "failed")
        assert await delete(stack, server_id) == 204
        await stack.until(server_id, "DELETED")
        assert residue(stack, server_id) == []


async def test_each_attempt_is_undone_on_its_own_host_and_shown_in_the_explanation(
    stack: Stack,
) -> None:
    # An emptier host is tried first.
    await booted(stack, "ballast", who="admin", availability_zone="nova:host-2")
    for name, times in (("host-1", 3), ("host-2", 2)):  # a step is tried three times
        error = GuestFailure(f"{name} is on fire")
        stack.drivers[name].faults.fail("define", times, error, after=True)
    server_id = await booted(stack, "moves")
    home = (await stack.show(server_id))["OS-EXT-SRV-ATTR:host"]
    headers = await stack.headers("admin")
    answer = await stack.client.get(
        f"/operations/v1/servers/{server_id}/placement", headers=headers
    )
    placements = answer.json()["placements"]
    assert [(p["attempt"], p["host"]) for p in placements] == [(2, "host-2"), (1, "host-1")]
    assert home == "host-2"
    [create] = operations(stack, server_id)
    assert (create.state, create.attempt) == ("succeeded", 2)
    for name, driver in stack.drivers.items():
        driver.faults.clear()
        assert bool(driver.residue(server_id)) is (name == home)


async def test_a_failed_create_has_its_instance_action_and_a_fault_in_every_list(
    stack: Stack,
) -> None:
    for driver in stack.drivers.values():
        driver.faults.fail("disk", times=9, error=GuestRefused("no disk"))
    server_id = await booted(stack, "broken", "ERROR")
    headers = await stack.headers()
    base = f"/compute/v2.1/servers/{server_id}"
    actions = (await stack.client.get(f"{base}/os-instance-actions", headers=headers)).json()
    [action] = actions["instanceActions"]
    assert (action["action"], action["message"]) == ("create", "Error")
    shown = await stack.client.get(
        "/compute/v2.1/servers/detail", params={"status": "ERROR"}, headers=headers
    )
    [listed] = [s for s in shown.json()["servers"] if s["id"] == server_id]
    assert "no disk" in listed["fault"]["message"]


async def test_a_server_that_no_host_can_take_says_which_filter_refused_how_many(
    stack: Stack,
) -> None:
    headers = await stack.headers("admin")
    flavor = {"name": "vast", "vcpus": 4096, "ram": 512, "disk": 1}
    made = await stack.client.post(
        "/compute/v2.1/flavors", json={"flavor": flavor}, headers=headers
    )
    flavor_id = made.json()["flavor"]["id"]
    quota = {"quota_set": {"cores": -1}}
    who = (await stack.client.get("/identity/v3/auth/tokens", headers={
        **headers, "X-Subject-Token": await stack.token("member"),
    })).json()["token"]["project"]["id"]  # fmt: skip
    await stack.client.put(f"/compute/v2.1/os-quota-sets/{who}", json=quota, headers=headers)
    server_id = await booted(stack, "vast", "ERROR", flavorRef=flavor_id)
    message = (await stack.show(server_id))["fault"]["message"]
    assert "CapacityFilter" in message
    assert "2" in message
    assert residue(stack, server_id)  # its ports are its own until it is deleted
    assert (await act(stack, server_id, "pause")).status_code == 409
    assert await delete(stack, server_id) == 204
    await stack.until(server_id, "DELETED")
    assert residue(stack, server_id) == []


async def test_the_history_of_a_create_is_small_however_large_its_user_data(stack: Stack) -> None:
    user_data = base64.b64encode(b"#" * 49_000).decode()  # 65,535 characters are allowed
    server_id = await booted(stack, "talkative", user_data=user_data, config_drive=True)
    handle = stack.temporal.get_workflow_handle(server_workflow_id(server_id))
    history = await handle.fetch_history()
    assert len(history.events) < 50
    assert len(history.to_json()) < 64 * 1024

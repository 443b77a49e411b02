"""Failed builds through the API, on a whole cloud: held and resumed, retried, aborted, cancelled."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from temporalio.client import WorkflowUpdateFailedError

from domain.errors import GuestRefused
from domain.guest import STAGES
from domain.ids import CONTROL_QUEUE, OPERATOR_DESK, server_workflow_id
from domain.states import LIVE_OPERATION_STATES
from runtime.temporal import ensure_desk
from tests.operations.conftest import HOLD, TRIES, Desk, taken
from workflows.contract import RetryBuild

pytestmark = pytest.mark.temporal


async def broken_everywhere(desk: Desk, **headers: str) -> dict[str, str]:
    """Six builds, each made to fail for good at a stage of its own; stage → server id."""
    for stage in STAGES:
        desk.driver(stage).faults.fail(stage, TRIES)
    ids = await asyncio.gather(*(desk.build(stage, **headers) for stage in STAGES))
    return dict(zip(STAGES, ids, strict=True))


async def test_a_held_build_shows_its_step_and_resumes_there_without_repeating_the_steps_before(
    desk: Desk,
) -> None:
    for stage, server_id in (await broken_everywhere(desk, **HOLD)).items():
        held = await desk.until(server_id, "waiting_operator")
        assert (held["step"], held["error"]) == (stage, f"injected failure of {stage}")
        assert held["deadline_at"]
        skip = ["skip"] if stage == "config_drive" else []
        assert held["verbs"] == ["resume", *skip, "retry", "replace", "abort", "cancel"]
        before = STAGES[: STAGES.index(stage)]
        assert taken(held) == [*((s, "Success") for s in before), (stage, "Error")]
        assert (await desk.stack.show(server_id))["status"] == "BUILD"

        answer = await desk.say(held, "resume", json={"reason": "mended"})
        assert answer.status_code == 202, answer.text
        assert answer.json()["state"] in ("running", "succeeded")
        await desk.stack.until(server_id, "ACTIVE")
        ended = await desk.until(server_id, "succeeded")
        assert taken(ended)[len(before) + 1 :] == [
            (s, "Success") for s in STAGES[STAGES.index(stage) :]
        ]
        [wait] = [s for s in ended["steps"] if s["name"] == "waiting_operator"]
        assert wait["details"] == "resume by admin: mended"
        assert (ended["error"], ended["verbs"], ended["deadline_at"]) == (None, [], None)


async def test_a_failed_build_is_retried_from_its_stored_request(desk: Desk) -> None:
    ids = await broken_everywhere(desk)
    for stage, server_id in ids.items():
        failed = await desk.until(server_id, "failed")
        server = await desk.stack.until(server_id, "ERROR")
        assert taken(failed)[-1] == (stage, "Error")
        assert failed["verbs"] == ["retry"]
        assert desk.driver(stage).residue() == []

        answer = await desk.say(failed, "retry")
        assert answer.status_code == 202, answer.text
        assert answer.json()["retry_of"] == failed["id"] != answer.json()["id"]
        again = await desk.stack.until(server_id, "ACTIVE")
        assert (again["name"], again["addresses"]) == (server["name"], server["addresses"])
        assert "fault" not in again
        twice = await desk.say(failed, "retry")
        assert twice.status_code == 409, twice.text


async def test_the_operators_desk_retries_a_failed_build(desk: Desk) -> None:
    desk.driver("disk").faults.fail("disk", TRIES)
    server_id = await desk.build("disk")
    await desk.stack.until(server_id, "ERROR")
    await ensure_desk(desk.stack.temporal)
    at_desk = desk.stack.temporal.get_workflow_handle(OPERATOR_DESK)
    accepted = await at_desk.execute_update("retry", RetryBuild(server_id))
    await desk.stack.until(server_id, "ACTIVE")
    assert (await desk.newest(server_id))["id"] == accepted["operation_id"]
    with pytest.raises(WorkflowUpdateFailedError) as refused:
        await at_desk.execute_update("retry", RetryBuild(server_id))
    assert "only a server in ERROR is built again" in str(refused.value.cause)
    await at_desk.terminate()


async def test_what_a_terminated_build_left_is_undone_and_it_can_be_retried(desk: Desk) -> None:
    driver = desk.driver("start")
    driver.faults.fail("start", TRIES)
    server_id = await desk.build("start", **HOLD)
    held = await desk.until(server_id, "waiting_operator")
    await desk.stack.temporal.get_workflow_handle(server_workflow_id(server_id)).terminate()
    assert (await desk.say(held, "resume")).status_code == 409  # nobody is there to hear it
    failed = await swept(desk, server_id)
    assert failed["state"] == "failed"
    assert "terminated" in failed["error"]
    assert driver.residue() == []
    assert (await desk.stack.until(server_id, "ERROR"))["OS-EXT-SRV-ATTR:host"] is None
    answer = await desk.say(failed, "retry")
    assert answer.status_code == 202, answer.text
    await desk.stack.until(server_id, "ACTIVE")
    ended = await desk.until(server_id, "succeeded")
    assert taken(ended) == [(s, "Success") for s in STAGES]


async def swept(desk: Desk, server_id: str) -> dict[str, Any]:
    """The newest operation once the sweep has ended it; it leaves those of the last seconds alone."""
    async with asyncio.timeout(30):
        while (found := await desk.newest(server_id))["state"] in LIVE_OPERATION_STATES:
            await desk.stack.temporal.execute_workflow(
                "SweepOperations", id="sweep-now", task_queue=CONTROL_QUEUE
            )
            await asyncio.sleep(0.5)
    return found


async def test_abort_undoes_and_replace_moves_on(desk: Desk) -> None:
    ids: dict[str, str] = {}
    for stage in ("disk", "nics"):
        desk.driver(stage).faults.fail(stage, TRIES)
        ids[stage] = await desk.build(stage, **HOLD)
    aborted = await desk.until(ids["disk"], "waiting_operator")
    assert (await desk.say(aborted, "abort")).status_code == 202
    server = await desk.stack.until(ids["disk"], "ERROR")
    assert server["fault"]["message"] == "injected failure of disk (given up by admin)"
    assert desk.driver("disk").residue() == []
    # The host was forced, so there is no other: the build now waits for a host.
    moved = await desk.until(ids["nics"], "waiting_operator")
    assert (await desk.say(moved, "replace")).status_code == 202
    async with asyncio.timeout(30):
        while (found := await desk.until(ids["nics"], "waiting_operator"))["step"] == "nics":  # noqa: ASYNC110  # only polls
            await asyncio.sleep(0.05)
    assert found["step"] == "claim_host"
    assert found["verbs"] == ["retry", "resume", "abort", "cancel"]
    assert desk.driver("nics").residue() == []


async def test_cancel_reaches_the_hypervisor_and_waits_for_its_end(desk: Desk) -> None:
    driver = desk.driver("disk")
    standing = driver.faults.hold("disk")
    server_id = await desk.build("disk")
    assert await asyncio.to_thread(standing.reached.wait, 30)
    running = await desk.until(server_id, "running")
    assert (await desk.say(running, "cancel")).status_code == 202
    waited = await desk.call("GET", f"/operations/{running['id']}/wait", params={"timeout": 30})
    assert waited.json()["state"] == "cancelled"
    assert driver.residue() == []
    assert (await desk.say(running, "cancel")).status_code == 409
    standing.release()
    # A cancelled build can be taken up again like a failed one.
    assert (await desk.say(running, "retry")).status_code == 202
    await desk.stack.until(server_id, "ACTIVE")


async def test_a_verb_that_does_not_fit_is_refused_with_a_reason(desk: Desk) -> None:
    desk.driver("disk").faults.fail("disk", TRIES)
    server_id = await desk.build("disk", **HOLD)
    held = await desk.until(server_id, "waiting_operator")

    async def refused(verb: str, status: int, **given: Any) -> str:
        answer = await desk.say(held, verb, **given)
        assert answer.status_code == status, answer.text
        return answer.text

    assert "'skip' does not fit step 'disk'" in await refused("skip", 409)
    assert "could not be found" in await refused("resume", 404, who="member")
    await refused("dance", 400)
    await refused("resume", 400, json={"reason": 1})
    assert (await desk.newest(server_id))["state"] == "waiting_operator"
    headers = await desk.stack.headers("admin")
    gone = await desk.stack.client.delete(f"/compute/v2.1/servers/{server_id}", headers=headers)
    assert gone.status_code == 204  # a delete wins over a wait, too
    await desk.stack.until(server_id, "DELETED")
    assert "has ended" in await refused("resume", 409)
    assert desk.driver("disk").residue() == []


async def test_a_build_no_host_will_ever_take_can_wait_too(desk: Desk) -> None:
    """The hint says the same as the header."""
    desk.driver("image").faults.fail("image", 1, GuestRefused("not an image"))
    answer = await desk.stack.boot("hinted", "admin", availability_zone="nova:host-1")
    assert answer.status_code == 202
    hinted = await desk.stack.client.post(
        "/compute/v2.1/servers",
        json={
            "server": {
                "name": "hinted",
                "imageRef": await desk.stack.image(),
                "flavorRef": "tiny",
                "networks": "none",
                "availability_zone": "nova:host-2",
            },
            "os:scheduler_hints": {"duranova:hold_on_failure": "true"},
        },
        headers=await desk.stack.headers("admin"),
    )
    assert hinted.status_code == 202, hinted.text
    await desk.stack.until(answer.json()["server"]["id"], "ERROR")
    await desk.stack.until(hinted.json()["server"]["id"], "ACTIVE")

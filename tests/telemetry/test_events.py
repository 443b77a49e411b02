"""What a whole cloud tells of an operation, on the stream that a client reads."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from domain.errors import GuestRefused
from tests.stack import Stack

EVENTS = "/operations/v1/events"


async def told(
    stack: Stack, server_id: str, who: str = "member", until: str = ".ended"
) -> list[dict[str, Any]]:
    """The events of a server from the first on."""
    found = []
    query = {"server_id": server_id, "after": "0"}
    async with asyncio.timeout(30):
        headers = await stack.headers(who)
        async with stack.client.stream("GET", EVENTS, params=query, headers=headers) as answer:
            async for line in answer.aiter_lines():
                if line.startswith("data: "):
                    found.append(json.loads(line.removeprefix("data: ")))
                    if found[-1]["type"].endswith(until):
                        return found
    raise AssertionError(found)


@pytest.mark.temporal
async def test_a_build_is_told_from_its_accept_to_its_end(stack: Stack) -> None:
    server_id = (await stack.boot("one")).json()["server"]["id"]
    events = await told(stack, server_id)
    await stack.until(server_id, "ACTIVE")
    kinds = [e["type"].rpartition(".")[2] for e in events]
    assert (kinds[:2], set(kinds[2:-1]), kinds[-1]) == (["accepted", "started"], {"step"}, "ended")
    steps = [e["data"]["step"] for e in events if "step" in e["data"]]
    told_of = [(step["name"], step["result"]) for step in steps]
    build = "compute__do_build_and_run_instance"
    assert told_of[:2] == [("schedule_instances", "Success"), (build, None)]
    assert (build, "Success") in told_of[2:]
    assert events[-1]["data"]["state"] == "succeeded"
    assert {e["data"]["lifecycle"] for e in events} == {"create"}
    assert "host-1" not in json.dumps(events)
    assert "host-2" not in json.dumps(events)


@pytest.mark.temporal
async def test_a_build_that_fails_is_told_with_each_try_and_the_cause(stack: Stack) -> None:
    for host in ("host-1", "host-2"):
        stack.drivers[host].faults.fail("nics", times=99, error=GuestRefused("no card will do"))
    server_id = (await stack.boot("one")).json()["server"]["id"]
    events = await told(stack, server_id, "admin")
    await stack.until(server_id, "ERROR")
    assert events[-1]["data"]["state"] == "failed"
    assert "no card will do" in events[-1]["data"]["error"]
    broken = [e for e in events if e["data"].get("step", {}).get("result") == "Error"]
    assert broken
    assert broken[0]["data"]["host"] in ("host-1", "host-2")


@pytest.mark.temporal
async def test_a_wait_for_an_operator_and_what_was_decided_are_told(stack: Stack) -> None:
    for host in ("host-1", "host-2"):
        stack.drivers[host].faults.fail("nics", times=99, error=GuestRefused("no card will do"))
    hold = {"X-Duranova-Hold-On-Failure": "true"}
    server_id = (await stack.boot("one", headers=hold)).json()["server"]["id"]
    waiting = (await told(stack, server_id, "admin", until=".waiting"))[-1]["data"]
    assert waiting["error"] == "no card will do"
    assert "abort" in waiting["verbs"]
    path = f"/operations/v1/operations/{waiting['operation_id']}/abort"
    answer = await stack.client.post(path, headers=await stack.headers("admin"))
    assert answer.status_code == 202, answer.text
    kinds = [e["type"].rpartition(".")[2] for e in await told(stack, server_id)]
    assert [kind for kind in kinds if kind != "step"] == [
        "accepted", "started", "waiting", "resumed", "ended",
    ]  # fmt: skip
    await stack.until(server_id, "ERROR")

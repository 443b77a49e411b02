"""os-instance-actions over HTTP."""

from __future__ import annotations

import hashlib
from datetime import timedelta
from typing import Any

import pytest

from db.operations import Operation, OperationEvent
from db.session import now, transaction
from tests.api.conftest import SERVERS, ServerWorld, at


@pytest.fixture
def server(world: ServerWorld) -> str:
    """A server with three actions an hour apart; the newest failed on node-1."""
    made = world.create()
    start = now() - timedelta(hours=3)
    with transaction(world.engine) as session:
        for n, (action, state) in enumerate([("stop", "succeeded"), ("start", "failed")]):
            moment = start + timedelta(hours=n)
            operation = Operation(
                request_id=f"req-{n}", action=action, lifecycle=action, server_id=made, state=state,
                project_id="project-demo", user_id="user-member", created_at=moment, updated_at=moment,
            )  # fmt: skip
            session.add(operation)
            session.flush()
            session.add(
                OperationEvent(
                    operation_id=operation.id, name=f"compute_{action}_instance", host="node-1",
                    finished_at=moment, result="Error" if n else "Success", details="boom" if n else None,
                )
            )  # fmt: skip
    return made


def listed(
    world: ServerWorld, server: str, query: str = "", version: str = "2.1", who: str = "member"
) -> Any:
    path = f"{SERVERS}/{server}/os-instance-actions?{query}"
    return world.client.get(path, headers=at(version, who))


def shown(
    world: ServerWorld, server: str, request: str, version: str = "2.1", who: str = "member"
) -> Any:
    path = f"{SERVERS}/{server}/os-instance-actions/{request}"
    answer = world.client.get(path, headers=at(version, who))
    assert answer.status_code == 200, answer.text
    return answer.json()["instanceAction"]


def test_every_accepted_request_is_listed_newest_first(world: ServerWorld, server: str) -> None:
    actions = listed(world, server).json()["instanceActions"]
    assert [a["action"] for a in actions] == ["create", "start", "stop"]
    assert [a["message"] for a in actions] == [None, "Error", None]
    base = {
        "action",
        "instance_uuid",
        "request_id",
        "user_id",
        "project_id",
        "start_time",
        "message",
    }
    assert set(actions[0]) == base
    later = listed(world, server, version="2.58").json()["instanceActions"]
    assert set(later[0]) == base | {"updated_at"}


def test_pages_from_2_58(world: ServerWorld, server: str) -> None:
    body = listed(world, server, "limit=2", "2.58").json()
    assert [a["action"] for a in body["instanceActions"]] == ["create", "start"]
    [link] = body["links"]
    assert link["rel"] == "next"
    rest = world.client.get(link["href"], headers=at("2.58")).json()
    assert [a["action"] for a in rest["instanceActions"]] == ["stop"]
    assert len(listed(world, server, "limit=2").json()["instanceActions"]) == 3
    assert listed(world, server, "marker=nobody", "2.58").status_code == 400


def test_changes_since_and_before(world: ServerWorld, server: str) -> None:
    recent = (now() - timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
    since = listed(world, server, f"changes-since={recent}", "2.58").json()["instanceActions"]
    assert [a["action"] for a in since] == ["create"]
    before = listed(world, server, f"changes-before={recent}", "2.66").json()["instanceActions"]
    assert [a["action"] for a in before] == ["start", "stop"]
    wrong = f"changes-since={recent}&changes-before=2000-01-01"
    assert listed(world, server, wrong, "2.66").status_code == 400
    assert listed(world, server, "changes-since=soon", "2.58").status_code == 400
    assert listed(world, server, "unknown=1", "2.75").status_code == 400


@pytest.mark.parametrize(
    ("version", "who", "fields"),
    [
        ("2.1", "member", None),
        ("2.50", "member", None),
        ("2.1", "admin", {"traceback"}),
        ("2.51", "member", set()),
        ("2.62", "member", {"hostId"}),
        ("2.62", "admin", {"hostId", "host", "traceback"}),
        ("2.84", "member", {"hostId", "details"}),
        ("2.84", "admin", {"hostId", "host", "traceback", "details"}),
    ],
)
def test_events_by_version_and_role(
    world: ServerWorld, server: str, version: str, who: str, fields: set[str] | None
) -> None:
    action = shown(world, server, "req-1", version, who)
    if fields is None:
        assert "events" not in action
        return
    [event] = action["events"]
    assert set(event) == {"event", "start_time", "finish_time", "result"} | fields
    assert (event["event"], event["result"]) == ("compute_start_instance", "Error")
    if "hostId" in fields:
        assert event["hostId"] == hashlib.sha224(b"project-demonode-1").hexdigest()


def test_an_unknown_action_and_another_projects_server_are_not_found(
    world: ServerWorld, server: str
) -> None:
    path = f"{SERVERS}/{server}/os-instance-actions"
    assert world.client.get(f"{path}/req-9", headers=at()).status_code == 404
    assert listed(world, server, who="alt").status_code == 404
    other = world.create(name="other")
    crossed = f"{SERVERS}/{other}/os-instance-actions/req-1"
    assert world.client.get(crossed, headers=at()).status_code == 404


def test_actions_of_a_deleted_server_can_be_read_from_2_21(world: ServerWorld, server: str) -> None:
    world.bury(server)
    assert listed(world, server, version="2.20").status_code == 404
    assert len(listed(world, server, version="2.21").json()["instanceActions"]) == 3
    assert shown(world, server, "req-0", "2.21")["action"] == "stop"
    assert listed(world, server, version="2.21", who="alt").status_code == 404

"""Guests that change by themselves: followed or brought back as the policy says, and always to be seen."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Engine
from sqlmodel import col, select

from api.context import Cloud
from db.operations import Operation, OperationEvent
from db.reconcilers import reconcilers
from db.servers import Server
from db.session import now, reading, transaction
from domain.errors import ServerBusy
from domain.ids import new_id
from domain.states import PowerState, VmState
from tests.api.test_internal import HOST, Reports, add_server, state
from tests.conftest import RecordingLauncher, acting_as

SHUTDOWN, RUNNING, PAUSED = PowerState.SHUTDOWN, PowerState.RUNNING, PowerState.PAUSED
WITHOUT_KEY: dict[str, str] = {}


@pytest.fixture
def reports(client: TestClient) -> Reports:
    return Reports(client)


def drift(reports: Reports, server_id: str, power: PowerState) -> None:
    """Two reports in a row that say so."""
    for _ in range(2):
        reports.send((server_id, power, 1))


def operations(engine: Engine, server_id: str) -> list[Operation]:
    with reading(engine) as session:
        query = select(Operation).where(Operation.server_id == server_id)
        return list(session.exec(query.order_by(col(Operation.created_at))))


def end(engine: Engine, server_id: str, outcome: str = "succeeded", **columns: Any) -> None:
    """Every operation of the server ends so, and leaves it so."""
    with transaction(engine) as session:
        for operation in session.exec(select(Operation).where(Operation.server_id == server_id)):
            operation.state = outcome
            session.add(operation)
        server = session.get_one(Server, server_id)
        for name, value in {"task_state": None, "updated_at": now(), **columns}.items():
            setattr(server, name, value)
        session.add(server)


def test_a_followed_guest_is_an_action_that_its_user_sees(
    reports: Reports, engine: Engine, client: TestClient
) -> None:
    server_id = add_server(engine)
    drift(reports, server_id, SHUTDOWN)
    path = f"/compute/v2.1/servers/{server_id}/os-instance-actions"
    newest = {"OpenStack-API-Version": "compute 2.96"}
    [action] = client.get(path, headers=newest).json()["instanceActions"]
    assert (action["action"], action["user_id"], action["message"]) == (
        "power_sync",
        "system",
        None,
    )
    shown = client.get(f"{path}/{action['request_id']}", headers=newest).json()["instanceAction"]
    [event] = shown["events"]
    assert event["result"] == "Success"
    assert "its guest shutdown" in event["details"]
    with reading(engine) as session:
        assert reconcilers(session)["power"].fixes == 1


def test_nothing_is_recorded_for_a_guest_that_is_as_it_should_be(
    reports: Reports, engine: Engine
) -> None:
    server_id = add_server(engine)
    drift(reports, server_id, RUNNING)
    assert operations(engine, server_id) == []


@pytest.mark.parametrize(
    ("wish", "found", "lifecycles", "shown"),
    [
        (VmState.ACTIVE, SHUTDOWN, ["reboot_hard"], VmState.ACTIVE),
        (VmState.ACTIVE, PowerState.CRASHED, ["reboot_hard"], VmState.ACTIVE),
        (VmState.ACTIVE, PAUSED, ["follow_guest", "unpause"], VmState.PAUSED),
        (VmState.ACTIVE, PowerState.SUSPENDED, ["follow_guest", "resume"], VmState.SUSPENDED),
        (VmState.STOPPED, RUNNING, ["follow_guest", "stop"], VmState.ACTIVE),
        (VmState.PAUSED, RUNNING, ["follow_guest", "pause"], VmState.ACTIVE),
        (VmState.SUSPENDED, RUNNING, ["follow_guest", "suspend"], VmState.ACTIVE),
        (VmState.PAUSED, SHUTDOWN, ["follow_guest"], VmState.STOPPED),
    ],
)
def test_a_wish_is_brought_back_by_an_operation(
    reports: Reports,
    engine: Engine,
    wish: VmState,
    found: PowerState,
    lifecycles: list[str],
    shown: VmState,
) -> None:
    server_id = add_server(engine, vm_state=wish, power_policy="restore")
    drift(reports, server_id, found)
    assert [o.lifecycle for o in operations(engine, server_id)] == lifecycles
    assert state(engine, server_id) == shown


def test_the_clouds_policy_holds_for_servers_without_their_own(
    reports: Reports, engine: Engine, cloud: Cloud, launcher: RecordingLauncher
) -> None:
    object.__setattr__(
        cloud, "settings", cloud.settings.model_copy(update={"power_drift_policy": "restore"})
    )
    plain, own = add_server(engine), add_server(engine, power_policy="follow")
    for _ in range(2):
        reports.send((plain, SHUTDOWN, 1), (own, SHUTDOWN, 1))
    assert [(key, s) for key, s, _ in launcher.started] == [("reboot_hard", plain)]
    assert state(engine, own) == VmState.STOPPED


def test_a_guest_that_crashes_at_once_is_followed_in_the_end(
    reports: Reports, engine: Engine
) -> None:
    server_id = add_server(engine, power_policy="restore")
    for _ in range(6):
        drift(reports, server_id, SHUTDOWN)
        if state(engine, server_id) == VmState.ACTIVE:
            end(engine, server_id)
    made = operations(engine, server_id)
    assert [o.lifecycle for o in made] == ["reboot_hard"] * 3 + ["follow_guest"]
    assert state(engine, server_id) == VmState.STOPPED
    with reading(engine) as session:
        event = session.exec(
            select(OperationEvent).where(OperationEvent.operation_id == made[-1].id)
        ).one()
    assert "restored too often" in (event.details or "")


def test_a_guest_whose_restoration_after_a_host_restart_fails_is_not_restarted_for_ever(
    reports: Reports, engine: Engine
) -> None:
    server_id = add_server(engine, seen_by=new_id())
    for _ in range(6):
        reports.send((server_id, SHUTDOWN, 1))
        end(engine, server_id, "failed")
    assert [o.lifecycle for o in operations(engine, server_id)] == [
        *["reboot_hard"] * 3,
        "follow_guest",
    ]


def test_a_guest_is_restored_after_every_restart_of_its_host(
    reports: Reports, engine: Engine
) -> None:
    server_id = add_server(engine, seen_by=new_id())
    for _ in range(5):
        reports.epoch = new_id()
        reports.send((server_id, SHUTDOWN, 1))
        end(engine, server_id, seen_by=reports.epoch)
    assert [o.lifecycle for o in operations(engine, server_id)] == ["reboot_hard"] * 5


def test_a_user_who_was_quicker_than_the_correction_wins(
    reports: Reports, engine: Engine, launcher: RecordingLauncher, monkeypatch: pytest.MonkeyPatch
) -> None:
    server_id = add_server(engine, power_policy="restore")
    reports.send((server_id, SHUTDOWN, 1))

    def busy(*_: object) -> Operation:
        raise ServerBusy("a user's start is running")

    monkeypatch.setattr(launcher, "act", busy)
    reports.send((server_id, SHUTDOWN, 1))
    assert operations(engine, server_id) == []
    assert state(engine, server_id) == VmState.ACTIVE


@pytest.mark.parametrize("policy", ["follow", "restore"])
def test_a_stopped_server_of_another_host_is_not_told_by_this_one(
    reports: Reports, engine: Engine, policy: str
) -> None:
    server_id = add_server(engine, host="elsewhere", power_policy=policy)
    drift(reports, server_id, SHUTDOWN)
    assert operations(engine, server_id) == []


# --- the policy's own API


def url(server_id: str) -> str:
    return f"/operations/v1/servers/{server_id}/power-policy"


def test_a_policy_is_the_clouds_until_it_is_set_and_again_when_it_is_cleared(
    client: TestClient, engine: Engine
) -> None:
    server_id = add_server(engine)

    def told(answer: Any) -> tuple[str, bool]:
        assert answer.status_code == 200, answer.text
        return answer.json()["power_policy"], answer.json()["is_default"]

    assert told(client.get(url(server_id))) == ("follow", True)

    def put(value: Any) -> Any:
        return client.put(url(server_id), json={"power_policy": value})

    assert told(put("restore")) == ("restore", False)
    assert told(client.get(url(server_id))) == ("restore", False)
    assert told(put(None)) == ("follow", True)


@pytest.mark.parametrize(
    ("who", "body", "status"),
    [
        ("member", {"power_policy": "ignore"}, 400),
        ("member", {}, 400),
        ("member", {"power_policy": "follow", "more": 1}, 400),
        ("reader", {"power_policy": "follow"}, 403),
        ("alt", {"power_policy": "follow"}, 404),
        ("admin", {"power_policy": "follow"}, 200),
    ],
)
def test_a_policy_is_refused_to(
    client: TestClient, engine: Engine, who: str, body: Any, status: int
) -> None:
    answer = client.put(url(add_server(engine)), json=body, headers=acting_as(who))
    assert answer.status_code == status, answer.text


# --- orphans


def test_orphans_are_shown_to_administrators_and_counted(
    reports: Reports, client: TestClient, engine: Engine, launcher: RecordingLauncher
) -> None:
    ours, away, unknown, gone = (
        add_server(engine),
        add_server(engine, host="two"),
        new_id(),
        new_id(),
    )
    guests = [(ours, RUNNING, 1), (away, SHUTDOWN, 1), (unknown, RUNNING, 4)]
    reports.send(*guests, residue=[gone])
    shown = client.get("/operations/v1/orphans", headers=acting_as("admin")).json()["orphans"]
    assert {(o["host"], o["server_id"], o["kind"], o["power_state"]) for o in shown} == {
        (HOST, away, "guest", SHUTDOWN), (HOST, unknown, "guest", RUNNING), (HOST, gone, "residue", None),
    }  # fmt: skip
    assert all(o["reason"] for o in shown)
    assert launcher.purged == []
    assert f'duranova_orphans{{host="{HOST}"}} 3.0' in client.get("/metrics").text
    assert client.get("/operations/v1/orphans").status_code == 403

    reports.send(*guests[:1])  # residue is kept until the host looks again
    shown = client.get("/operations/v1/orphans", headers=acting_as("admin")).json()["orphans"]
    assert [o["server_id"] for o in shown] == [gone]
    reports.send(*guests[:1], residue=[])
    assert client.get("/operations/v1/orphans", headers=acting_as("admin")).json() == {
        "orphans": []
    }

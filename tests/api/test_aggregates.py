"""Host aggregates and availability zones over HTTP."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Engine

from db.hosts import Host
from db.servers import Server
from db.session import now, transaction
from tests.conftest import acting_as

ROOT = "/compute/v2.1/os-aggregates"
ZONES = "/compute/v2.1/os-availability-zone"


@pytest.fixture
def admin(client: TestClient) -> TestClient:
    client.headers["X-Auth-Token"] = "admin"
    return client


@pytest.fixture(autouse=True)
def hosts(engine: Engine) -> None:
    with transaction(engine) as session:
        for name in ("h1", "h2"):
            session.add(
                Host(
                    name=name, uuid=f"u-{name}", service_id=f"s-{name}", reported_at=now(),
                    hypervisor_hostname=name,
                )
            )  # fmt: skip


def serve(engine: Engine, host: str) -> None:
    with transaction(engine) as session:
        session.add(Server(project_id="p", user_id="u", name="s", host=host))


def make(admin: TestClient, name: str = "a", zone: str | None = None) -> int:
    body: dict[str, Any] = {"name": name}
    if zone is not None:
        body["availability_zone"] = zone
    number: int = admin.post(ROOT, json={"aggregate": body}).json()["aggregate"]["id"]
    return number


def act(admin: TestClient, number: int, **action: Any) -> Any:
    return admin.post(f"{ROOT}/{number}/action", json=action)


def add(admin: TestClient, number: int, host: str) -> Any:
    return act(admin, number, add_host={"host": host})


def message(answer: Any) -> str:
    [fault] = answer.json().values()
    text: str = fault["message"]
    return text


def test_create_shows_neither_hosts_nor_metadata(admin: TestClient) -> None:
    body = {"aggregate": {"name": "rack1", "availability_zone": "east"}}
    answer = admin.post(ROOT, json=body)
    assert answer.status_code == 200
    made = answer.json()["aggregate"]
    assert made == {
        "id": made["id"], "name": "rack1", "availability_zone": "east", "updated_at": None,
        "deleted": False, "deleted_at": None, "created_at": made["created_at"],
    }  # fmt: skip
    shown = admin.get(f"{ROOT}/{made['id']}").json()["aggregate"]
    assert shown == {**made, "hosts": [], "metadata": {"availability_zone": "east"}}
    assert admin.get(ROOT).json() == {"aggregates": [shown]}


def test_the_uuid_comes_with_its_version(admin: TestClient) -> None:
    number = make(admin)
    for version, has in (("2.40", False), ("2.41", True)):
        headers = {"OpenStack-API-Version": f"compute {version}"}
        shown = admin.get(f"{ROOT}/{number}", headers=headers).json()["aggregate"]
        assert ("uuid" in shown) is has


def test_a_name_is_taken_once(admin: TestClient) -> None:
    make(admin, "a")
    other = make(admin, "b")
    answer = admin.post(ROOT, json={"aggregate": {"name": "a"}})
    assert answer.status_code == 409
    assert message(answer) == "Aggregate a already exists."
    renamed = admin.put(f"{ROOT}/{other}", json={"aggregate": {"name": "a"}})
    assert renamed.status_code == 409
    assert admin.get(f"{ROOT}/{other}").json()["aggregate"]["name"] == "b"


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"aggregate": {}},
        {"aggregate": {"name": ""}},
        {"aggregate": {"name": "x" * 256}},
        {"aggregate": {"name": "a", "availability_zone": "a:b"}},
        {"aggregate": {"name": "a", "availability_zone": ""}},
        {"aggregate": {"name": "a", "hosts": []}},
    ],
)
def test_a_bad_body_is_a_400(admin: TestClient, body: Any) -> None:
    assert admin.post(ROOT, json=body).status_code == 400
    number = make(admin, "good")
    assert admin.put(f"{ROOT}/{number}", json=body).status_code in (400, 200)
    assert admin.put(f"{ROOT}/{number}", json={"aggregate": {}}).status_code == 400


@pytest.mark.parametrize(("ref", "status"), [("99", 404), ("x", 400), ("9" * 30, 400), ("-1", 400)])
def test_a_number_that_is_none_or_unknown(admin: TestClient, ref: str, status: int) -> None:
    assert admin.get(f"{ROOT}/{ref}").status_code == status
    assert admin.delete(f"{ROOT}/{ref}").status_code == status
    assert act(admin, ref, set_metadata={"metadata": {}}).status_code == status  # type: ignore[arg-type]  # on purpose


def test_only_admins(client: TestClient) -> None:
    assert client.get(ROOT).status_code == 403
    assert client.post(ROOT, json={"aggregate": {"name": "a"}}).status_code == 403
    assert client.get(f"{ZONES}/detail").status_code == 403


def test_hosts_come_and_go(admin: TestClient) -> None:
    number = make(admin)
    assert add(admin, number, "h2").json()["aggregate"]["hosts"] == ["h2"]
    assert add(admin, number, "h1").json()["aggregate"]["hosts"] == ["h1", "h2"]
    again = add(admin, number, "h1")
    assert again.status_code == 409
    assert message(again) == f"Aggregate {number} already has host h1."
    unknown = add(admin, number, "h9")
    assert unknown.status_code == 404
    assert message(unknown) == "Compute host h9 could not be found."
    full = admin.delete(f"{ROOT}/{number}")
    assert full.status_code == 400
    assert "Host aggregate is not empty" in message(full)
    for host in ("h1", "h2"):
        assert act(admin, number, remove_host={"host": host}).status_code == 200
    gone = act(admin, number, remove_host={"host": "h1"})
    assert gone.status_code == 404
    assert message(gone) == f"Cannot remove host h1 in aggregate {number}"
    assert admin.delete(f"{ROOT}/{number}").status_code == 200
    assert admin.get(f"{ROOT}/{number}").status_code == 404


def test_metadata_is_merged_and_null_removes(admin: TestClient) -> None:
    number = make(admin)
    act(admin, number, set_metadata={"metadata": {"ssd": "true", "rack": "7"}})
    changed = act(admin, number, set_metadata={"metadata": {"ssd": None, "row": "2"}})
    assert changed.json()["aggregate"]["metadata"] == {"rack": "7", "row": "2"}
    assert changed.json()["aggregate"]["updated_at"] is not None


@pytest.mark.parametrize(
    "action",
    [
        {},
        {"add_host": {"host": "h1"}, "remove_host": {"host": "h1"}},
        {"add_host": None},
        {"add_host": {"host": ""}},
        {"add_host": {"host": "h 1"}},
        {"add_host": {}},
        {"set_metadata": {"metadata": {"a/b": "c"}}},
        {"set_metadata": {"metadata": {"a": 5}}},
        {"set_metadata": {"metadata": {"a": "x" * 256}}},
        {"set_metadata": {}},
        {"explode": {}},
    ],
)
def test_a_bad_action_is_a_400(admin: TestClient, action: Any) -> None:
    assert act(admin, make(admin), **action).status_code == 400


# --- zones


def test_a_host_is_in_one_zone_only(admin: TestClient) -> None:
    east, west, plain = make(admin, "e", "east"), make(admin, "w", "west"), make(admin, "p")
    add(admin, east, "h1")
    answer = add(admin, west, "h1")
    assert answer.status_code == 409
    assert message(answer) == (
        f"Cannot add host to aggregate {west}. "
        "Reason: One or more hosts already in availability zone(s) ['east']."
    )
    assert add(admin, plain, "h1").status_code == 200
    zoned = act(admin, plain, set_metadata={"metadata": {"availability_zone": "west"}})
    assert zoned.status_code == 400
    assert message(zoned).startswith(f"Cannot update metadata of aggregate {plain}. Reason: ")
    same = act(admin, plain, set_metadata={"metadata": {"availability_zone": "east"}})
    assert same.status_code == 200
    assert add(admin, make(admin, "e2", "east"), "h1").status_code == 200


def test_a_zone_name_may_not_be_taken_away(admin: TestClient) -> None:
    east = make(admin, "e", "east")
    for answer in (
        act(admin, east, set_metadata={"metadata": {"availability_zone": None}}),
        admin.put(f"{ROOT}/{east}", json={"aggregate": {"availability_zone": None}}),
    ):
        assert answer.status_code == 400
        assert "does not support empty named availability zone" in message(answer)


def test_a_zone_does_not_change_under_servers(admin: TestClient, engine: Engine) -> None:
    east, other = make(admin, "e", "east"), make(admin, "o", "other")
    add(admin, east, "h1")
    serve(engine, "h1")
    serve(engine, "h2")
    renamed = admin.put(f"{ROOT}/{east}", json={"aggregate": {"availability_zone": "west"}})
    assert renamed.status_code == 400
    assert "One or more hosts contain instances in this zone" in message(renamed)
    moved_in = add(admin, other, "h2")
    assert moved_in.status_code == 409
    assert "would change from 'nova' to 'other'" in message(moved_in)
    moved_out = act(admin, east, remove_host={"host": "h1"})
    assert moved_out.status_code == 409
    assert "would change from 'east' to 'nova'" in message(moved_out)
    assert admin.get(f"{ROOT}/{east}").json()["aggregate"]["hosts"] == ["h1"]
    kept = admin.put(f"{ROOT}/{east}", json={"aggregate": {"availability_zone": "east"}})
    assert kept.status_code == 200
    assert add(admin, make(admin, "n", "nova"), "h2").status_code == 200


def test_zones_are_listed_for_everybody(admin: TestClient, engine: Engine) -> None:
    add(admin, make(admin, "e", "east"), "h1")
    listed = admin.get(ZONES, headers=acting_as("reader")).json()
    assert listed == {
        "availabilityZoneInfo": [
            {"zoneName": "east", "zoneState": {"available": True}, "hosts": None},
            {"zoneName": "nova", "zoneState": {"available": True}, "hosts": None},
        ]
    }
    with transaction(engine) as session:
        host = session.get(Host, "h1")
        assert host is not None
        host.disabled = True
        session.add(host)
    states = {
        zone["zoneName"]: zone["zoneState"]["available"]
        for zone in admin.get(ZONES).json()["availabilityZoneInfo"]
    }
    assert states == {"nova": True, "east": False}


def test_the_zone_detail_shows_hosts_and_their_services(admin: TestClient) -> None:
    zones = {z["zoneName"]: z for z in admin.get(f"{ZONES}/detail").json()["availabilityZoneInfo"]}
    assert zones.keys() == {"internal", "nova"}
    assert zones["internal"]["hosts"]["control"].keys() == {"nova-conductor", "nova-scheduler"}
    assert zones["nova"]["hosts"].keys() == {"h1", "h2"}
    compute = zones["nova"]["hosts"]["h1"]["nova-compute"]
    assert compute.keys() == {"available", "active", "updated_at"}
    assert (compute["available"], compute["active"]) == (True, True)

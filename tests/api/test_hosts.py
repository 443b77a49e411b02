"""Compute services and hypervisors over HTTP."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any
from uuid import NAMESPACE_DNS, uuid5

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Engine

from db.groups import Aggregate, AggregateHost
from db.hosts import Claim, Host
from db.servers import Server
from db.session import now, reading, transaction
from tests.conftest import acting_as

SERVICES = "/compute/v2.1/os-services"
HYPERVISORS = "/compute/v2.1/os-hypervisors"


def fixed(name: str) -> str:
    """A UUID that is the same in every run, so that parallel workers name their tests alike."""
    return str(uuid5(NAMESPACE_DNS, name))


IDS = {name: (fixed(name), fixed(f"service-{name}")) for name in ("h1", "h2", "h3")}
"""Host → (hypervisor's id, service's id)."""
USAGE = {
    "vcpus", "memory_mb", "local_gb", "vcpus_used", "memory_mb_used", "local_gb_used", "free_ram_mb",
    "free_disk_gb", "current_workload", "running_vms", "disk_available_least",
}  # fmt: skip


def at(version: str) -> dict[str, str]:
    return {"OpenStack-API-Version": f"compute {version}"}


@pytest.fixture
def admin(client: TestClient) -> TestClient:
    client.headers["X-Auth-Token"] = "admin"
    return client


@pytest.fixture(autouse=True)
def hosts(engine: Engine) -> None:
    """h1 is up, h2 fell silent, h3 never reported."""
    seen = {"h1": now(), "h2": now() - timedelta(hours=1), "h3": None}
    with transaction(engine) as session:
        for name, (uuid, service_id) in IDS.items():
            session.add(
                Host(
                    name=name, uuid=uuid, service_id=service_id, reported_at=seen[name], vcpus=8,
                    ram_mb=16384, disk_gb=100, hypervisor_type="QEMU", hypervisor_version=9000000,
                    hypervisor_hostname=f"{name}.example", host_ip="10.0.0.1", cpu_model="EPYC",
                )
            )  # fmt: skip


def serve(engine: Engine, host: str, name: str = "s") -> str:
    with transaction(engine) as session:
        server = Server(project_id="p", user_id="u", name=name, host=host)
        session.add(server)
        session.flush()
        session.add(
            Claim(
                server_id=server.id, host=host, operation_id="o", epoch=1, vcpus=2, ram_mb=1024, disk_gb=10
            )
        )  # fmt: skip
        return server.id


def services(admin: TestClient, query: str = "", version: str = "2.53") -> dict[str, Any]:
    answer = admin.get(f"{SERVICES}{query}", headers=at(version)).json()["services"]
    return {f"{s['binary']}@{s['host']}": s for s in answer}


# --- services


def test_each_host_is_a_compute_service_and_the_control_plane_two_more(admin: TestClient) -> None:
    found = services(admin)
    assert found.keys() == {
        "nova-compute@h1", "nova-compute@h2", "nova-compute@h3",
        "nova-conductor@control", "nova-scheduler@control",
    }  # fmt: skip
    assert {name: s["state"] for name, s in found.items()} == {
        "nova-compute@h1": "up", "nova-compute@h2": "down", "nova-compute@h3": "down",
        "nova-conductor@control": "up", "nova-scheduler@control": "up",
    }  # fmt: skip
    first = found["nova-compute@h1"]
    assert first == {
        "id": IDS["h1"][1], "binary": "nova-compute", "host": "h1", "zone": "nova",
        "status": "enabled", "state": "up", "disabled_reason": None, "forced_down": False,
        "updated_at": first["updated_at"],
    }  # fmt: skip
    assert found["nova-scheduler@control"]["zone"] == "internal"
    assert found["nova-compute@h3"]["updated_at"] is None


def test_services_are_filtered(admin: TestClient) -> None:
    assert services(admin, "?host=h1").keys() == {"nova-compute@h1"}
    assert services(admin, "?binary=nova-scheduler").keys() == {"nova-scheduler@control"}
    assert services(admin, "?binary=nova-compute&host=h9") == {}
    assert admin.get(f"{SERVICES}?a=b", headers=at("2.74")).status_code == 200
    assert admin.get(f"{SERVICES}?a=b", headers=at("2.75")).status_code == 400


def test_ids_are_numbers_first_and_uuids_later(admin: TestClient) -> None:
    old = services(admin, version="2.52")["nova-compute@h1"]
    assert isinstance(old["id"], int)
    assert services(admin, version="2.1")["nova-compute@h1"].keys() == old.keys() - {"forced_down"}
    assert services(admin, version="2.52")["nova-compute@h1"]["id"] == old["id"]
    numbers = {s["id"] for s in services(admin, version="2.52").values()}
    assert len(numbers) == 5


def test_a_service_is_changed_by_uuid(admin: TestClient) -> None:
    url = f"{SERVICES}/{IDS['h1'][1]}"
    body = {"status": "disabled", "disabled_reason": "new disks"}
    shown = admin.put(url, json=body, headers=at("2.53")).json()["service"]
    assert (shown["status"], shown["disabled_reason"], shown["state"]) == (
        "disabled", "new disks", "up",
    )  # fmt: skip
    assert services(admin)["nova-compute@h1"] == shown
    down = admin.put(url, json={"forced_down": True}, headers=at("2.53")).json()["service"]
    assert (down["forced_down"], down["state"], down["status"]) == (True, "down", "disabled")
    up = admin.put(url, json={"status": "enabled", "forced_down": "false"}, headers=at("2.53"))
    assert up.json()["service"]["disabled_reason"] is None
    assert up.json()["service"]["state"] == "up"


@pytest.mark.parametrize(
    ("ref", "body", "status"),
    [
        ("enable", {"status": "enabled"}, 400),
        (fixed("nobody"), {"status": "enabled"}, 404),
        (IDS["h1"][1], {}, 400),
        (IDS["h1"][1], {"disabled_reason": "x"}, 400),
        (IDS["h1"][1], {"status": "enabled", "disabled_reason": "x"}, 400),
        (IDS["h1"][1], {"status": "broken"}, 400),
        (IDS["h1"][1], {"status": "disabled", "disabled_reason": "x" * 256}, 400),
        (IDS["h1"][1], {"forced_down": "perhaps"}, 400),
        (IDS["h1"][1], {"host": "h1", "binary": "nova-compute"}, 400),
    ],
)
def test_a_change_by_uuid_that_is_refused(
    admin: TestClient, ref: str, body: dict[str, Any], status: int
) -> None:
    assert admin.put(f"{SERVICES}/{ref}", json=body, headers=at("2.53")).status_code == status


def test_control_services_cannot_be_changed(admin: TestClient) -> None:
    ref = services(admin)["nova-scheduler@control"]["id"]
    answer = admin.put(f"{SERVICES}/{ref}", json={"status": "disabled"}, headers=at("2.53"))
    assert answer.status_code == 400
    assert "Only nova-compute services can be updated." in answer.text


def test_a_service_is_changed_by_name_in_old_versions(admin: TestClient) -> None:
    name = {"host": "h1", "binary": "nova-compute"}
    off = admin.put(f"{SERVICES}/disable", json=name, headers=at("2.1"))
    assert off.json() == {"service": {**name, "status": "disabled"}}
    assert services(admin)["nova-compute@h1"]["status"] == "disabled"
    on = admin.put(f"{SERVICES}/enable", json=name, headers=at("2.52"))
    assert on.json() == {"service": {**name, "status": "enabled"}}
    why = {**name, "disabled_reason": "fire"}
    logged = admin.put(f"{SERVICES}/disable-log-reason", json=why, headers=at("2.1"))
    assert logged.json() == {"service": {**why, "status": "disabled"}}
    assert services(admin)["nova-compute@h1"]["disabled_reason"] == "fire"
    forced = {**name, "forced_down": True}
    down = admin.put(f"{SERVICES}/force-down", json=forced, headers=at("2.11"))
    assert down.json() == {"service": forced}
    assert services(admin)["nova-compute@h1"]["state"] == "down"


@pytest.mark.parametrize(
    ("action", "body", "version", "status"),
    [
        ("explode", {}, "2.1", 404),
        ("force-down", {}, "2.10", 404),
        ("force-down", {}, "2.11", 400),
        ("disable-log-reason", {}, "2.1", 400),
        ("disable", {"host": "h9"}, "2.1", 404),
        ("disable", {"binary": "nova-scheduler"}, "2.1", 400),
        ("disable", {"status": "disabled"}, "2.1", 400),
        ("disable", {"forced_down": True}, "2.10", 400),
    ],
)
def test_a_change_by_name_that_is_refused(
    admin: TestClient, action: str, body: dict[str, Any], version: str, status: int
) -> None:
    given = {"host": "h1", "binary": "nova-compute", **body}
    answer = admin.put(f"{SERVICES}/{action}", json=given, headers=at(version))
    assert answer.status_code == status


def test_an_empty_host_can_be_deleted_and_leaves_its_aggregates(
    admin: TestClient, engine: Engine
) -> None:
    with transaction(engine) as session:
        aggregate = Aggregate(name="a")
        session.add(aggregate)
        session.flush()
        session.add(AggregateHost(aggregate_id=aggregate.id, host="h1"))
    url = f"{SERVICES}/{IDS['h1'][1]}"
    answer = admin.delete(url, headers=at("2.53"))
    assert (answer.status_code, answer.content) == (204, b"")
    assert admin.delete(url, headers=at("2.53")).status_code == 404
    assert admin.delete(f"{SERVICES}/5", headers=at("2.53")).status_code == 400
    assert "nova-compute@h1" not in services(admin)
    with reading(engine) as session:
        assert session.get(Host, "h1") is None
    assert admin.get("/compute/v2.1/os-aggregates").json()["aggregates"][0]["hosts"] == []


def test_a_host_with_servers_is_not_deleted(admin: TestClient, engine: Engine) -> None:
    serve(engine, "h1")
    number = services(admin, version="2.1")["nova-compute@h1"]["id"]
    answer = admin.delete(f"{SERVICES}/{number}", headers=at("2.1"))
    assert answer.status_code == 409
    assert "is hosting instances" in answer.text


def test_only_admins(client: TestClient) -> None:
    for url in (SERVICES, HYPERVISORS, f"{HYPERVISORS}/statistics"):
        assert client.get(url).status_code == 403
    body = {"host": "h1", "binary": "nova-compute"}
    assert client.put(f"{SERVICES}/disable", json=body).status_code == 403


# --- hypervisors


def test_the_brief_list(admin: TestClient) -> None:
    listed = admin.get(HYPERVISORS, headers=at("2.53")).json()["hypervisors"]
    assert listed[0] == {
        "id": IDS["h1"][0], "hypervisor_hostname": "h1.example", "state": "up", "status": "enabled",
    }  # fmt: skip
    assert [h["state"] for h in listed] == ["up", "down", "down"]
    old = admin.get(HYPERVISORS, headers=at("2.52")).json()["hypervisors"][0]
    assert isinstance(old["id"], int)


def test_use_is_what_is_claimed(admin: TestClient, engine: Engine) -> None:
    serve(engine, "h1")
    serve(engine, "h1")
    shown = admin.get(f"{HYPERVISORS}/{IDS['h1'][0]}", headers=at("2.87")).json()["hypervisor"]
    assert {name: shown[name] for name in USAGE} == {
        "vcpus": 8, "memory_mb": 16384, "local_gb": 100, "vcpus_used": 4,
        "memory_mb_used": 2048 + 512, "local_gb_used": 20, "free_ram_mb": 16384 - 2048 - 512,
        "free_disk_gb": 80, "current_workload": 2, "running_vms": 2, "disk_available_least": 80,
    }  # fmt: skip


@pytest.mark.parametrize("version", ["2.1", "2.27", "2.28", "2.53", "2.87", "2.88", "2.96"])
def test_the_detail_of_a_version(admin: TestClient, version: str) -> None:
    shown = admin.get(f"{HYPERVISORS}/detail", headers=at(version)).json()["hypervisors"][0]
    modern = float(version[2:]) >= 88
    expected = {
        "id", "hypervisor_hostname", "state", "status", "hypervisor_type", "hypervisor_version",
        "host_ip", "service",
    }  # fmt: skip
    expected |= {"uptime"} if modern else USAGE | {"cpu_info"}
    assert shown.keys() == expected
    if not modern:
        cpu = shown["cpu_info"]
        parsed = cpu if float(version[2:]) >= 28 else json.loads(cpu)
        assert parsed == {"arch": "x86_64", "model": "EPYC"}
    assert shown["service"].keys() == {"id", "host", "disabled_reason"}


def test_servers_are_shown_when_asked_for(admin: TestClient, engine: Engine) -> None:
    server = serve(engine, "h1", "web")
    url = f"{HYPERVISORS}?with_servers=true"
    for version, empty in (("2.53", None), ("2.74", None), ("2.75", [])):
        listed = admin.get(url, headers=at(version)).json()["hypervisors"]
        assert listed[0]["servers"] == [{"name": "web", "uuid": server}]
        assert listed[1].get("servers") == empty
    one = f"{HYPERVISORS}/{IDS['h1'][0]}?with_servers=1"
    assert admin.get(one, headers=at("2.53")).json()["hypervisor"]["servers"][0]["name"] == "web"
    assert "servers" not in admin.get(HYPERVISORS, headers=at("2.96")).json()["hypervisors"][0]
    assert admin.get(f"{HYPERVISORS}?with_servers=so", headers=at("2.53")).status_code == 400


def test_pages_of_hypervisors(admin: TestClient) -> None:
    assert len(admin.get(f"{HYPERVISORS}?limit=1", headers=at("2.32")).json()["hypervisors"]) == 3
    for version in ("2.33", "2.96"):
        for path in (HYPERVISORS, f"{HYPERVISORS}/detail"):
            names, url = [], f"{path}?limit=2"
            for _ in range(3):
                answer = admin.get(url, headers=at(version)).json()
                names += [h["hypervisor_hostname"][:2] for h in answer["hypervisors"]]
                if "hypervisors_links" not in answer:
                    break
                url = answer["hypervisors_links"][0]["href"].removeprefix("http://testserver")
            assert names == ["h1", "h2", "h3"]
    assert admin.get(f"{HYPERVISORS}?marker=9", headers=at("2.33")).status_code == 400


def test_a_host_name_pattern_takes_the_place_of_pages(admin: TestClient) -> None:
    query = f"{HYPERVISORS}?hypervisor_hostname_pattern="
    found = admin.get(f"{query}h2", headers=at("2.53")).json()
    assert [h["hypervisor_hostname"] for h in found["hypervisors"]] == ["h2.example"]
    assert admin.get(f"{query}zz", headers=at("2.53")).status_code == 404
    assert admin.get(f"{query}h&limit=1", headers=at("2.53")).status_code == 400
    assert admin.get(f"{HYPERVISORS}?a=b", headers=at("2.53")).status_code == 400
    assert admin.get(f"{HYPERVISORS}?a=b", headers=at("2.52")).status_code == 200


def test_search_and_servers_are_paths_in_old_versions(admin: TestClient, engine: Engine) -> None:
    serve(engine, "h1", "web")
    found = admin.get(f"{HYPERVISORS}/h1/search", headers=at("2.52")).json()["hypervisors"]
    assert [h["hypervisor_hostname"] for h in found] == ["h1.example"]
    listed = admin.get(f"{HYPERVISORS}/h/servers", headers=at("2.52")).json()["hypervisors"]
    assert [len(h.get("servers", [])) for h in listed] == [1, 0, 0]
    assert admin.get(f"{HYPERVISORS}/zz/search", headers=at("2.52")).status_code == 404
    assert admin.get(f"{HYPERVISORS}/h1/search", headers=at("2.53")).status_code == 404


def test_statistics_sum_the_enabled_hosts_until_their_end(
    admin: TestClient, engine: Engine
) -> None:
    serve(engine, "h1")
    with transaction(engine) as session:
        host = session.get(Host, "h3")
        assert host is not None
        host.disabled = True
        session.add(host)
    url = f"{HYPERVISORS}/statistics"
    stats = admin.get(url, headers=at("2.87")).json()["hypervisor_statistics"]
    assert stats.keys() == USAGE | {"count"}
    assert (stats["count"], stats["vcpus"], stats["vcpus_used"]) == (2, 16, 2)
    assert admin.get(url, headers=at("2.88")).status_code == 404


@pytest.mark.parametrize(
    ("ref", "version", "status"),
    [
        ("5", "2.53", 400),
        (fixed("nobody"), "2.53", 404),
        ("5", "2.52", 404),
        ("x", "2.52", 404),
        (IDS["h1"][0], "2.52", 404),
    ],
)
def test_an_id_that_is_none_or_unknown(
    admin: TestClient, ref: str, version: str, status: int
) -> None:
    assert admin.get(f"{HYPERVISORS}/{ref}", headers=at(version)).status_code == status
    assert admin.get(f"{HYPERVISORS}/{ref}/uptime", headers=at(version)).status_code == status


def test_uptime_needs_a_host_that_is_up_and_says_it(admin: TestClient, engine: Engine) -> None:
    assert admin.get(f"{HYPERVISORS}/{IDS['h2'][0]}/uptime", headers=at("2.53")).status_code == 400
    url = f"{HYPERVISORS}/{IDS['h1'][0]}/uptime"
    assert admin.get(url, headers=at("2.53")).status_code == 501
    with transaction(engine) as session:
        host = session.get(Host, "h1")
        assert host is not None
        host.metrics = {"uptime": "up 3 days"}
        session.add(host)
    assert admin.get(url, headers=at("2.53")).json()["hypervisor"]["uptime"] == "up 3 days"
    assert admin.get(url, headers=at("2.88")).status_code == 404
    shown = admin.get(f"{HYPERVISORS}/{IDS['h1'][0]}", headers=at("2.88")).json()["hypervisor"]
    assert shown["uptime"] == "up 3 days"


def test_os_hosts_is_not_offered(admin: TestClient) -> None:
    assert admin.get("/compute/v2.1/os-hosts", headers=acting_as("admin")).status_code == 404

"""Servers over HTTP: create, show, update, delete."""

from __future__ import annotations

import base64
import hashlib
from typing import Any

import pytest
from sqlmodel import col, select

from api.context import Cloud
from db.groups import ServerGroup
from db.network import FixedIp, Network, Port, Subnet
from db.operations import Operation
from db.quotas import set_limit
from db.servers import Server
from db.session import reading, transaction
from tests.api.conftest import IMAGE, NET, SERVERS, ServerWorld, at
from tests.conftest import RecordingLauncher

BASE_FIELDS = {
    "id", "name", "status", "tenant_id", "user_id", "metadata", "hostId", "image", "flavor",
    "created", "updated", "addresses", "accessIPv4", "accessIPv6", "links", "OS-DCF:diskConfig",
    "progress", "OS-EXT-AZ:availability_zone", "config_drive", "key_name",
    "OS-SRV-USG:launched_at", "OS-SRV-USG:terminated_at", "security_groups",
    "OS-EXT-STS:task_state", "OS-EXT-STS:vm_state", "OS-EXT-STS:power_state",
    "os-extended-volumes:volumes_attached",
}  # fmt: skip
ADMIN_FIELDS = {
    "OS-EXT-SRV-ATTR:host", "OS-EXT-SRV-ATTR:hypervisor_hostname", "OS-EXT-SRV-ATTR:instance_name",
}  # fmt: skip
ADMIN_FIELDS_2_3 = {
    f"OS-EXT-SRV-ATTR:{name}"
    for name in (
        "hostname", "kernel_id", "launch_index", "ramdisk_id", "reservation_id", "root_device_name",
        "user_data",
    )
}  # fmt: skip
LATER = {
    "2.26": {"locked", "description", "tags"},
    "2.63": {"trusted_image_certificates"},
    "2.73": {"server_groups", "locked_reason"},
    "2.90": {"OS-EXT-SRV-ATTR:hostname"},
    "2.96": {"pinned_availability_zone"},
}


def row(world: ServerWorld, server_id: str) -> Server:
    with reading(world.engine) as session:
        server = session.get(Server, server_id)
        assert server is not None
        return server


def test_create_answers_202_with_id_links_password_and_location(world: ServerWorld) -> None:
    answer = world.post()
    assert answer.status_code == 202
    server = answer.json()["server"]
    assert sorted(server) == ["OS-DCF:diskConfig", "adminPass", "id", "links", "security_groups"]
    assert server["OS-DCF:diskConfig"] == "MANUAL"
    assert server["security_groups"] == [{"name": "default"}]
    assert len(server["adminPass"]) == 12
    assert answer.headers["Location"] == f"http://testserver{SERVERS}/{server['id']}"
    assert {link["rel"] for link in server["links"]} == {"self", "bookmark"}


def test_create_starts_one_create_with_the_request_id(
    world: ServerWorld, launcher: RecordingLauncher
) -> None:
    answer = world.post()
    made = answer.json()["server"]["id"]
    assert launcher.started == [("create", made, {})]
    with reading(world.engine) as session:
        operation = session.exec(select(Operation)).one()
    assert operation.request_id == answer.headers["x-openstack-request-id"]


def test_create_keeps_everything_that_was_asked(world: ServerWorld, cloud: Cloud) -> None:
    user_data = base64.b64encode(b"#cloud-config\n").decode()
    made = world.create(
        "2.96",
        name="Web Server_1",
        key_name="mine",
        user_data=user_data,
        metadata={"role": "web"},
        config_drive="True",
        adminPass="hunter2",
        accessIPv4="192.0.2.7",
        accessIPv6="2001:DB8::7",
        description="the front",
        tags=["b", "a"],
        **{"OS-DCF:diskConfig": "AUTO"},
    )
    shown = world.show(made, "2.96", "admin")
    assert shown["key_name"] == "mine"
    assert shown["metadata"] == {"role": "web"}
    assert shown["config_drive"] == "True"
    assert (shown["accessIPv4"], shown["accessIPv6"]) == ("192.0.2.7", "2001:db8::7")
    assert (shown["description"], shown["tags"]) == ("the front", ["a", "b"])
    assert shown["OS-DCF:diskConfig"] == "AUTO"
    assert shown["OS-EXT-SRV-ATTR:hostname"] == "web-server-1"
    assert shown["OS-EXT-SRV-ATTR:user_data"] == user_data
    assert shown["status"] == "BUILD"
    kept = row(world, made)
    assert kept.public_key == "ssh-ed25519 AAAA"
    assert "hunter2" not in (kept.admin_pass_sealed or "")
    assert cloud.sealer.unseal(kept.admin_pass_sealed or "") == b"hunter2"
    assert kept.flavor["id"] == "small"
    assert kept.image["checksum"] == "ab" * 64
    assert (kept.vcpus, kept.ram_mb, kept.disk_gb) == (1, 256, 2)


def test_create_allocates_one_address_on_the_only_network(world: ServerWorld) -> None:
    made = world.create()
    addresses = world.show(made)["addresses"]
    assert list(addresses) == ["blue"]
    assert addresses["blue"][0]["addr"].startswith("10.0.1.")
    with reading(world.engine) as session:
        port = session.exec(select(Port).where(Port.device_id == made)).one()
    assert (port.project_id, port.device_owner) == ("project-demo", "compute:nova")


def test_create_takes_a_fixed_address_and_a_device_tag(world: ServerWorld) -> None:
    made = world.create("2.42", networks=[{"uuid": NET, "fixed_ip": "10.0.1.77", "tag": "front"}])
    assert world.show(made)["addresses"]["blue"][0]["addr"] == "10.0.1.77"
    cards = world.client.get(f"{SERVERS}/{made}/os-interface", headers=at("2.70")).json()
    assert [card["tag"] for card in cards["interfaceAttachments"]] == ["front"]


def test_create_without_a_network_by_word(world: ServerWorld) -> None:
    assert world.show(world.create("2.37", networks="none"))["addresses"] == {}


def test_create_with_networks_auto_takes_the_only_one(world: ServerWorld) -> None:
    assert list(world.show(world.create("2.37", networks="auto"))["addresses"]) == ["blue"]


def test_a_refused_create_leaves_no_row_port_or_address(world: ServerWorld) -> None:
    world.create(networks=[{"uuid": NET, "fixed_ip": "10.0.1.50"}])
    answer = world.post(networks=[{"uuid": NET}, {"uuid": NET, "fixed_ip": "10.0.1.50"}])
    assert answer.status_code == 400
    with reading(world.engine) as session:
        assert len(session.exec(select(Server)).all()) == 1
        assert len(session.exec(select(Port)).all()) == 1
        assert len(session.exec(select(FixedIp)).all()) == 1


@pytest.mark.parametrize(
    "given", [{"min_count": 3}, {"max_count": "3"}, {"min_count": 2, "max_count": 3}]
)
def test_multi_create_makes_numbered_servers_in_one_reservation(
    world: ServerWorld, given: dict[str, Any], launcher: RecordingLauncher
) -> None:
    world.create(**given)
    with reading(world.engine) as session:
        made = session.exec(select(Server).order_by(col(Server.launch_index))).all()
    assert [s.name for s in made] == ["web-1", "web-2", "web-3"]
    assert [s.hostname for s in made] == ["web-1", "web-2", "web-3"]
    assert [s.launch_index for s in made] == [0, 1, 2]
    assert len({s.reservation_id for s in made}) == 1
    assert len(launcher.started) == 3


def test_multi_create_makes_as_many_as_the_quota_allows(world: ServerWorld) -> None:
    with transaction(world.engine) as session:
        set_limit(session, "project-demo", "instances", 4)
    world.create()
    world.create(name="many", min_count=2, max_count=9)
    assert len(world.names()) == 4
    answer = world.post(min_count=1, max_count=2)
    assert answer.status_code == 403
    assert "Quota exceeded for instances" in answer.json()["forbidden"]["message"]


def test_a_reservation_id_is_the_answer_where_it_was_asked_for(world: ServerWorld) -> None:
    answer = world.post(return_reservation_id=True)
    assert answer.status_code == 202
    assert list(answer.json()) == ["reservation_id"]
    assert "Location" not in answer.headers
    assert len(world.names(f"reservation_id={answer.json()['reservation_id']}")) == 1


def test_an_idempotency_key_gives_the_first_answer_again(
    world: ServerWorld, launcher: RecordingLauncher
) -> None:
    body = {"server": {"name": "once", "flavorRef": "small", "imageRef": IMAGE}}
    headers = {**at(), "Idempotency-Key": "order-17"}
    first = world.client.post(SERVERS, json=body, headers=headers)
    again = world.client.post(SERVERS, json=body, headers=headers)
    assert (first.status_code, again.status_code) == (202, 202)
    assert first.json() == again.json()
    assert first.headers["Location"] == again.headers["Location"]
    assert len(launcher.started) == 1
    other = {"server": {**body["server"], "name": "twice"}}
    clash = world.client.post(SERVERS, json=other, headers=headers)
    assert clash.status_code == 422
    foreign = world.client.post(
        SERVERS, json=body, headers={**at(who="alt"), "Idempotency-Key": "order-17"}
    )
    assert foreign.status_code == 202
    assert foreign.json() != first.json()


def test_scheduler_hints_are_kept_and_the_group_is_joined(world: ServerWorld) -> None:
    with transaction(world.engine) as session:
        group = ServerGroup(
            project_id="project-demo", user_id="user-member", name="g", policy="anti-affinity"
        )
        session.add(group)
        session.flush()
        group_id = group.id
    body = {
        "server": {"name": "a", "flavorRef": "small", "imageRef": IMAGE},
        "OS-SCH-HNT:scheduler_hints": {"group": group_id, "query": '[">=", "$free_ram_mb", 1]'},
    }
    answer = world.client.post(SERVERS, json=body, headers=at())
    assert answer.status_code == 202
    kept = row(world, answer.json()["server"]["id"])
    assert kept.group_id == group_id
    assert kept.scheduler_hints["query"] == '[">=", "$free_ram_mb", 1]'
    assert world.show(kept.id, "2.71")["server_groups"] == [group_id]


def test_an_administrator_may_ask_for_a_host(
    world: ServerWorld, launcher: RecordingLauncher
) -> None:
    with transaction(world.engine) as session:
        network = session.get(Network, NET)
        assert network is not None
        network.shared = True
    made = world.create("2.74", "admin", host="node-2", hypervisor_hostname="node-2.cloud")
    wanted = {"host": "node-2", "hypervisor_hostname": "node-2.cloud"}
    assert launcher.started == [("create", made, wanted)]
    forced = world.create("2.96", "admin", availability_zone="west:node-2:node-2.cloud")
    assert row(world, forced).availability_zone == "west:node-2:node-2.cloud"
    assert world.show(forced, "2.96", "admin")["pinned_availability_zone"] == "west"


def test_a_blank_disk_of_the_flavors_size_and_the_image_disk_are_accepted(
    world: ServerWorld,
) -> None:
    made = world.create(
        flavorRef="rich",
        block_device_mapping_v2=[
            {"boot_index": 0, "uuid": IMAGE, "source_type": "image", "destination_type": "local"},
            {"boot_index": -1, "source_type": "blank", "destination_type": "local", "volume_size": 5},
            {"boot_index": -1, "source_type": "blank", "guest_format": "swap", "volume_size": 512},
        ],
    )  # fmt: skip
    assert world.show(made)["status"] == "BUILD"


@pytest.mark.parametrize(
    "version", ["2.1", "2.3", "2.26", "2.47", "2.63", "2.73", "2.79", "2.90", "2.96"]
)
@pytest.mark.parametrize("who", ["member", "admin"])
def test_show_has_exactly_the_fields_of_its_version(
    world: ServerWorld, version: str, who: str
) -> None:
    made = world.create()
    world.activate(made)
    number = int(version.split(".")[1])
    expected = set(BASE_FIELDS)
    for since, names in LATER.items():
        if number >= int(since.split(".")[1]):
            expected |= names
    if who == "admin":
        expected |= ADMIN_FIELDS
        expected |= ADMIN_FIELDS_2_3 if number >= 3 else set()
        expected |= {"host_status"} if number >= 16 else set()
    shown = world.show(made, version, who)
    assert set(shown) == expected
    in_list = world.client.get(f"{SERVERS}/detail", headers=at(version, who)).json()["servers"]
    assert [set(s) for s in in_list] == ([expected - {"server_groups"}] if who == "member" else [])


def test_the_flavor_is_a_link_until_2_46_and_embedded_from_2_47(world: ServerWorld) -> None:
    made = world.create()
    assert world.show(made, "2.46")["flavor"]["id"] == "small"
    assert world.show(made, "2.47")["flavor"] == {
        "vcpus": 1, "ram": 256, "disk": 2, "ephemeral": 0, "swap": 0, "original_name": "m1.small",
        "extra_specs": {"hw:cpu_policy": "shared"},
    }  # fmt: skip


def test_where_a_server_runs_shows_as_zone_and_hashed_host(world: ServerWorld) -> None:
    made = world.create()
    assert world.show(made)["hostId"] == ""
    world.activate(made, "node-2")
    shown = world.show(made, "2.16", "admin")
    assert shown["hostId"] == hashlib.sha224(b"project-demonode-2").hexdigest()
    assert shown["OS-EXT-AZ:availability_zone"] == "west"
    assert shown["OS-EXT-SRV-ATTR:hypervisor_hostname"] == "node-2.cloud"
    assert shown["host_status"] == "UP"


def test_a_failed_server_shows_its_newest_fault_with_details_for_administrators_only(
    world: ServerWorld,
) -> None:
    made = world.create()
    world.fail(made, "first")
    world.fail(made, "No valid host was found.", "trace")
    shown = world.show(made)
    assert shown["status"] == "ERROR"
    assert "progress" not in shown
    assert shown["fault"]["message"] == "No valid host was found."
    assert "details" not in shown["fault"]
    assert world.show(made, "2.1", "admin")["fault"]["details"] == "trace"
    listed = world.client.get(f"{SERVERS}/detail", headers=at()).json()["servers"][0]
    assert listed["fault"] == shown["fault"]


def test_update_changes_name_addresses_disk_config_and_description(world: ServerWorld) -> None:
    made = world.create()
    body = {
        "name": "db", "accessIPv4": "192.0.2.9", "OS-DCF:diskConfig": "AUTO", "description": "d",
        "hostname": "db-1",
    }  # fmt: skip
    answer = world.client.put(f"{SERVERS}/{made}", json={"server": body}, headers=at("2.90"))
    assert answer.status_code == 200
    shown = answer.json()["server"]
    assert (shown["name"], shown["accessIPv4"]) == ("db", "192.0.2.9")
    assert (shown["OS-DCF:diskConfig"], shown["description"]) == ("AUTO", "d")
    assert shown["OS-EXT-SRV-ATTR:hostname"] == "db-1"
    body = {"description": None, "accessIPv4": ""}
    world.client.put(f"{SERVERS}/{made}", json={"server": body}, headers=at("2.90"))
    after = world.show(made, "2.90")
    assert (after["description"], after["accessIPv4"], after["name"]) == (None, "", "db")


def test_update_answers_briefly_before_2_75(world: ServerWorld) -> None:
    made = world.create()
    brief = world.client.put(
        f"{SERVERS}/{made}", json={"server": {"name": "a"}}, headers=at("2.74")
    )
    full = world.client.put(f"{SERVERS}/{made}", json={"server": {"name": "a"}}, headers=at("2.75"))
    missing = set(full.json()["server"]) - set(brief.json()["server"])
    assert missing >= {"key_name", "security_groups", "OS-EXT-STS:vm_state", "config_drive"}
    assert "OS-EXT-IPS:type" not in brief.json()["server"]["addresses"]["blue"][0]
    assert full.json()["server"] == world.show(made, "2.75")


@pytest.mark.parametrize(
    "fields",
    [
        {"name": ""}, {"name": " a"}, {"name": "x" * 256}, {"accessIPv4": "nope"},
        {"accessIPv6": "192.0.2.1"}, {"OS-DCF:diskConfig": "MAYBE"}, {"description": "x"},
        {"flavorRef": "2"},
    ],
)  # fmt: skip
def test_update_refuses_what_cannot_be(world: ServerWorld, fields: dict[str, str]) -> None:
    made = world.create()
    answer = world.client.put(f"{SERVERS}/{made}", json={"server": fields}, headers=at())
    assert answer.status_code == 400
    assert answer.json()["badRequest"]["code"] == 400


@pytest.mark.parametrize("state", ["building", "active", "error", "stopped", "paused", "suspended"])
def test_delete_is_accepted_in_every_state(
    world: ServerWorld, launcher: RecordingLauncher, state: str
) -> None:
    made = world.create()
    world.put(made, vm_state=state, host="node-that-died")
    answer = world.client.delete(f"{SERVERS}/{made}", headers=at())
    assert (answer.status_code, answer.content) == (204, b"")
    assert launcher.started[-1] == ("delete", made, {})


def test_a_deleted_server_is_not_found(world: ServerWorld) -> None:
    made = world.create()
    world.bury(made)
    for method in ("get", "delete"):
        answer = getattr(world.client, method)(f"{SERVERS}/{made}", headers=at())
        assert answer.status_code == 404
        assert answer.json()["itemNotFound"]["message"] == f"Instance {made} could not be found."


def test_two_projects_may_use_the_same_range_of_addresses(
    world: ServerWorld,
) -> None:
    with transaction(world.engine) as session:
        for subnet in session.exec(select(Subnet)):
            subnet.cidr, subnet.gateway_ip = "10.9.0.0/24", "10.9.0.1"
            subnet.allocation_pools = [{"start": "10.9.0.5", "end": "10.9.0.5"}]
            session.add(subnet)
    mine, theirs = world.create(), world.create(who="alt")
    assert world.show(mine)["addresses"]["blue"][0]["addr"] == "10.9.0.5"
    assert world.show(theirs, who="alt")["addresses"]["red"][0]["addr"] == "10.9.0.5"

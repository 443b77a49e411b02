"""Creates that are refused: every mistake a user can make is told at once, in Nova's words."""

from __future__ import annotations

from typing import Any

import pytest
from sqlmodel import select

from db.flavors import Flavor
from db.groups import ServerGroup
from db.images import Image
from db.network import Network, Port, SecurityGroup, Subnet
from db.quotas import set_limit
from db.servers import Server
from db.session import reading, transaction
from tests.api.conftest import (
    ALT_IMAGE,
    ALT_NET,
    BIG_IMAGE,
    IMAGE,
    NET,
    OTHER_NET,
    QUEUED_IMAGE,
    SERVERS,
    ServerWorld,
    at,
)
from tests.conftest import RecordingLauncher

NOWHERE = "99999999-0000-4000-8000-000000000009"
ROOT = {"boot_index": 0, "uuid": IMAGE, "source_type": "image", "destination_type": "local"}
BLANK = {"boot_index": -1, "source_type": "blank", "destination_type": "local"}

BAD_REQUESTS: list[tuple[str, dict[str, Any], str]] = [
    # version, fields, part of the message
    ("2.1", {"name": None}, "'name' is a required property"),
    ("2.1", {"name": ""}, "name"),
    ("2.1", {"name": "  "}, "name"),
    ("2.1", {"name": "a\x00b"}, "name"),
    ("2.1", {"name": "x" * 256}, "name"),
    ("2.1", {"name": 7}, "name"),
    ("2.1", {"unknown": 1}, "Additional properties are not allowed ('unknown' was unexpected)"),
    ("2.1", {"flavorRef": None}, "'flavorRef' is a required property"),
    ("2.1", {"flavorRef": "nosuch"}, "Flavor nosuch could not be found."),
    ("2.1", {"flavorRef": "secret"}, "Flavor secret could not be found."),
    ("2.1", {"flavorRef": "off"}, "Flavor off could not be found."),
    ("2.1", {"imageRef": None}, "Missing imageRef attribute"),
    ("2.1", {"imageRef": ""}, "Missing imageRef attribute"),
    ("2.1", {"imageRef": "cirros"}, "Invalid imageRef provided."),
    ("2.1", {"imageRef": NOWHERE}, "Can not find requested image"),
    ("2.1", {"imageRef": ALT_IMAGE}, "Can not find requested image"),
    ("2.1", {"imageRef": QUEUED_IMAGE}, f"Image {QUEUED_IMAGE} is not active."),
    ("2.1", {"imageRef": BIG_IMAGE}, "Flavor's memory is too small for requested image."),
    ("2.1", {"key_name": "nosuch"}, "Invalid key_name provided."),
    ("2.1", {"user_data": "not base64!"}, "base64"),
    ("2.1", {"user_data": "A" * 65540}, "user_data"),
    ("2.1", {"metadata": {"k": 1}}, "field/attribute k. Value: 1"),
    ("2.1", {"metadata": {"": "v"}}, "should match pattern"),
    ("2.1", {"metadata": {"k": "v" * 256}}, "at most 255"),
    ("2.1", {"metadata": ["k"]}, "metadata"),
    ("2.1", {"accessIPv4": "fe80::1"}, "ipv4"),
    ("2.1", {"accessIPv6": "nope"}, "ipv6"),
    ("2.1", {"OS-DCF:diskConfig": "SOMETIMES"}, "OS-DCF:diskConfig"),
    ("2.1", {"config_drive": "perhaps"}, "config_drive"),
    ("2.1", {"min_count": 0}, "min_count"),
    ("2.1", {"max_count": "many"}, "max_count"),
    ("2.1", {"min_count": 3, "max_count": 2}, "min_count must be <= max_count"),
    ("2.1", {"availability_zone": "east"}, "The requested availability zone is not available"),
    ("2.1", {"security_groups": [{"name": "nosuch"}]}, "Security group nosuch not found"),
    ("2.1", {"security_groups": ["default"]}, "Invalid input"),
    ("2.1", {"networks": [{"uuid": NOWHERE}]}, f"Network {NOWHERE} could not be found."),
    ("2.1", {"networks": [{"uuid": ALT_NET}]}, f"Network {ALT_NET} could not be found."),
    ("2.1", {"networks": [{"uuid": "blue"}]}, "'blue' is not a 'uuid'"),
    ("2.1", {"networks": [{"port": NOWHERE}]}, f"Port id {NOWHERE} could not be found."),
    ("2.1", {"networks": [{}]}, "Bad networks format"),
    ("2.1", {"networks": "auto"}, "networks"),
    ("2.1", {"networks": [{"uuid": NET, "fixed_ip": "10.0.9.1"}]}, "10.0.9.1"),
    ("2.1", {"networks": [{"uuid": NET, "tag": "a"}]}, "'tag' was unexpected"),
    ("2.1", {"networks": [{"uuid": NET, "fixed_ip": "10.0.1.9"}], "max_count": 2}, "fixed_ip"),
    ("2.1", {"networks": [{"port": NOWHERE}], "max_count": 2}, "different ports"),
    ("2.1", {"personality": [{"path": "/a", "contents": ""}]}, "personality"),
    ("2.1", {"block_device_mapping": [{"volume_id": NOWHERE}]}, "Volumes are not offered"),
    ("2.1", {"block_device_mapping_v2": [ROOT | {"destination_type": "volume"}]}, "Volumes"),
    ("2.1", {"block_device_mapping_v2": [ROOT | {"uuid": BIG_IMAGE}]}, "Volumes"),
    ("2.1", {"block_device_mapping_v2": [ROOT], "imageRef": None}, "Volumes"),
    ("2.1", {"block_device_mapping_v2": [BLANK]}, "Boot sequence"),
    ("2.1", {"block_device_mapping_v2": [ROOT, BLANK | {"volume_size": 1}]}, "Ephemeral disks"),
    ("2.1", {"description": "new"}, "'description' was unexpected"),
    ("2.19", {"description": "x" * 256}, "description"),
    ("2.37", {"networks": None}, "'networks' is a required property"),
    ("2.37", {"networks": "some"}, "networks"),
    ("2.37", {"networks": [{"uuid": NET, "tag": "a"}]}, "'tag' was unexpected"),
    ("2.52", {"tags": ["a", "a"]}, "non-unique"),
    ("2.52", {"tags": ["a/b"]}, "should match pattern"),
    ("2.52", {"tags": ["x" * 61]}, "at most 60 characters"),
    ("2.52", {"tags": [str(n) for n in range(51)]}, "tags"),
    ("2.57", {"personality": []}, "'personality' was unexpected"),
    ("2.63", {"trusted_image_certificates": ["c"]}, "certificates"),
    ("2.90", {"hostname": "a.b"}, "hostname"),
    ("2.90", {"hostname": "-a"}, "hostname"),
    ("2.94", {"hostname": "a..b"}, "hostname"),
    ("2.94", {"hostname": "a.b", "max_count": 2}, "hostname"),
]  # fmt: skip


def test_every_mistake_is_a_400_that_names_it_and_makes_nothing(
    world: ServerWorld, launcher: RecordingLauncher
) -> None:
    unlike = []
    for version, fields, words in BAD_REQUESTS:
        answer = world.post(version, **fields)
        if answer.status_code != 400 or words not in answer.json()["badRequest"]["message"]:
            unlike.append((version, fields, words, answer.text))
    assert unlike == []
    assert launcher.started == []
    with reading(world.engine) as session:
        assert session.exec(select(Server)).all() == []
        assert session.exec(select(Port)).all() == []


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b'"server"', b"{}", b'{"server": null}', b'{"server": []}',
     b'{"server": {}, "extra": 1}', b"\xff\xfe", b'{"server": ' + b"[" * 5000],
)  # fmt: skip
def test_a_body_that_is_none_is_a_400(world: ServerWorld, body: bytes) -> None:
    headers = {**at(), "Content-Type": "application/json"}
    answer = world.client.post(SERVERS, content=body, headers=headers)
    assert answer.status_code == 400
    assert answer.json()["badRequest"]["code"] == 400


def test_a_flavor_must_have_room_for_the_image(world: ServerWorld) -> None:
    with transaction(world.engine) as session:
        session.add(Flavor(flavor_id="wide", name="wide", vcpus=1, ram_mb=1024, disk_gb=2))
        image = session.get(Image, IMAGE)
        assert image is not None
        image.min_disk = 3
    small = world.post(flavorRef="wide", imageRef=BIG_IMAGE).json()["badRequest"]["message"]
    assert small == (
        "Flavor's disk is too small for requested image. "
        "Flavor disk is 2147483648 bytes, image is 5368709120 bytes."
    )
    least = world.post(flavorRef="wide").json()["badRequest"]["message"]
    assert least.startswith("Flavor's disk is smaller than the minimum size specified in image")
    assert world.post(flavorRef="diskless", imageRef=BIG_IMAGE).status_code == 202


@pytest.mark.parametrize(
    ("hints", "words"),
    [
        ({"group": NOWHERE}, f"Instance group {NOWHERE} could not be found."),
        ({"group": "name"}, "'name' is not a 'uuid'"),
        ({"same_host": "x"}, "uuid"),
        ({"different_host": [NOWHERE, 5]}, "valid string"),
        ({"query": "x" * 20000}, "too long"),
    ],
)
def test_hints_that_cannot_be_are_a_400(
    world: ServerWorld, hints: dict[str, Any], words: str
) -> None:
    answer = world.post(hints=hints)
    assert answer.status_code == 400
    assert words in answer.json()["badRequest"]["message"]


def test_another_projects_group_is_unknown_and_a_full_one_is_a_quota(world: ServerWorld) -> None:
    with transaction(world.engine) as session:
        mine = ServerGroup(project_id="project-demo", user_id="u", name="g", policy="affinity")
        theirs = ServerGroup(project_id="project-alt", user_id="u", name="g", policy="affinity")
        session.add_all([mine, theirs])
        set_limit(session, "project-demo", "server_group_members", 2)
        ids = mine.id, theirs.id
    assert world.post(hints={"group": ids[1]}).status_code == 400
    assert world.post(hints={"group": ids[0]}, max_count=3).status_code == 403
    assert world.post(hints={"group": ids[0]}, max_count=2).status_code == 202
    full = world.post(hints={"group": ids[0]})
    assert full.json()["forbidden"]["message"] == "Quota exceeded, too many servers in group"


@pytest.mark.parametrize(
    ("resource", "limit"), [("instances", 0), ("cores", 0), ("ram", 255), ("metadata_items", 1)]
)
def test_a_full_quota_is_a_403_that_names_it(world: ServerWorld, resource: str, limit: int) -> None:
    with transaction(world.engine) as session:
        set_limit(session, "project-demo", resource, limit)
    answer = world.post(metadata={"a": "1", "b": "2"})
    assert answer.status_code == 403
    assert resource.split("_", maxsplit=1)[0] in answer.json()["forbidden"]["message"]


def test_more_than_one_network_is_ambiguous(world: ServerWorld) -> None:
    with transaction(world.engine) as session:
        session.add(Network(id=OTHER_NET, project_id="project-demo", name="green", segment=1002))
        session.flush()
        session.add(Subnet(network_id=OTHER_NET, project_id="project-demo", cidr="10.2.0.0/24"))
    assert world.post().status_code == 409
    assert world.post("2.37", networks="auto").status_code == 409
    assert world.post(networks=[{"uuid": NET}]).status_code == 202


def test_no_network_at_all_is_no_card_in_old_versions_and_a_400_for_auto(
    world: ServerWorld,
) -> None:
    with transaction(world.engine) as session:
        for net in session.exec(select(Network)):
            net.project_id = "project-else"
    assert world.show(world.create())["addresses"] == {}
    answer = world.post("2.37", networks="auto")
    assert answer.status_code == 400
    assert "automatically allocate" in answer.json()["badRequest"]["message"]


def test_a_port_in_use_and_a_double_group_name_are_conflicts(world: ServerWorld) -> None:
    made = world.create()
    with transaction(world.engine) as session:
        port = session.exec(select(Port).where(Port.device_id == made)).one()
        for _ in range(2):
            session.add(SecurityGroup(project_id="project-demo", name="twin"))
    assert world.post(networks=[{"port": port.id}]).status_code == 409
    assert world.post(security_groups=[{"name": "twin"}]).status_code == 409


@pytest.mark.parametrize(
    ("version", "fields"),
    [
        ("2.1", {"availability_zone": "nova:node-1"}),
        ("2.74", {"host": "node-1"}),
        ("2.74", {"hypervisor_hostname": "node-1.cloud"}),
    ],
)
def test_only_an_administrator_may_choose_the_host(
    world: ServerWorld, version: str, fields: dict[str, str]
) -> None:
    assert world.post(version, **fields).status_code == 403


@pytest.mark.parametrize(
    ("version", "fields"),
    [
        ("2.1", {"availability_zone": "nova:node-9"}),
        ("2.1", {"availability_zone": "nova::node-9"}),
        ("2.1", {"availability_zone": "a:b:c:d"}),
        ("2.74", {"host": "node-9"}),
        ("2.74", {"hypervisor_hostname": "node-9.cloud"}),
    ],
)
def test_a_host_that_does_not_exist_is_a_400(
    world: ServerWorld, version: str, fields: dict[str, str]
) -> None:
    fields = fields | {"networks": "none"} if version > "2.37" else fields
    assert world.post(version, "admin", **fields).status_code == 400

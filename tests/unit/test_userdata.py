"""The documents a guest reads: metadata trees and config drive."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from domain.userdata import (
    OPENSTACK_VERSIONS,
    InstanceDocument,
    NicDocument,
    config_drive_files,
    ec2_tree,
    metadata_tree,
    network_data,
    openstack_tree,
)

KEY = "ssh-ed25519 AAAA me"
DHCP = NicDocument(
    port_id="11111111-aaaa-4aaa-8aaa-000000000001",
    network_id="net-1",
    mac="fa:16:3e:00:00:01",
    ip="10.0.0.5",
    cidr="10.0.0.0/24",
    mtu=1450,
    gateway_ip="10.0.0.1",
    dns_nameservers=("10.0.0.1",),
    tag="front",
)
STATIC = NicDocument(
    port_id="22222222-aaaa-4aaa-8aaa-000000000002",
    network_id="net-2",
    mac="fa:16:3e:00:00:02",
    ip="10.9.0.5",
    cidr="10.9.0.0/22",
    mtu=1400,
    gateway_ip="10.9.0.1",
    dns_nameservers=("10.9.0.53",),
    host_routes=(("192.168.7.0/24", "10.9.0.7"),),
    dhcp=False,
)
DOC = InstanceDocument(
    uuid="12345678-1234-4234-8234-123456789abc",
    hostname="web-1",
    name="Web 1",
    project_id="p",
    availability_zone="az1",
    launch_index=2,
    public_keys={"mine": KEY},
    meta={"role": "web"},
    user_data=b"#!/bin/sh\n\xff\x00binary",
    admin_pass="s3cret",
    nics=(DHCP, STATIC),
    random_seed=b"seed",
    instance_type="m1.tiny",
    reservation_id="r-1",
    security_groups=("default", "web"),
    password="sealed-by-guest",
)


def meta_data(version: str, doc: InstanceDocument = DOC) -> Any:
    return json.loads(openstack_tree(doc)[f"openstack/{version}/meta_data.json"])


def test_latest_meta_data_says_all() -> None:
    shown = meta_data("latest")
    assert shown["uuid"] == DOC.uuid
    assert (shown["name"], shown["hostname"]) == ("Web 1", "web-1")
    assert shown["launch_index"] == 2
    assert shown["meta"] == {"role": "web"}
    assert shown["public_keys"] == {"mine": KEY}
    assert shown["keys"] == [{"name": "mine", "type": "ssh", "data": KEY}]
    assert shown["project_id"] == "p"
    assert base64.b64decode(shown["random_seed"]) == b"seed"
    assert [d["tags"] for d in shown["devices"]] == [["front"]]


def test_older_versions_know_less() -> None:
    assert {"random_seed", "project_id", "devices"}.isdisjoint(meta_data("2012-08-10"))
    assert "random_seed" in meta_data("2013-04-04")
    assert "project_id" not in meta_data("2013-10-17")
    assert "devices" not in meta_data("2015-10-15")
    tree = openstack_tree(DOC)
    assert "openstack/2013-04-04/vendor_data.json" not in tree
    assert "openstack/2013-10-17/network_data.json" not in tree
    assert "openstack/2016-06-30/vendor_data2.json" not in tree


@pytest.mark.parametrize("version", [*OPENSTACK_VERSIONS, "latest"])
def test_every_version_lists_what_it_has(version: str) -> None:
    tree = openstack_tree(DOC)
    assert version in tree["openstack"].decode().splitlines()
    listed = tree[f"openstack/{version}"].decode().splitlines()
    assert listed
    for name in listed:
        assert f"openstack/{version}/{name}" in tree
    assert tree[f"openstack/{version}/user_data"] == DOC.user_data
    assert tree[f"openstack/{version}/password"] == b"sealed-by-guest"


def test_a_server_without_extras_has_no_empty_files() -> None:
    bare = InstanceDocument("u", "h", "n", "p", "az")
    tree = metadata_tree(bare)
    assert not [path for path in tree if "user_data" in path or "user-data" in path]
    assert {"meta", "keys", "public_keys", "random_seed"}.isdisjoint(meta_data("latest", bare))
    assert "latest/meta-data/public-keys" not in tree
    assert network_data(()) == {"links": [], "networks": [], "services": []}


def test_the_admin_password_is_on_the_drive_alone() -> None:
    assert b"s3cret" not in b"".join(metadata_tree(DOC).values())
    drive = json.loads(config_drive_files(DOC)["openstack/latest/meta_data.json"])
    assert drive["admin_pass"] == "s3cret"


def test_network_data_leaves_dhcp_to_dhcp_and_spells_the_rest_out() -> None:
    shown = network_data(DOC.nics)
    assert [link["ethernet_mac_address"] for link in shown["links"]] == [DHCP.mac, STATIC.mac]
    assert [link["mtu"] for link in shown["links"]] == [1450, 1400]
    dhcp, static = shown["networks"]
    assert (dhcp["type"], dhcp["link"]) == ("ipv4_dhcp", shown["links"][0]["id"])
    assert (static["type"], static["ip_address"], static["netmask"]) == (
        "ipv4",
        "10.9.0.5",
        "255.255.252.0",
    )
    assert static["routes"] == [
        {"network": "0.0.0.0", "netmask": "0.0.0.0", "gateway": "10.9.0.1"},
        {"network": "192.168.7.0", "netmask": "255.255.255.0", "gateway": "10.9.0.7"},
    ]
    assert [s["address"] for s in shown["services"]] == ["10.0.0.1", "10.9.0.53"]


def test_the_ec2_tree_can_be_walked_from_its_root() -> None:
    tree = ec2_tree(DOC)
    found: dict[str, bytes] = {}

    def walk(path: str) -> None:
        for line in tree[path].decode().splitlines():
            name = f"{line.split('=')[0]}/" if path.endswith("public-keys") else line
            child = f"{path}/{name.rstrip('/')}"
            if name.endswith("/"):
                walk(child)
            else:
                found[child] = tree[child]

    walk("latest")
    at = "latest/meta-data"
    assert found[f"{at}/hostname"] == b"web-1"
    assert found[f"{at}/instance-id"] == b"i-12345678"
    assert found[f"{at}/local-ipv4"] == b"10.0.0.5"
    assert found[f"{at}/placement/availability-zone"] == b"az1"
    assert found[f"{at}/public-keys/0/openssh-key"] == KEY.encode()
    assert found[f"{at}/security-groups"] == b"default\nweb"
    assert found["latest/user-data"] == DOC.user_data
    assert tree[""].decode().splitlines() == ["2009-04-04", "latest"]
    assert tree[f"{at}/public-keys"] == b"0=mine"


def test_config_drive_paths_are_plain_files() -> None:
    files = config_drive_files(DOC)
    assert "openstack/latest/user_data" in files
    assert "ec2/latest/meta-data.json" in files
    for path in files:
        assert not any(other.startswith(f"{path}/") for other in files)
        assert not path.startswith("/")
        assert ".." not in path

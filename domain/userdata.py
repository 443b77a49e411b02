"""What a guest is told about itself: the trees of the metadata service and of the config drive.

A tree maps paths without a leading slash to contents; a directory's content is its listing.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Network
from typing import Any

_FOLSOM = "2012-08-10"
_GRIZZLY = "2013-04-04"
_HAVANA = "2013-10-17"
_LIBERTY = "2015-10-15"
_NEWTON_ONE = "2016-06-30"
_NEWTON_TWO = "2016-10-06"
_OCATA = "2017-02-22"
_ROCKY = "2018-08-27"
_VICTORIA = "2020-10-14"
OPENSTACK_VERSIONS = (
    _FOLSOM,
    _GRIZZLY,
    _HAVANA,
    _LIBERTY,
    _NEWTON_ONE,
    _NEWTON_TWO,
    _OCATA,
    _ROCKY,
    _VICTORIA,
)
EC2_VERSIONS = ("2009-04-04",)
LATEST = "latest"


@dataclass(frozen=True, slots=True)
class NicDocument:
    """A network card as its guest sees it."""

    port_id: str
    network_id: str
    mac: str
    ip: str
    cidr: str
    mtu: int
    gateway_ip: str | None = None
    dns_nameservers: tuple[str, ...] = ()
    host_routes: tuple[tuple[str, str], ...] = ()
    """(destination, nexthop) pairs."""
    dhcp: bool = True
    tag: str | None = None
    """The device tag given at create."""


@dataclass(frozen=True, slots=True)
class InstanceDocument:
    """All a guest may learn. ``admin_pass`` goes only onto the config drive."""

    uuid: str
    hostname: str
    name: str
    project_id: str
    availability_zone: str
    launch_index: int = 0
    public_keys: Mapping[str, str] = field(default_factory=dict)
    """Key name → OpenSSH line."""
    meta: Mapping[str, str] = field(default_factory=dict)
    user_data: bytes | None = None
    admin_pass: str | None = None
    nics: tuple[NicDocument, ...] = ()
    random_seed: bytes | None = None
    instance_type: str = ""
    image_id: str = ""
    reservation_id: str = ""
    security_groups: tuple[str, ...] = ()
    root_device: str = "/dev/vda"
    password: str = ""
    """What the guest posted: encrypted by it for the owner of the key."""


def openstack_tree(doc: InstanceDocument) -> dict[str, bytes]:
    """``openstack/<version>/<file>`` of every version and ``latest``, with listings."""
    files = _openstack_files(doc, drive=False)
    tree = dict(files)
    versions = (*OPENSTACK_VERSIONS, LATEST)
    for version in versions:
        tree[f"openstack/{version}/password"] = doc.password.encode()
    for version in versions:
        prefix = f"openstack/{version}/"
        names = sorted(path.removeprefix(prefix) for path in tree if path.startswith(prefix))
        tree[prefix.rstrip("/")] = "\n".join(names).encode()
    tree["openstack"] = "\n".join(versions).encode()
    return tree


def _openstack_files(doc: InstanceDocument, *, drive: bool) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    for version in (*OPENSTACK_VERSIONS, LATEST):
        at = OPENSTACK_VERSIONS[-1] if version == LATEST else version
        prefix = f"openstack/{version}"
        files[f"{prefix}/meta_data.json"] = _json(_meta_data(doc, at, drive=drive))
        if doc.user_data is not None:
            files[f"{prefix}/user_data"] = doc.user_data
        if at >= _HAVANA:
            files[f"{prefix}/vendor_data.json"] = _json({})
        if at >= _LIBERTY:
            files[f"{prefix}/network_data.json"] = _json(network_data(doc.nics))
        if at >= _NEWTON_TWO:
            files[f"{prefix}/vendor_data2.json"] = _json({})
    return files


def _json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True).encode()


def _meta_data(doc: InstanceDocument, version: str, *, drive: bool) -> dict[str, Any]:
    """meta_data.json as it was in this version."""
    shown: dict[str, Any] = {
        "uuid": doc.uuid,
        "name": doc.name,
        "hostname": doc.hostname,
        "launch_index": doc.launch_index,
        "availability_zone": doc.availability_zone,
    }
    if doc.meta:
        shown["meta"] = dict(doc.meta)
    if doc.public_keys:
        shown["public_keys"] = dict(doc.public_keys)
        shown["keys"] = [
            {"name": name, "type": "ssh", "data": key} for name, key in doc.public_keys.items()
        ]
    if drive and doc.admin_pass is not None:
        shown["admin_pass"] = doc.admin_pass
    if version >= _GRIZZLY and doc.random_seed is not None:
        shown["random_seed"] = base64.b64encode(doc.random_seed).decode()
    if version >= _LIBERTY:
        shown["project_id"] = doc.project_id
    if version >= _NEWTON_ONE:
        shown["devices"] = [_device(nic, version) for nic in doc.nics if nic.tag]
    if version >= _VICTORIA:
        shown["dedicated_cpus"] = []
    return shown


def _device(nic: NicDocument, version: str) -> dict[str, Any]:
    """A tagged card, so that software in the guest can tell its cards apart."""
    device: dict[str, Any] = {"type": "nic", "bus": "none", "mac": nic.mac, "tags": [nic.tag]}
    if version >= _ROCKY:
        device["vf_trusted"] = False
    return device


def network_data(nics: tuple[NicDocument, ...]) -> dict[str, Any]:
    """network_data.json: links, the networks on them, and the services of all."""
    servers = dict.fromkeys(server for nic in nics for server in nic.dns_nameservers)
    return {
        "links": [
            {
                "id": _link_id(nic),
                "vif_id": nic.port_id,
                "type": "tap",
                "mtu": nic.mtu,
                "ethernet_mac_address": nic.mac,
            }
            for nic in nics
        ],
        "networks": [_network(index, nic) for index, nic in enumerate(nics)],
        "services": [{"type": "dns", "address": server} for server in servers],
    }


def _link_id(nic: NicDocument) -> str:
    return f"tap{nic.port_id[:11]}"


def _network(index: int, nic: NicDocument) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "id": f"network{index}",
        "type": "ipv4_dhcp" if nic.dhcp else "ipv4",
        "link": _link_id(nic),
        "network_id": nic.network_id,
    }
    if nic.dhcp:
        return shown
    routes = [_route(destination, hop) for destination, hop in nic.host_routes]
    if nic.gateway_ip is not None:
        routes.insert(0, _route("0.0.0.0/0", nic.gateway_ip))
    return shown | {
        "ip_address": nic.ip,
        "netmask": str(IPv4Network(nic.cidr).netmask),
        "routes": routes,
        "services": [{"type": "dns", "address": server} for server in nic.dns_nameservers],
    }


def _route(destination: str, hop: str) -> dict[str, str]:
    target = IPv4Network(destination)
    return {
        "network": str(target.network_address),
        "netmask": str(target.netmask),
        "gateway": hop,
    }


def ec2_tree(doc: InstanceDocument) -> dict[str, bytes]:
    """``<version>/meta-data/…`` and ``<version>/user-data`` as EC2 has them, with listings. The empty
    path lists the versions."""
    versions = (*EC2_VERSIONS, LATEST)
    tree = {"": "\n".join(versions).encode()}
    for version in versions:
        tree[version] = b"meta-data/" if doc.user_data is None else b"meta-data/\nuser-data"
        if doc.user_data is not None:
            tree[f"{version}/user-data"] = doc.user_data
        _grow(tree, f"{version}/meta-data", _ec2_meta_data(doc), doc)
    return tree


def _grow(tree: dict[str, bytes], path: str, value: Any, doc: InstanceDocument) -> None:
    """Write a nested mapping as directories and files."""
    if not isinstance(value, Mapping):
        tree[path] = str(value).encode()
        return
    for name, inner in value.items():
        _grow(tree, f"{path}/{name}", inner, doc)
    lines = [f"{name}/" if isinstance(inner, Mapping) else name for name, inner in value.items()]
    if path.endswith("/public-keys"):
        lines = [f"{index}={name}" for index, name in enumerate(doc.public_keys)]
    tree[path] = "\n".join(lines).encode()


def _ec2_id(kind: str, uuid: str) -> str:
    return f"{kind}-{uuid.replace('-', '')[:8]}"


def _ec2_meta_data(doc: InstanceDocument) -> dict[str, Any]:
    root = doc.root_device
    tree: dict[str, Any] = {
        "ami-id": _ec2_id("ami", doc.image_id) if doc.image_id else "ami-00000000",
        "ami-launch-index": doc.launch_index,
        "ami-manifest-path": "None",
        "block-device-mapping": {"ami": root.removeprefix("/dev/"), "root": root},
        "hostname": doc.hostname,
        "instance-action": "none",
        "instance-id": _ec2_id("i", doc.uuid),
        "instance-type": doc.instance_type,
        "local-hostname": doc.hostname,
        "local-ipv4": doc.nics[0].ip if doc.nics else "",
        "placement": {"availability-zone": doc.availability_zone},
        "public-hostname": doc.hostname,
        "public-ipv4": "",
        "reservation-id": doc.reservation_id,
        "security-groups": "\n".join(doc.security_groups),
    }
    if doc.public_keys:
        tree["public-keys"] = {
            str(index): {"openssh-key": key} for index, key in enumerate(doc.public_keys.values())
        }
    return dict(sorted(tree.items()))


def metadata_tree(doc: InstanceDocument) -> dict[str, bytes]:
    """Everything that 169.254.169.254 answers, below ``/``."""
    return ec2_tree(doc) | openstack_tree(doc)


def config_drive_files(doc: InstanceDocument) -> dict[str, bytes]:
    """The files of a config drive (volume label ``config-2``): path → content."""
    files = _openstack_files(doc, drive=True)
    for version in (*EC2_VERSIONS, LATEST):
        files[f"ec2/{version}/meta-data.json"] = _json(_ec2_meta_data(doc))
        if doc.user_data is not None:
            files[f"ec2/{version}/user-data"] = doc.user_data
    return files

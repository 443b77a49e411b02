"""Addresses, gateway, NAT, metadata and isolation, as guests see them."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import replace

import pytest

from domain.errors import GuestRefused
from domain.guest import NicSpec, SecurityRule
from tests.virt.nics.conftest import HOST_IP, OUTSIDE_IP, Lab, run, serve
from virt.nics import HostNetwork

pytestmark = pytest.mark.libvirt

MakeNic = Callable[..., NicSpec]
METADATA = "http://169.254.169.254/openstack/latest/meta_data.json"


def test_guest_gets_its_address_and_name_by_dhcp(
    lab: Lab, network: HostNetwork, make_nic: MakeNic
) -> None:
    nic = make_nic(10, hostname="web-1", mtu=1400)
    guest = lab.guest(nic)
    network.plug(guest.server_id, [nic])
    lease = guest.dhcp()
    assert lease["ip"] == "10.7.0.10"
    assert lease["mask"] == "24"
    assert lease["hostname"] == "web-1"
    assert lease["router"] == "10.7.0.1"
    assert lease["mtu"] == "1400"
    assert lease["dns"] == "10.7.0.1"
    assert guest.pings("10.7.0.1")


def test_subnet_tells_its_name_servers_and_routes(
    lab: Lab, network: HostNetwork, make_nic: MakeNic
) -> None:
    nic = make_nic(10)
    subnet = replace(
        nic.subnet,
        dns_nameservers=("192.0.2.53", "192.0.2.54"),
        host_routes=(("172.20.0.0/16", "10.7.0.9"),),
    )
    guest = lab.guest(replace(nic, subnet=subnet))
    network.plug(guest.server_id, [guest.nic])
    lease = guest.dhcp()
    assert lease["dns"] == "192.0.2.53 192.0.2.54"
    assert lease["staticroutes"].split() == [
        *("172.20.0.0/16", "10.7.0.9"),
        *("169.254.169.254/32", "10.7.0.1"),
        *("0.0.0.0/0", "10.7.0.1"),
    ]


def test_subnet_without_dhcp_answers_nobody(
    lab: Lab, network: HostNetwork, make_nic: MakeNic
) -> None:
    nic = make_nic(10)
    guest = lab.guest(replace(nic, subnet=replace(nic.subnet, enable_dhcp=False)))
    network.plug(guest.server_id, [guest.nic])
    assert guest.dhcp() == {}
    guest.configure()
    assert guest.pings("10.7.0.1")
    assert [r for r in network.residue() if r.startswith("dhcp:")] == []


def test_subnet_without_gateway_has_dhcp_and_metadata_all_the_same(
    lab: Lab, network: HostNetwork, make_nic: MakeNic
) -> None:
    nic = make_nic(10)
    guest = lab.guest(replace(nic, subnet=replace(nic.subnet, gateway_ip=None)))
    network.plug(guest.server_id, [guest.nic])
    lease = guest.dhcp()
    assert lease["ip"] == "10.7.0.10"
    assert "router" not in lease
    assert guest.fetch(METADATA).stdout == guest.server_id
    assert not guest.pings(OUTSIDE_IP)


def test_two_subnets_of_one_network_are_both_served(
    lab: Lab, network: HostNetwork, make_nic: MakeNic
) -> None:
    first = make_nic(10)
    other = replace(first.subnet, id=str(uuid.uuid4()), cidr="10.8.0.0/25", gateway_ip="10.8.0.1")
    second = replace(make_nic(11), ip="10.8.0.11", subnet=other)
    guests = [lab.guest(first), lab.guest(second)]
    for guest in guests:
        network.plug(guest.server_id, [guest.nic])
    leases = [guest.dhcp() for guest in guests]
    assert [lease["ip"] for lease in leases] == ["10.7.0.10", "10.8.0.11"]
    assert [lease["router"] for lease in leases] == ["10.7.0.1", "10.8.0.1"]
    assert guests[0].pings("10.8.0.11")


def test_address_of_a_deleted_guest_can_be_leased_at_once_by_the_next(
    lab: Lab, network: HostNetwork, make_nic: MakeNic
) -> None:
    keeper = lab.guest(make_nic(20))
    network.plug(keeper.server_id, [keeper.nic])
    first = lab.guest(make_nic(10))
    network.plug(first.server_id, [first.nic])
    assert first.dhcp()["ip"] == "10.7.0.10"
    network.unplug(first.server_id)
    second = lab.guest(replace(make_nic(11), ip="10.7.0.10"))
    network.plug(second.server_id, [second.nic])
    assert second.dhcp()["ip"] == "10.7.0.10"


def test_guests_of_a_network_reach_each_other_by_name_and_address(
    lab: Lab, network: HostNetwork, make_nic: MakeNic
) -> None:
    a, b = lab.guest(make_nic(10)), lab.guest(make_nic(11, hostname="db-1"))
    for guest in (a, b):
        network.plug(guest.server_id, [guest.nic])
        assert guest.dhcp()
    assert a.pings("10.7.0.11")
    named = a.run("busybox", "nslookup", "db-1.novalocal", "10.7.0.1").stdout
    assert "10.7.0.11" in named


def test_guest_reaches_the_outside_from_the_hosts_address(
    lab: Lab, network: HostNetwork, make_nic: MakeNic
) -> None:
    guest = lab.guest(make_nic(10))
    network.plug(guest.server_id, [guest.nic])
    guest.dhcp()
    serve(lab.background, lab.scratch, lab.outside, 8080)
    # The outside has no route back but to the host.
    assert guest.pings(OUTSIDE_IP)
    assert guest.fetch(f"http://{OUTSIDE_IP}:8080/hello").stdout == f"from {lab.outside}"


def test_without_nat_guests_stay_inside(lab: Lab, make_nic: MakeNic) -> None:
    network = lab.network(nat=False)
    guest = lab.plugged(network, make_nic(10))
    assert guest.pings("10.7.0.1")
    assert not guest.pings(OUTSIDE_IP)


def test_equal_addresses_on_two_networks_are_told_apart_by_metadata(
    lab: Lab, network: HostNetwork, make_nic: MakeNic
) -> None:
    a = lab.guest(make_nic(10))
    b = lab.guest(make_nic(10, network_id=str(uuid.uuid4())))
    for guest in (a, b):
        network.plug(guest.server_id, [guest.nic])
        assert guest.dhcp()["ip"] == "10.7.0.10"
    assert a.nic.network_id != b.nic.network_id
    assert a.fetch(METADATA).stdout == a.server_id
    assert b.fetch(METADATA).stdout == b.server_id
    serve(lab.background, lab.scratch, lab.outside, 8080)
    for guest in (a, b):
        assert guest.fetch(f"http://{OUTSIDE_IP}:8080/hello").returncode == 0


def test_guest_cannot_claim_to_be_another_in_a_metadata_request(
    lab: Lab, network: HostNetwork, make_nic: MakeNic
) -> None:
    a, b = lab.plugged(network, make_nic(10)), lab.plugged(network, make_nic(11))
    told = ["-H", "X-Forwarded-For: 10.7.0.11", "-H", f"X-Instance-ID: {b.server_id}"]
    assert a.fetch(METADATA, *told, "-H", "X-Aws-Ec2-Metadata-Token: t").stdout == a.server_id
    server_id, method, path, headers = lab.asked[-1]
    assert (server_id, method) == (a.server_id, "GET")
    assert path == "/openstack/latest/meta_data.json"
    assert headers["x-aws-ec2-metadata-token"] == "t"
    assert not {"x-forwarded-for", "x-instance-id"} & headers.keys()


def test_metadata_keeps_a_connection_and_refuses_excess(
    lab: Lab, network: HostNetwork, make_nic: MakeNic
) -> None:
    guest = lab.plugged(network, make_nic(10))
    twice = guest.fetch(METADATA, METADATA, "-w", " %{num_connects} ")
    assert twice.stdout.split() == [guest.server_id, "1", guest.server_id, "0"]
    status = ["-o", "/dev/null", "-w", "%{http_code}"]
    many = [word for n in range(5) for word in ("-H", f"X-{n}: {'x' * 8000}")]
    assert guest.fetch(METADATA, *many, *status).stdout == "431"
    big = lab.scratch / "big"
    big.write_bytes(b"x" * 70_000)
    assert guest.fetch(METADATA, "--data-binary", f"@{big}", *status).stdout == "413"
    head = guest.fetch(METADATA, "--head")
    assert f"Content-Length: {len(guest.server_id)}" in head.stdout


def test_metadata_that_cannot_be_had_now_is_a_503_and_the_service_lives_on(
    lab: Lab, network: HostNetwork, make_nic: MakeNic, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest = lab.plugged(network, make_nic(10))

    def down(*_asked: object) -> tuple[int, dict[str, str], bytes]:
        raise OSError("control plane down")

    monkeypatch.setattr(network, "_metadata", down)
    other = lab.plugged(network, make_nic(10, network_id=str(uuid.uuid4())))
    status = ["-o", "/dev/null", "-w", "%{http_code}"]
    assert other.fetch(METADATA, *status).stdout == "503"
    assert guest.fetch(METADATA, *status).stdout == "200"


def test_networks_cannot_reach_each_other_nor_the_host(
    lab: Lab, network: HostNetwork, make_nic: MakeNic
) -> None:
    a = lab.plugged(network, make_nic(10))
    there = make_nic(10, network_id=str(uuid.uuid4()))
    subnet = replace(there.subnet, cidr="10.9.0.0/24", gateway_ip="10.9.0.1")
    b = lab.plugged(network, replace(there, ip="10.9.0.10", subnet=subnet))
    assert run("ping", "-c1", "-W1", "10.9.0.10").returncode == 0, "the host reaches it"
    assert not a.pings("10.9.0.10")
    assert not a.pings("10.9.0.1")
    serve(lab.background, lab.scratch, lab.host, 8081)
    for address in (HOST_IP, "100.127.224.0"):
        assert a.fetch(f"http://{address}:8081/hello").returncode != 0
    # Frames addressed to the bridge itself must not enter the host either.
    a.run("ip", "neighbour", "replace", "10.7.0.77", "lladdr", _bridge_mac(a), "dev", "eth0")
    a.run("ip", "route", "replace", f"{HOST_IP}/32", "via", "10.7.0.77", "onlink", "dev", "eth0")
    assert not a.pings(HOST_IP)
    assert b.pings("10.9.0.1")


def _bridge_mac(guest: object) -> str:
    shown = run("ip", "-br", "link", "show", "type", "bridge").stdout.splitlines()
    return shown[0].split()[2]


def test_host_reaches_a_guest_by_its_address_under_its_rules(
    lab: Lab, network: HostNetwork, make_nic: MakeNic
) -> None:
    ssh = SecurityRule("ingress", "tcp", 22, 22)
    guest = lab.plugged(network, make_nic(10, rules=(ssh,)))
    guest.serve(22)
    guest.serve(23)
    own = ["curl", "-sS", "--noproxy", "*", "--max-time", "2"]
    assert run(*own, "http://10.7.0.10:22/hello").stdout == f"from {guest.netns}"
    assert run(*own, "http://10.7.0.10:23/hello").returncode != 0
    network.unplug(guest.server_id)
    assert "10.7.0.10" not in run("ip", "route", "show").stdout


def test_host_gets_no_route_to_an_address_that_means_something_else_already(
    lab: Lab, network: HostNetwork, make_nic: MakeNic
) -> None:
    nic = make_nic(10)
    subnet = replace(nic.subnet, cidr="198.51.100.0/24", gateway_ip="198.51.100.254")
    guest = lab.plugged(network, replace(nic, ip="198.51.100.77", subnet=subnet))
    assert guest.pings("198.51.100.254")
    assert "dev eth0" in run("ip", "route", "get", "198.51.100.77").stdout
    first = lab.plugged(network, make_nic(30, network_id=str(uuid.uuid4())))
    second = lab.plugged(network, make_nic(30, network_id=str(uuid.uuid4())))
    chosen = run("ip", "route", "get", "10.7.0.30").stdout
    network.unplug(first.server_id)
    assert run("ip", "route", "get", "10.7.0.30").stdout != chosen, "the other's turn"
    network.unplug(second.server_id)
    assert f"via {OUTSIDE_IP}" in run("ip", "route", "get", "10.7.0.30").stdout


@pytest.mark.parametrize(
    "wrong",
    [
        {"ip": "10.7.0.1"},
        {"ip": "10.99.0.4"},
        {"ip": "nonsense"},
        {"mac": "fa:16:3e; drop"},
        {"allowed_pairs": ("300.1.1.1",)},
        {"rules": (SecurityRule("ingress", "tcp", 70_000, 70_001),)},
        {"rules": (SecurityRule("ingress", "tcp } accept"),)},
        {"rules": (SecurityRule("sideways"),)},
    ],
)
def test_card_that_makes_no_sense_is_refused_and_leaves_nothing(
    lab: Lab, network: HostNetwork, make_nic: MakeNic, wrong: dict[str, object]
) -> None:
    before = lab.state()
    with pytest.raises(GuestRefused):
        network.plug("server", [replace(make_nic(10), **wrong)])  # type: ignore[arg-type]  # any field
    assert lab.state() == before

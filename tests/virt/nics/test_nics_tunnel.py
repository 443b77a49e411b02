"""One network on two hosts, joined by a tunnel."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from domain.guest import NicSpec
from tests.virt.nics.conftest import HOST_IP, OUTSIDE_IP, Guest, Lab, run
from virt.net import kernel
from virt.nics import HostNetwork

pytestmark = pytest.mark.libvirt

MakeNic = Callable[..., NicSpec]
METADATA = "http://169.254.169.254/"


@pytest.fixture
def there(lab: Lab) -> Iterator[HostNetwork]:
    """Networking of a second host: the outside world of the first."""
    second = HostNetwork(lab.scratch / "state-2", f"{lab.host}-2", lab.answer)
    kernel.inside(lab.outside, second.open)
    yield second

    def clean() -> None:
        for server_id in {p.server_id for p in second._records.ports.values()}:
            second.unplug(server_id)
        second.close()

    kernel.inside(lab.outside, clean)


def test_guests_of_one_network_meet_across_hosts_and_keep_their_own_gateways(
    lab: Lab, network: HostNetwork, there: HostNetwork, make_nic: MakeNic
) -> None:
    a = lab.plugged(network, make_nic(10))
    b = kernel.inside(lab.outside, lambda: lab.guest(make_nic(11)))
    kernel.inside(lab.outside, lambda: there.plug(b.server_id, [b.nic]))
    b.configure()
    assert not a.pings(b.nic.ip)
    network.set_peers([OUTSIDE_IP])
    kernel.inside(lab.outside, lambda: there.set_peers([HOST_IP]))
    assert a.pings(b.nic.ip)
    assert b.pings(a.nic.ip)
    for guest in (a, b):
        assert guest.pings("10.7.0.1")
        assert guest.fetch(METADATA).stdout == guest.server_id
        assert guest.dhcp()["ip"] == guest.nic.ip
    # Each host's gateway serves its own guests only: without it, the other's does not step in.
    local = next(
        n
        for n in lab.state()["namespaces"]
        if run("ip", "-n", n, "neigh").stdout.find(a.nic.ip) >= 0
    )
    run("ip", "-n", local, "link", "set", "gw0", "down")
    a.run("ip", "neighbour", "flush", "all")
    assert not a.pings("10.7.0.1")
    assert a.dhcp() == {}
    run("ip", "-n", local, "link", "set", "gw0", "up")
    network.set_peers([])
    assert not a.pings(b.nic.ip)


def test_security_groups_hold_across_hosts(
    lab: Lab, network: HostNetwork, there: HostNetwork, make_nic: MakeNic
) -> None:
    a = lab.plugged(network, make_nic(10, rules=()))
    b = kernel.inside(lab.outside, lambda: lab.guest(make_nic(11)))
    kernel.inside(lab.outside, lambda: there.plug(b.server_id, [b.nic]))
    b.configure()
    network.set_peers([OUTSIDE_IP])
    kernel.inside(lab.outside, lambda: there.set_peers([HOST_IP]))
    assert not b.pings(a.nic.ip)
    assert not a.pings(b.nic.ip)
    allowed = make_nic(10).rules
    network.apply(a.server_id, [replace(a.nic, rules=allowed)])
    assert b.pings(a.nic.ip)
    assert a.pings(b.nic.ip)


def test_strangers_cannot_inject_into_a_tunnel(
    lab: Lab, network: HostNetwork, there: HostNetwork, make_nic: MakeNic
) -> None:
    a = lab.plugged(network, make_nic(10))
    b = kernel.inside(lab.outside, lambda: lab.guest(make_nic(11)))
    kernel.inside(lab.outside, lambda: there.plug(b.server_id, [b.nic]))
    b.configure()
    kernel.inside(lab.outside, lambda: there.set_peers([HOST_IP]))
    network.set_peers(["198.51.100.77"])
    before = _received(a)
    assert not b.pings(a.nic.ip)
    assert _received(a) == before
    network.set_peers([OUTSIDE_IP])
    assert b.pings(a.nic.ip)
    assert _received(a) > before


def _received(guest: Guest) -> int:
    shown = json.loads(guest.run("ip", "-s", "-j", "link", "show", "eth0").stdout)
    return int(shown[0]["stats64"]["rx"]["packets"])

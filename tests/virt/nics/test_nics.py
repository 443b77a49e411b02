"""Addresses, gateway, NAT and metadata, as guests see them; and what is left when they go."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.libvirt


def test_guest_gets_its_address_and_name_by_dhcp(lab, network, make_nic):
    nic = make_nic(10, hostname="web-1", mtu=1400)
    guest = lab.guest(nic)
    network.plug(guest.server_id, [nic])
    lease = guest.dhcp()
    assert lease["ip"] == "10.7.0.10"
    assert lease["hostname"] == "web-1"
    assert lease["router"] == "10.7.0.1"
    assert lease["mtu"] == "1400"
    assert lease["dns"] == "10.7.0.1"
    assert guest.pings("10.7.0.1")

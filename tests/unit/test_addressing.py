"""Subnets, pools, addresses and MACs."""

from __future__ import annotations

import random
from ipaddress import IPv4Address, IPv4Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.addressing import (
    candidates,
    check_gateway,
    check_pools,
    choose_free,
    default_gateway,
    default_pools,
    new_mac,
    parse_cidr,
    parse_mac,
    parse_prefix,
    pool_size,
)
from domain.errors import BadRequest, Conflict

RNG = random.Random(7)
NET = IPv4Network("10.0.0.0/24")
subnets = st.builds(
    lambda address, length: IPv4Network((address, length), strict=False),
    st.integers(int(IPv4Address("10.0.0.0")), int(IPv4Address("10.255.255.255"))),
    st.integers(8, 30),
)


@given(subnets, st.data())
def test_default_pools_hold_every_host_address_but_the_gateway(
    network: IPv4Network, data: st.DataObject
) -> None:
    first, last = int(network.network_address) + 1, int(network.broadcast_address) - 1
    gateway = str(IPv4Address(data.draw(st.integers(first, last))))
    pools = default_pools(network, gateway)
    assert pool_size(pools) == network.num_addresses - 3
    assert check_pools(network, pools, gateway) == pools
    assert pool_size(default_pools(network, None)) == network.num_addresses - 2


@given(subnets)
def test_every_candidate_lies_in_the_pools(network: IPv4Network) -> None:
    pools = default_pools(network, default_gateway(network))
    sample = candidates(pools, RNG)
    assert (sample is None) == (pool_size(pools) <= 1024)
    for ip in sample or []:
        assert any(
            IPv4Address(p["start"]) <= IPv4Address(ip) <= IPv4Address(p["end"]) for p in pools
        )


def test_choosing_finds_the_one_free_address_and_then_none() -> None:
    pools = [{"start": "10.0.0.2", "end": "10.0.0.3"}, {"start": "10.0.0.9", "end": "10.0.0.9"}]
    assert choose_free(pools, {"10.0.0.2", "10.0.0.3"}, RNG) == "10.0.0.9"
    assert choose_free(pools, {"10.0.0.2", "10.0.0.3", "10.0.0.9"}, RNG) is None
    assert choose_free([], set(), RNG) is None


@pytest.mark.parametrize(
    "text",
    ["10.0.0.1/24", "10.0.0.0/31", "10.0.0.0/32", "0.0.0.0/0", "127.0.0.0/8", "x", "::/64", ""],
)
def test_a_cidr_that_guests_cannot_use_is_refused(text: str) -> None:
    with pytest.raises(BadRequest) as refused:
        parse_cidr(text)
    assert refused.value.wire_name == "InvalidInput"


def test_ipv6_is_refused_in_clear_words() -> None:
    with pytest.raises(BadRequest, match="only IPv4 is supported"):
        parse_cidr("fd00::/64")


@pytest.mark.parametrize("gateway", ["10.0.0.0", "10.0.0.255", "10.0.1.1", "fd00::1", "x"])
def test_a_gateway_is_a_host_address_of_its_subnet(gateway: str) -> None:
    with pytest.raises(BadRequest):
        check_gateway(NET, gateway)


def test_pools_keep_apart() -> None:
    overlapping = [
        {"start": "10.0.0.5", "end": "10.0.0.9"},
        {"start": "10.0.0.2", "end": "10.0.0.5"},
    ]
    with pytest.raises(Conflict, match="overlapping"):
        check_pools(NET, overlapping, None)


@pytest.mark.parametrize("text", ["FA:16:3E:00:00:0A", "fa-16-3e-00-00-0a", " fa:16:3e:00:00:0a "])
def test_macs_have_one_form(text: str) -> None:
    assert parse_mac(text) == "fa:16:3e:00:00:0a"


@pytest.mark.parametrize(
    "text", ["", "fa:16:3e:00:00", "01:00:5e:00:00:01", "00:00:00:00:00:00", "zz" * 6]
)
def test_a_mac_no_card_can_have_is_refused(text: str) -> None:
    with pytest.raises(BadRequest):
        parse_mac(text)


def test_new_macs_are_openstacks() -> None:
    macs = {new_mac(RNG) for _ in range(200)}
    assert len(macs) > 190
    assert all(parse_mac(mac) == mac and mac.startswith("fa:16:3e:") for mac in macs)


def test_a_prefix_fits_its_ethertype() -> None:
    assert parse_prefix("10.1.2.3/8") == "10.0.0.0/8"
    assert parse_prefix("fd00::1", "IPv6") == "fd00::1/128"
    with pytest.raises(BadRequest, match="Conflicting value ethertype IPv4"):
        parse_prefix("fd00::/8")

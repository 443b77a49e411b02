"""What a host is told of the filtering of its guests: all that the record says, and each rule once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

from sqlalchemy import Engine
from temporalio.testing import ActivityEnvironment

from activities.control.records import Records
from activities.host.guests import Guests
from db.network import nic_specs
from db.session import reading, transaction
from domain.guest import NicSpec, SecurityRule, SubnetSpec
from runtime.sealing import Sealer
from runtime.settings import Settings
from runtime.temporal import DATA_CONVERTER
from tests.db.test_server_ports import PortRequest, allocate, make_network, make_server
from tests.record import Record, claim
from workflows.contract import ApplyNics

SUBNET = SubnetSpec("subnet", "10.0.0.0/24", "10.0.0.1")
SSH = SecurityRule("ingress", "tcp", 22, 22, remote_ips=("10.0.0.2", "10.0.0.3"))
OUT = SecurityRule("egress")


def card(port_id: str, *rules: SecurityRule) -> NicSpec:
    return NicSpec(port_id, "net", 1, "02:00:00:00:00:01", "10.0.0.2", SUBNET, rules=rules)


async def travelled(cmd: ApplyNics) -> ApplyNics:
    """As it arrives at the host."""
    (payload,) = await DATA_CONVERTER.encode([cmd])
    (arrived,) = await DATA_CONVERTER.decode([payload], [ApplyNics])
    assert isinstance(arrived, ApplyNics)
    return arrived


async def applied(cmd: ApplyNics) -> dict[str, tuple[NicSpec, ...]]:
    """What a host's driver is told."""
    told: dict[str, tuple[NicSpec, ...]] = {}
    driver: Any = SimpleNamespace(apply_nics=told.__setitem__)
    with ThreadPoolExecutor(1) as pool:
        guests = Guests(driver, pool, Sealer("k" * 64), "epoch")
        await ActivityEnvironment().run(guests.apply_nics, cmd)
    return told


async def test_every_card_gets_its_own_rules_in_their_order() -> None:
    nics = {
        "a": (card("a1", OUT, SSH), card("a2")),
        "b": (card("b1", SSH),),
        "c": (card("c1", SSH, OUT),),
        "none": (),
    }
    cmd = ApplyNics.packed(nics)
    assert len(cmd.rules) == 2
    assert await applied(await travelled(cmd)) == nics


async def test_what_was_sent_before_rules_stood_apart_is_understood() -> None:
    nics = {"a": (card("a1", OUT, SSH),)}
    assert await applied(await travelled(ApplyNics(nics))) == nics


async def test_a_host_is_told_of_each_member_of_a_group_once(
    engine: Engine, settings: Settings
) -> None:
    guests, elsewhere = 12, 40
    Record(engine).host("one")
    with transaction(engine) as session:
        network = make_network(session)
        servers = [make_server(session, f"s{n}") for n in range(guests + elsewhere)]
        for server in servers:
            allocate(session, server, PortRequest(network_id=network.id))
        session.add_all(claim(server.id, "one") for server in servers[:guests])
    here = [server.id for server in servers[:guests]]
    with transaction(engine):  # whoever writes meanwhile is not waited for
        cmd = Records(engine, settings).host_nics("one")
    with reading(engine) as session:
        assert await applied(await travelled(cmd)) == nic_specs(session, here)
    (payload,) = await DATA_CONVERTER.encode([cmd])
    member = cmd.nics[here[0]][0].ip
    assert payload.data.count(f'"{member}"'.encode()) == 2  # as the card's own, and in one rule

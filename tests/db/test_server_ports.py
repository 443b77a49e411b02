"""Ports of servers: what create takes, what hosts are told, what delete gives back."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from ipaddress import IPv4Address
from typing import Any

import pytest
from sqlalchemy import Engine, event
from sqlmodel import Session, select

from db.network import (
    FixedIp,
    Network,
    Port,
    PortRequest,
    SecurityGroupRule,
    Subnet,
    allocate_server_ports,
    bind_server_ports,
    ensure_default_group,
    ensure_demo_network,
    hosts_to_refresh,
    hosts_using_group,
    nic_specs,
    release_server_ports,
    server_addresses,
    server_security_groups,
    unbind_server_ports,
    usable_networks,
)
from db.network.networks import add_network, add_subnet
from db.network.ports import FixedIpRequest, add_port, free_address
from db.quotas import set_limit
from db.servers import Server
from db.session import reading, transaction
from domain.addressing import default_pools, parse_cidr
from domain.errors import BadRequest, Conflict, DuranovaError, QuotaExceeded
from domain.guest import SecurityRule

MINE, OTHER = "project-demo", "project-alt"


def make_network(
    session: Session, project: str = MINE, cidr: str | None = "10.0.0.0/24", **attributes: Any
) -> Network:
    network = add_network(session, Network(project_id=project, segment=0, **attributes))
    if cidr is not None:
        pools = default_pools(parse_cidr(cidr), None)
        gateway = pools[0]["start"]
        add_subnet(
            session,
            Subnet(
                network_id=network.id,
                project_id=project,
                cidr=cidr,
                gateway_ip=gateway,
                allocation_pools=default_pools(parse_cidr(cidr), gateway),
                dns_nameservers=[gateway],
            ),
        )
    return network


def make_server(session: Session, name: str = "vm", project: str = MINE) -> Server:
    server = Server(project_id=project, user_id="u", name=name, hostname=name)
    session.add(server)
    session.flush()
    return server


def allocate(
    session: Session, server: Server, *requests: PortRequest, groups: tuple[str, ...] = ()
) -> list[Port]:
    return allocate_server_ports(
        session,
        server_id=server.id,
        project_id=server.project_id,
        az="nova",
        requests=requests,
        security_groups=groups,
    )


@contextmanager
def counted(engine: Engine) -> Iterator[list[str]]:
    """The statements sent meanwhile."""
    sent: list[str] = []

    def note(_c: Any, _cur: Any, statement: str, *_rest: Any) -> None:
        sent.append(statement)

    event.listen(engine, "before_cursor_execute", note)
    try:
        yield sent
    finally:
        event.remove(engine, "before_cursor_execute", note)


def test_cards_come_in_the_order_asked_for(engine: Engine) -> None:
    with transaction(engine) as session:
        first, second = make_network(session, name="a"), make_network(session, name="b")
        ready = add_port(session, Port(network_id=first.id, project_id=MINE, mac=""), None)
        server = make_server(session)
        ports = allocate(
            session,
            server,
            PortRequest(network_id=second.id, fixed_ip="10.0.0.77", tag="green"),
            PortRequest(port_id=ready.id),
        )
    assert [port.device_owner for port in ports] == ["compute:nova"] * 2
    assert ports[0].extra["tag"] == "green"
    with reading(engine) as session:
        addresses = server_addresses(session, [server.id, "unknown"])
        nics = nic_specs(session, [server.id, "unknown"])
    assert [a.network for a in addresses[server.id]] == ["b", "a"]
    assert addresses[server.id][0].ip == "10.0.0.77"
    assert [nic.port_id for nic in nics[server.id]] == [port.id for port in ports]
    assert nics[server.id][0].hostname == "vm"
    assert nics[server.id][0].subnet.dns_nameservers == ("10.0.0.1",)
    assert addresses["unknown"] == []
    assert nics["unknown"] == ()


def test_release_frees_what_the_server_made_and_keeps_the_users(engine: Engine) -> None:
    with transaction(engine) as session:
        network = make_network(session)
        mine = add_port(session, Port(network_id=network.id, project_id=MINE, mac=""), None)
        server = make_server(session)
        allocate(
            session,
            server,
            PortRequest(network_id=network.id),
            PortRequest(port_id=mine.id, tag="t"),
        )
        bind_server_ports(session, server.id, "host-1")
    for _ in range(2):
        with transaction(engine) as session:
            release_server_ports(session, server.id)
    with reading(engine) as session:
        (kept,) = session.exec(select(Port)).all()
        addresses = session.exec(select(FixedIp)).all()
    assert (kept.id, kept.device_id, kept.device_owner, kept.host) == (mine.id, "", "", "")
    assert (kept.status, kept.extra) == ("DOWN", {})
    assert [a.port_id for a in addresses] == [mine.id]


def test_a_failed_second_card_leaves_no_first_one(engine: Engine) -> None:
    with transaction(engine) as session:
        network = make_network(session)
        server = make_server(session)
        with pytest.raises(BadRequest, match=r"Port id .* could not be found"):
            allocate(
                session, server, PortRequest(network_id=network.id), PortRequest(port_id="nowhere")
            )
    with reading(engine) as session:
        assert session.exec(select(Port)).all() == []
        assert session.exec(select(FixedIp)).all() == []


@pytest.mark.parametrize(
    ("request_", "kind", "words"),
    [
        (PortRequest(network_id="nowhere"), BadRequest, "Network nowhere could not be found"),
        (PortRequest(network_id="foreign"), BadRequest, "could not be found"),
        (PortRequest(network_id="bare"), BadRequest, "requires a subnet"),
        (PortRequest(network_id="full"), BadRequest, "No fixed IP addresses available"),
        (PortRequest(network_id="mine", fixed_ip="10.9.9.9"), BadRequest, "not a valid IP"),
        (PortRequest(network_id="mine", fixed_ip="10.0.0.50"), BadRequest, "already in use"),
        (PortRequest(port_id="bound"), Conflict, "is still in use"),
        (PortRequest(port_id="addressless"), BadRequest, "requires a FixedIP"),
        (PortRequest(port_id="foreign"), BadRequest, "could not be found"),
    ],
)
def test_an_impossible_card_is_refused_in_novas_words(
    engine: Engine, request_: PortRequest, kind: type[DuranovaError], words: str
) -> None:
    with transaction(engine) as session:
        make_network(session, id="mine")
        make_network(session, OTHER, id="foreign")
        make_network(session, cidr=None, id="bare")
        make_network(session, cidr="10.7.0.0/30", id="full")
        # First: the other cards get addresses by chance, and must not get this one.
        taken = make_server(session, "taken")
        allocate(session, taken, PortRequest(network_id="mine", fixed_ip="10.0.0.50"))
        for network, attributes in (
            ("mine", {"id": "bound", "device_id": "somebody"}),
            ("bare", {"id": "addressless"}),
            ("full", {}),
        ):
            port = Port(network_id=network, project_id=MINE, mac="", **attributes)
            add_port(session, port, None)
        foreign = Port(network_id="foreign", project_id=OTHER, mac="", id="foreign")
        add_port(session, foreign, None)
        with pytest.raises(kind, match=words):
            allocate(session, make_server(session), request_)


def test_the_only_network_is_taken_unasked_and_two_are_too_many(engine: Engine) -> None:
    with transaction(engine) as session:
        with pytest.raises(BadRequest):
            allocate(session, make_server(session), PortRequest())
        demo = ensure_demo_network(session, "project-admin")
        make_network(session, OTHER)
        (port,) = allocate(session, make_server(session), PortRequest())
        assert port.network_id == demo.id
        own = make_network(session, name="own")
        assert [n.id for n in usable_networks(session, MINE)] == [own.id, demo.id]
        with pytest.raises(Conflict, match="Multiple possible networks found"):
            allocate(session, make_server(session), PortRequest())


def test_groups_are_named_and_must_be_known(engine: Engine) -> None:
    with transaction(engine) as session:
        network = make_network(session)
        default = ensure_default_group(session, MINE)
        server = make_server(session)
        allocate(
            session, server, PortRequest(network_id=network.id), groups=("default", default.id)
        )
        assert server_security_groups(session, [server.id]) == {server.id: ["default"]}
        with pytest.raises(BadRequest, match="Security group nope not found"):
            allocate(
                session,
                make_server(session),
                PortRequest(network_id=network.id),
                groups=("nope",),
            )


def test_groups_cannot_be_chosen_on_a_network_that_filters_nothing(engine: Engine) -> None:
    with transaction(engine) as session:
        network = make_network(session, port_security_enabled=False)
        server = make_server(session)
        wanted = PortRequest(network_id=network.id)
        with pytest.raises(BadRequest, match="Network requires port_security_enabled"):
            allocate(session, server, wanted, groups=("default",))
        assert session.exec(select(Port)).all() == []
        (port,) = allocate(session, server, wanted)
        assert not port.port_security_enabled


def test_the_port_quota_is_a_403_for_servers(engine: Engine) -> None:
    with transaction(engine) as session:
        network = make_network(session)
        set_limit(session, MINE, "port", 1)
        allocate(session, make_server(session), PortRequest(network_id=network.id))
        with pytest.raises(QuotaExceeded, match="Maximum number of ports exceeded"):
            allocate(session, make_server(session), PortRequest(network_id=network.id))


def test_rules_of_a_group_name_its_members_and_no_ipv6(engine: Engine) -> None:
    with transaction(engine) as session:
        network = make_network(session)
        a, b = make_server(session, "a"), make_server(session, "b")
        for server, ip in ((a, "10.0.0.11"), (b, "10.0.0.12")):
            allocate(session, server, PortRequest(network_id=network.id, fixed_ip=ip))
        specs = nic_specs(session, [a.id])[a.id]
    members = ("10.0.0.11", "10.0.0.12")
    assert set(specs[0].rules) == {
        SecurityRule("egress"),
        SecurityRule("ingress", remote_ips=members),
    }


def test_a_port_that_is_down_lets_nothing_pass(engine: Engine) -> None:
    with transaction(engine) as session:
        network = make_network(session)
        server = make_server(session)
        (port,) = allocate(session, server, PortRequest(network_id=network.id))
        port.admin_state_up, port.port_security_enabled = False, False
        session.add(port)
        session.flush()
        (nic,) = nic_specs(session, [server.id])[server.id]
    assert (nic.port_security, nic.rules) == (True, ())


def test_binding_says_where_and_whom_to_tell(engine: Engine) -> None:
    with transaction(engine) as session:
        network = make_network(session)
        a, b = make_server(session, "a"), make_server(session, "b")
        for server, host in ((a, "host-a"), (b, "host-b")):
            allocate(session, server, PortRequest(network_id=network.id))
            bind_server_ports(session, server.id, host)
            bind_server_ports(session, server.id, host)
        assert hosts_to_refresh(session, a.id) == {"host-a", "host-b"}
        default = ensure_default_group(session, MINE)
        assert hosts_using_group(session, {default.id}) == {"host-a", "host-b"}
        unbind_server_ports(session, a.id)
        assert hosts_to_refresh(session, a.id) == {"host-b"}
        port = session.exec(select(Port).where(Port.device_id == a.id)).one()
        assert (port.host, port.status) == ("", "DOWN")
        (bound,) = session.exec(select(Port).where(Port.device_id == b.id)).all()
        assert (bound.status, bound.revision) == ("ACTIVE", 2)


def test_many_servers_cost_no_more_questions_than_one(engine: Engine) -> None:
    with transaction(engine) as session:
        network = make_network(session)
        servers = [make_server(session, f"s{i}") for i in range(12)]
        for server in servers:
            allocate(session, server, PortRequest(network_id=network.id))
    ids = [server.id for server in servers]
    counts = []
    for asked in (ids[:1], ids):
        with reading(engine) as session, counted(engine) as sent:
            nic_specs(session, asked)
            server_addresses(session, asked)
            server_security_groups(session, asked)
        counts.append(len(sent))
    assert counts[0] == counts[1]


def test_a_free_address_of_a_large_subnet_costs_one_small_question(engine: Engine) -> None:
    with transaction(engine) as session:
        network = make_network(session, cidr="10.4.0.0/16")
        subnet = session.exec(select(Subnet).where(Subnet.network_id == network.id)).one()
        port = add_port(session, Port(network_id=network.id, project_id=MINE, mac=""), [])
        start = int(IPv4Address("10.4.0.2"))
        session.add_all(
            FixedIp(port_id=port.id, subnet_id=subnet.id, ip=str(IPv4Address(start + n)))
            for n in range(50_000)
        )
    with transaction(engine) as session, counted(engine) as sent:
        got = free_address(session, subnet)
    assert got is not None
    assert int(IPv4Address(got)) >= start + 50_000
    assert len([statement for statement in sent if "fixed_ip" in statement]) == 1
    assert " IN (" in sent[-1]


def _race(engine: Engine, network_id: str, wanted: int) -> list[str | None]:
    """So many servers get a card at once: their addresses, None for those that got none."""

    def one(index: int) -> str | None:
        try:
            with transaction(engine) as session:
                server = make_server(session, f"r{index}")
                allocate(session, server, PortRequest(network_id=network_id))
                return server_addresses(session, [server.id])[server.id][0].ip
        except BadRequest:
            return None

    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(one, range(wanted)))


def _check_race(engine: Engine) -> None:
    with transaction(engine) as session:
        network = make_network(session, cidr="10.8.0.0/28")  # 13 addresses beside the gateway
    got = _race(engine, network.id, 20)
    won = [ip for ip in got if ip is not None]
    assert len(won) == len(set(won)) == 13
    with reading(engine) as session:
        assert len(session.exec(select(FixedIp)).all()) == 13
        assert len(session.exec(select(Port)).all()) == 13
        rules = session.exec(select(SecurityGroupRule)).all()
        assert len(rules) == 4  # one default group, made once


def test_addresses_are_never_given_twice(engine: Engine) -> None:
    _check_race(engine)


def test_a_port_that_could_not_be_had_leaves_the_session_as_it_was(engine: Engine) -> None:
    with transaction(engine) as session:
        network = make_network(session)
        taken = add_port(session, Port(network_id=network.id, project_id=MINE, mac=""), None)
        ip = session.exec(select(FixedIp.ip).where(FixedIp.port_id == taken.id)).one()
        wish = Port(network_id=network.id, project_id=MINE, mac="")
        with pytest.raises(Conflict, match="is in use"):
            add_port(session, wish, [FixedIpRequest(ip=ip)])
        assert wish not in session
        wish.name = "again"
        add_port(session, wish, None)
    with reading(engine) as session:
        assert {port.name for port in session.exec(select(Port))} == {"", "again"}

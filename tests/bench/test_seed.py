"""Copied rows are servers and hosts like any other: the API pages through them, and the audit finds nothing."""

from __future__ import annotations

from ipaddress import IPv4Network

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Engine
from sqlmodel import func, select

from activities.control.snapshot import host_states
from bench.seed import PER_HOST, Seeder, seed_hosts, seed_zone
from db.audit import audit_record
from db.hosts import Claim, Host
from db.network import FixedIp, Network, Port, Subnet
from db.network.tables import PortSecurityGroup, SecurityGroup
from db.operations import Decision, Operation, OperationEvent
from db.servers import Server, ServerTag
from db.session import now, reading, transaction
from db.sightings import HostSighting
from domain.states import OperationState
from runtime.settings import Settings

ROOM = IPv4Network("10.64.0.0/16")
COPIES = 250
FLAVOR = {"id": "tiny", "name": "tiny", "vcpus": 1, "ram_mb": 96, "disk_gb": 1}


@pytest.fixture
def templates(engine: Engine) -> list[str]:
    """Two servers at rest on one host, with all that belongs to a server."""
    with transaction(engine) as session:
        session.add(Host(name="host-1", uuid="u", service_id="s", vcpus=64, ram_mb=9000, disk_gb=900,
                         hypervisor_hostname="host-1", reported_at=now()))  # fmt: skip
        session.add(Network(id="net", project_id="project-demo", name="net", segment=1000))
        session.add(SecurityGroup(id="group", project_id="project-demo", name="default"))
        session.flush()
        session.add(HostSighting(host="host-1", guests={"t0": [1, 1], "t1": [1, 1]}))
        session.add(
            Subnet(id="subnet", network_id="net", project_id="project-demo", cidr=str(ROOM))
        )
        session.flush()
        for name in ("t0", "t1"):
            session.add(Server(
                id=name, project_id="project-demo", user_id="user-member", name=name, host="host-1",
                vm_state="active", power_state=1, epoch=1, flavor=FLAVOR, vcpus=1, ram_mb=96, disk_gb=1,
                image_id="image", image={"checksum": "c", "disk_format": "raw", "size_bytes": 1},
            ))  # fmt: skip
            session.flush()
            session.add(Operation(
                id=f"o-{name}", request_id=f"req-{name}", action="create", lifecycle="create",
                server_id=name, project_id="project-demo", user_id="user-member",
                state=OperationState.SUCCEEDED, host="host-1", finished_at=now(),
            ))  # fmt: skip
            session.add(Port(id=f"p-{name}", network_id="net", project_id="project-demo",
                             mac=f"fa:{name}", device_id=name, device_owner="compute:nova",
                             host="host-1", made_by_server=True))  # fmt: skip
            session.flush()
            address = str(ROOM[60_000 + int(name[1])])
            session.add_all([
                Claim(server_id=name, host="host-1", operation_id=f"o-{name}", epoch=1, vcpus=1,
                      ram_mb=96, disk_gb=1, building=False),
                Decision(operation_id=f"o-{name}", server_id=name, attempt=1, host="host-1"),
                OperationEvent(operation_id=f"o-{name}", name="start", host="host-1"),
                FixedIp(port_id=f"p-{name}", subnet_id="subnet", ip=address),
                PortSecurityGroup(port_id=f"p-{name}", security_group_id="group"),
            ])  # fmt: skip
        session.add(ServerTag(server_id="t1", tag="web"))
    return ["t0", "t1"]


@pytest.fixture
def seeder(engine: Engine, templates: list[str]) -> Seeder:
    seeder = Seeder(engine, templates, ROOM)
    seeder.add(COPIES - 50)
    seeder.add(50)
    return seeder


def test_the_api_pages_through_the_copies(seeder: Seeder, client: TestClient) -> None:
    seen, query = [], "limit=100"
    while query:
        answer = client.get(f"/compute/v2.1/servers/detail?{query}").json()
        seen += answer["servers"]
        links = answer.get("servers_links", [])
        query = links[0]["href"].partition("?")[2] if links else ""
    copies = [server for server in seen if server["id"] not in seeder.templates]
    assert [server["id"] for server in copies] == seeder.ids
    assert len({server["name"] for server in copies}) == COPIES
    addresses = {a["addr"] for s in seen for a in s["addresses"]["net"]}
    assert len(addresses) == COPIES + 2
    assert {server["status"] for server in seen} == {"ACTIVE"}


def test_the_audit_finds_nothing_wrong_with_the_copies(seeder: Seeder, engine: Engine) -> None:
    with reading(engine) as session:
        findings = audit_record(session, now(), 60.0)
        assert [v for f in findings for v in f.violations] == []
        for table in (Server, Claim, Operation, Decision, OperationEvent, Port, FixedIp):
            assert session.exec(select(func.count()).select_from(table)).one() == COPIES + 2, table
        assert session.exec(select(func.count()).select_from(ServerTag)).one() == COPIES // 2 + 1
        busiest = session.exec(select(func.count()).select_from(Claim).group_by(Claim.host)).all()
        assert max(busiest) == PER_HOST


def test_the_scheduler_sees_copied_hosts_in_their_zones(
    engine: Engine, templates: list[str], settings: Settings
) -> None:
    names = [f"rack-{n}" for n in range(8)]
    seed_hosts(engine, "host-1", names, disk_gb=10)
    seed_zone(engine, "east", names[::4])
    with reading(engine) as session:
        states = {s.facts.name: s for s in host_states(session, settings, now())}
    assert states.keys() == {"host-1", *names}
    assert {n for n, s in states.items() if s.facts.zone == "east"} == set(names[::4])
    assert {s.facts.disk_gb_limit for n, s in states.items() if n in names} == {10}
    assert all(s.down is None for s in states.values())


def test_a_server_without_a_host_is_no_template(engine: Engine, templates: list[str]) -> None:
    with transaction(engine) as session:
        session.add(Server(id="lost", project_id="p", user_id="u", name="lost"))
    with pytest.raises(ValueError, match="on no host"):
        Seeder(engine, ["lost"], ROOM).add(1)

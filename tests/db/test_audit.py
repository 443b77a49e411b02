"""What the audit finds in the record: nothing in a cloud at rest, and each thing that is broken, once."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, delete, event
from sqlmodel import Session, col, select

from db import audit_reports
from db.audit import audit_record, ended_operations
from db.groups import ServerGroup
from db.hosts import Claim, Host
from db.identity import Domain, Grant, Role, User
from db.images import Image
from db.network import FixedIp, Network, Port, PortSecurityGroup, SecurityGroup, Subnet
from db.operations import Operation
from db.repairs import deleted_before, lost_claims, lost_ports, unowned_transitions
from db.servers import Server
from db.session import now, snapshot, transaction
from domain.ids import new_id
from domain.states import PowerState, VmState
from tests.record import RUNNING, Record, claim

Break = Callable[[Record, str], object]


@pytest.fixture
def record(engine: Engine) -> Record:
    return Record(engine)


def found(engine: Engine) -> list[tuple[str, str]]:
    """(invariant, subject) of every violation."""
    with snapshot(engine) as session:
        findings = audit_record(session, now(), silent_after_s=60)
    return [(f.invariant, v.subject) for f in findings for v in f.violations]


def at_rest(record: Record) -> str:
    """A cloud of two hosts in which everything is right; returns its one server."""
    record.host("one", "two")
    server_id = record.server()
    record.port(server_id)
    record.report("one", [(server_id, RUNNING)], residue=[])
    return server_id


def test_a_cloud_at_rest_is_all_well(engine: Engine, record: Record) -> None:
    at_rest(record)
    with snapshot(engine) as session:
        findings = audit_record(session, now(), silent_after_s=60)
    assert [f.invariant for f in findings] == [f"I{n}" for n in range(1, 9)]
    assert [v for f in findings for v in f.violations] == []
    assert {f.invariant for f in findings if f.checked} == {
        "I1",
        "I2",
        "I3",
        "I4",
        "I5",
        "I6",
        "I8",
    }


def moved(record: Record, server_id: str) -> None:
    record.change(Server, server_id, host="two")
    record.report("one", residue=[])


def unclaimed(record: Record, server_id: str) -> None:
    with transaction(record.engine) as session:
        session.execute(delete(Claim).where(col(Claim.server_id) == server_id))


def in_a_foreign_group(record: Record, server_id: str) -> None:
    group = ServerGroup(project_id="other", user_id="u", name="g", policy="affinity")
    record.add(group)
    record.change(Server, server_id, group_id=group.id)


def from_a_foreign_image(record: Record, server_id: str) -> None:
    early = now() - timedelta(days=1)
    image = Image(project_id="other", visibility="private", updated_at=early)
    record.add(image)
    record.change(Server, server_id, image_id=image.id)


@pytest.mark.parametrize(
    ("broken", "invariants"),
    [
        (unclaimed, ["I1"]),
        (lambda r, s: r.change(Claim, _claim(r, s), vcpus=2), ["I1"]),
        (lambda r, s: r.change(Claim, _claim(r, s), building=True), ["I1"]),
        (moved, ["I1", "I2"]),
        (lambda r, s: r.bury(s), ["I1", "I2", "I3"]),
        (lambda r, s: r.change(Server, s, vcpus=7), ["I5"]),
        (lambda r, s: r.report("one", []), ["I3"]),
        (lambda r, s: r.report("one", [(s, PowerState.SHUTDOWN)]), ["I3"]),
        (lambda r, s: r.report("one", [(s, RUNNING), (new_id(), RUNNING)]), ["I3"]),
        (lambda r, s: r.report("two", [(s, PowerState.SHUTDOWN)]), ["I3"]),
        (lambda r, s: r.report("two", [], residue=[s]), ["I4"]),
        (lambda r, s: r.report("two", [], residue=[new_id()]), ["I4"]),
        (lambda r, s: r.report("two", [], residue=["rules:tap1"]), ["I4"]),
        (lambda r, s: r.change(Server, s, task_state="powering-off"), ["I6"]),
        (lambda r, s: r.change(Server, s, vm_state=VmState.BUILDING), ["I6"]),
        (lambda r, s: r.port(s, project_id="other"), ["I8", "I8"]),
        (in_a_foreign_group, ["I8"]),
        (from_a_foreign_image, ["I8"]),
        (lambda r, s: r.operation(s, "succeeded", project_id="other"), ["I8"]),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)  # fmt: skip
def test_each_break_is_found_where_it_belongs(
    engine: Engine, record: Record, broken: Break, invariants: list[str]
) -> None:
    server_id = at_rest(record)
    broken(record, server_id)
    assert [invariant for invariant, _ in found(engine)] == invariants


def _claim(record: Record, server_id: str) -> str:
    with snapshot(record.engine) as session:
        return session.exec(select(Claim.id).where(Claim.server_id == server_id)).one()


def test_two_running_copies_are_one_violation_of_their_own(engine: Engine, record: Record) -> None:
    server_id = at_rest(record)
    record.report("two", [(server_id, RUNNING)])
    assert ("I3", f"server {server_id}") in found(engine)


def test_what_a_live_operation_owns_is_no_violation(engine: Engine, record: Record) -> None:
    server_id = at_rest(record)
    record.operation(server_id, "waiting_operator")
    unclaimed(record, server_id)
    record.change(Server, server_id, vm_state=VmState.BUILDING, host=None)
    record.report("one", [], residue=[server_id])
    record.report("two", [(server_id, RUNNING)])
    assert found(engine) == []


def test_a_report_older_than_the_row_says_nothing_about_it(engine: Engine, record: Record) -> None:
    server_id = at_rest(record)
    record.report("one", [])
    record.change(Server, server_id, updated_at=now() + timedelta(seconds=1))
    assert found(engine) == []


def test_a_silent_host_says_nothing_about_its_guests(engine: Engine, record: Record) -> None:
    at_rest(record)
    record.report("one", [])
    record.change(Host, "one", reported_at=now() - timedelta(seconds=120))
    assert found(engine) == []


def test_a_port_of_the_users_own_that_names_no_server_is_his_business(
    engine: Engine, record: Record
) -> None:
    at_rest(record)
    record.port("router", device_owner="compute:mine", made_by_server=False, host="")
    assert found(engine) == []


def test_an_address_that_two_ports_have_is_found(engine: Engine, record: Record) -> None:
    server_id = at_rest(record)
    first = record.port(server_id)
    with snapshot(engine) as session:
        network_id = session.get_one(Port, first).network_id
    second = Port(network_id=network_id, project_id="p", mac="m", host="")
    record.add(second)
    record.add(
        FixedIp(port_id=second.id, subnet_id=_other_subnet(record, network_id), ip="10.0.0.7")
    )
    assert ("I2", f"address 10.0.0.7 on network {network_id}") in found(engine)


def _other_subnet(record: Record, network_id: str) -> str:
    subnet = Subnet(network_id=network_id, project_id="p", cidr="10.0.0.0/25")
    record.add(subnet)
    return subnet.id


def test_a_security_group_of_another_project_is_found(engine: Engine, record: Record) -> None:
    port_id = record.port(at_rest(record))
    group = SecurityGroup(project_id="other", name="g")
    record.add(group)
    record.add(PortSecurityGroup(port_id=port_id, security_group_id=group.id))
    assert found(engine) == [("I8", f"port {port_id}")]


def test_a_network_that_is_no_longer_shared_is_found(engine: Engine, record: Record) -> None:
    port_id = record.port(at_rest(record))
    with snapshot(engine) as session:
        network_id = session.get_one(Port, port_id).network_id
    record.change(Network, network_id, project_id="other", shared=True)
    assert found(engine) == []
    record.change(Network, network_id, shared=False)
    assert found(engine) == [("I8", f"port {port_id}")]


def test_an_administrator_may_boot_from_anybodys_image(engine: Engine, record: Record) -> None:
    server_id = at_rest(record)
    from_a_foreign_image(record, server_id)
    domain, role = Domain(name="d"), Role(name="admin")
    record.add(domain, role)
    user = User(id="u", name="u", domain_id=domain.id)
    record.add(user)
    record.add(Grant(user_id="u", role_id=role.id, target_kind="project", target_id="p"))
    assert found(engine) == []


def test_the_audit_reads_one_instant(engine: Engine, record: Record) -> None:
    server_id = at_rest(record)
    with snapshot(engine) as session:
        session.get(Host, "one")
        record.operation(server_id)
        seen = len(session.exec(select(Operation)).all())
    assert seen == 0


def test_claims_of_a_server_that_is_on_no_host_are_found(engine: Engine, record: Record) -> None:
    at_rest(record)
    lost = record.server(host=None, vm_state=VmState.ERROR)
    record.add(claim(lost, "one"))
    assert found(engine) == [("I1", f"claim of server {lost} on one")]


# --- what it costs

GROWING = ("claim", "fixed_ip", "operation", "port", "port_security_group", "server")
"""Tables with a row or more for each server."""
FEW = "(claim_building|server_miscounted)"
"""Indices of what is in a few rows only."""


def looks(session: Session) -> None:
    """Everything that is read every minute."""
    audit_record(session, now(), silent_after_s=60)
    ended_operations(session, now() - timedelta(minutes=5), now(), 50)
    unowned_transitions(session, now())
    lost_claims(session)
    lost_ports(session)
    deleted_before(session, now())


def asked(engine: Engine) -> list[tuple[str, Any]]:
    """Each statement of ``looks`` with its parameters."""
    seen: list[tuple[str, Any]] = []

    def note(_conn: Any, _cursor: Any, statement: str, parameters: Any, *_more: Any) -> None:
        seen.append((statement, parameters))

    event.listen(engine, "before_cursor_execute", note)
    try:
        with snapshot(engine) as session:
            looks(session)
    finally:
        event.remove(engine, "before_cursor_execute", note)
    return seen


def test_what_is_read_every_minute_is_read_from_indices(engine: Engine, record: Record) -> None:
    if engine.dialect.name == "postgresql":
        pytest.skip("with these few rows it would read the tables")
    at_rest(record)
    with engine.connect() as connection:
        for statement, parameters in asked(engine):
            explain = f"EXPLAIN QUERY PLAN {statement}"
            steps = [row[-1] for row in connection.exec_driver_sql(explain, parameters)]
            for step in steps:
                read = re.match(rf"SCAN (\w+)(?! USING (COVERING INDEX|INDEX {FEW}))\b", step)
                assert not read or read[1] not in GROWING, (step, statement)
            if " EXCEPT " in statement:
                assert "MERGE (EXCEPT)" in steps, (steps, statement)


def test_a_larger_cloud_at_rest_takes_no_more_statements(engine: Engine, record: Record) -> None:
    at_rest(record)
    before = len(asked(engine))
    servers = [record.server() for _ in range(20)]
    for server_id in servers:
        record.port(server_id)
        record.operation(server_id, "succeeded")
    with snapshot(engine) as session:
        guests = list(session.exec(select(Server.id)))
    record.report("one", [(server_id, RUNNING) for server_id in guests])
    assert found(engine) == []
    assert len(asked(engine)) == before


def test_hosts_are_looked_at_page_by_page(
    engine: Engine, record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_reports, "_PAGE", 1)
    server_id = at_rest(record)
    record.report("three", [(new_id(), RUNNING)])
    record.report("two", [(server_id, RUNNING)])
    assert sorted(subject for _, subject in found(engine))[-1] == f"server {server_id}"
    assert len(found(engine)) == 3

"""What hosts report, whether they live, and what is used on them."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from sqlalchemy import Engine

from db.hosts import (
    Claim,
    get_host,
    group_members,
    hosts_of_servers,
    is_up,
    list_hosts,
    report_host,
    set_allocation_ratios,
    usage_by_host,
)
from db.servers import Server
from db.session import now, reading, transaction
from domain.errors import BadRequest, Conflict, NotFound
from domain.guest import Inventory
from domain.ids import new_id
from domain.usage import Usage
from runtime.settings import Settings

UUID = "8f4d8a0e-9d3f-4b0f-8ee2-b4a6f0a3a001"
INVENTORY = Inventory(
    vcpus=8,
    ram_mb=16384,
    disk_gb=100,
    hypervisor_type="QEMU",
    hypervisor_version=9000000,
    hypervisor_hostname="one.example",
    capabilities=("HW_ARCH_X86_64", "COMPUTE_ACCEL_TCG"),
    uuid=UUID,
)


def report(engine: Engine, name: str, inventory: Inventory = INVENTORY, **given: object) -> None:
    with transaction(engine) as session:
        report_host(session, name, inventory, str(given.get("epoch", "e1")), now(), "east")


def test_a_first_report_makes_the_host_known(engine: Engine) -> None:
    report(engine, "one")
    with reading(engine) as session:
        host = get_host(session, "one")
    assert (host.uuid, host.vcpus, host.availability_zone, host.epoch) == (UUID, 8, "east", "e1")
    assert host.capabilities == ["COMPUTE_ACCEL_TCG", "HW_ARCH_X86_64"]
    assert host.service_id


def test_ids_stay_and_inventory_follows_over_reports(engine: Engine) -> None:
    report(engine, "one")
    with reading(engine) as session:
        before = get_host(session, "one")
    report(engine, "one", replace(INVENTORY, ram_mb=32768), epoch="e2")
    with reading(engine) as session:
        after = get_host(session, "one")
    assert (after.uuid, after.service_id) == (before.uuid, before.service_id)
    assert (after.ram_mb, after.epoch) == (32768, "e2")
    assert after.updated_at > before.updated_at


def test_a_report_without_news_moves_only_the_heartbeat(engine: Engine) -> None:
    report(engine, "one")
    with reading(engine) as session:
        before = get_host(session, "one")
    report(engine, "one")
    with reading(engine) as session:
        after = get_host(session, "one")
    assert after.updated_at == before.updated_at
    assert after.reported_at is not None
    assert before.reported_at is not None
    assert after.reported_at > before.reported_at


def test_another_hypervisor_under_a_known_name_is_refused_and_changes_nothing(
    engine: Engine,
) -> None:
    report(engine, "one")
    with pytest.raises(Conflict, match="hypervisor"):
        report(engine, "one", replace(INVENTORY, uuid=new_id(), ram_mb=1))
    with reading(engine) as session:
        host = get_host(session, "one")
    assert (host.uuid, host.ram_mb) == (UUID, 16384)


def test_a_renamed_hypervisor_is_refused(engine: Engine) -> None:
    report(engine, "one")
    with pytest.raises(Conflict, match="name for life"):
        report(engine, "uno")
    with reading(engine) as session:
        assert [h.name for h in list_hosts(session)] == ["one"]


def test_a_host_that_never_reported_is_not_found(engine: Engine) -> None:
    with reading(engine) as session, pytest.raises(NotFound, match="ghost"):
        get_host(session, "ghost")


def test_a_host_is_up_while_it_reports_and_nobody_forced_it_down(
    engine: Engine, settings: Settings
) -> None:
    report(engine, "one")
    with reading(engine) as session:
        host = get_host(session, "one")
    assert host.reported_at is not None
    limit = timedelta(seconds=settings.host_silent_after_s)
    assert is_up(host, settings, host.reported_at + limit)
    assert not is_up(host, settings, host.reported_at + limit + timedelta(microseconds=1))
    host.forced_down = True
    assert not is_up(host, settings, host.reported_at)
    host.forced_down, host.reported_at = False, None
    assert not is_up(host, settings, now())


@pytest.mark.parametrize("ratio", [0.0, -1.0, float("inf"), float("nan")])
def test_an_allocation_ratio_is_a_positive_number(engine: Engine, ratio: float) -> None:
    report(engine, "one")
    with transaction(engine) as session, pytest.raises(BadRequest):
        set_allocation_ratios(session, "one", cpu=ratio)


def claim(engine: Engine, host: str, *, project: str = "p", group: str | None = None) -> str:
    with transaction(engine) as session:
        server = Server(project_id=project, user_id="u", name="s", group_id=group)
        session.add(server)
        session.flush()
        session.add(
            Claim(
                server_id=server.id,
                host=host,
                operation_id=new_id(),
                epoch=1,
                vcpus=2,
                ram_mb=512,
                disk_gb=5,
                group_id=group,
                building=project == "p",
            )
        )
        return server.id


def test_usage_is_the_sum_of_the_claims(engine: Engine) -> None:
    report(engine, "one")
    report(engine, "two", replace(INVENTORY, uuid=new_id()))
    claim(engine, "one")
    claim(engine, "one", project="q")
    with reading(engine) as session:
        assert usage_by_host(session) == {"one": Usage(4, 1024, 10, servers=2, building=1)}


def test_group_members_are_counted_by_host_without_the_server_itself(engine: Engine) -> None:
    report(engine, "one")
    first, _ = claim(engine, "one", group="g"), claim(engine, "one", group="g")
    with reading(engine) as session:
        assert group_members(session, "g", but=first) == {"one": 1}
        assert group_members(session, "other", but=first) == {}


def test_servers_of_another_project_are_nowhere(engine: Engine) -> None:
    report(engine, "one")
    mine, other = claim(engine, "one", project="p"), claim(engine, "one", project="q")
    with reading(engine) as session:
        assert hosts_of_servers(session, [mine, new_id()], "p") == {"one"}
        assert hosts_of_servers(session, [other], "p") == set()

"""Placement against a real database: claims, kept decisions, repeats and releases."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from activities.control.snapshot import host_states
from db.hosts import Host, report_host, set_allocation_ratios
from db.operations import Operation
from db.servers import Server
from db.session import now, reading, transaction
from domain.errors import Conflict, NotFound, NoValidHost
from domain.guest import Inventory
from domain.ids import new_id
from tests.activities.lab import Lab
from workflows.contract import Ref, ReleaseClaim

# --- one claim ---------------------------------------------------------------------------------


def test_a_claim_takes_the_flavors_share_and_says_so_everywhere(lab: Lab) -> None:
    lab.add_hosts("one")
    ref = lab.add_server(flavor={"ephemeral_gb": 2, "swap_mb": 100})
    placed = lab.claim(ref)
    [claim] = lab.claims()
    server, operation = lab.server(ref), lab.operation(ref)
    assert (claim.vcpus, claim.ram_mb, claim.disk_gb, claim.building) == (1, 512, 4, True)
    assert (placed.host, placed.fence.epoch, placed.fence.operation_id) == (
        "one",
        1,
        ref.operation_id,
    )
    assert (server.host, server.epoch, server.task_state) == ("one", 1, "spawning")
    assert (operation.host, operation.attempt, operation.state) == ("one", 1, "running")
    assert operation.started_at is not None
    assert lab.events(ref) == [
        ("schedule_instances", None, "Success"),
        ("compute__do_build_and_run_instance", "one", None),
    ]


def test_the_spec_is_built_from_the_servers_own_copies(lab: Lab) -> None:
    lab.add_hosts("one")
    spec = lab.place(hostname="web", config_drive=True, flavor={"extra_specs": {"hw:x": "1"}}).spec
    assert (spec.vcpus, spec.ram_mb, spec.disk_gb) == (1, 512, 1)
    assert (spec.hostname, spec.config_drive, spec.extra_specs) == ("web", True, {"hw:x": "1"})
    assert (spec.image.checksum, spec.image.properties) == ("c" * 128, {"hw_disk_bus": "virtio"})


def test_a_root_disk_of_zero_is_claimed_at_the_images_size(lab: Lab) -> None:
    lab.add_hosts("one")
    lab.place(flavor={"disk_gb": 0}, image={"size_bytes": 3 * 1024**3 + 1})
    assert [c.disk_gb for c in lab.claims()] == [4]


def test_a_repeated_claim_is_one_claim(lab: Lab) -> None:
    lab.add_hosts("one", "two")
    ref = lab.add_server()
    first = lab.claim(ref)
    assert lab.claim(ref) == first
    assert len(lab.claims()) == len(lab.decisions(ref)) == 1
    assert len(lab.events(ref)) == 2
    assert lab.server(ref).epoch == 1


def test_a_claim_of_a_server_without_a_record_is_not_found(lab: Lab) -> None:
    with pytest.raises(NotFound):
        lab.claim(Ref(new_id(), new_id(), "p", "req-1", "create"))


@pytest.mark.parametrize(
    ("table", "change"),
    [
        (Server, {"deleted_at": now(), "vm_state": "deleted"}),
        (Server, {"task_state": "deleting"}),
        (Operation, {"state": "cancelled"}),
    ],
)
def test_nothing_is_claimed_for_a_server_that_goes(
    lab: Lab, table: type[Any], change: dict[str, Any]
) -> None:
    lab.add_hosts("one")
    ref = lab.add_server()
    lab.change(table, ref.server_id if table is Server else ref.operation_id, **change)
    with pytest.raises(Conflict) as caught:
        lab.claim(ref)
    assert not caught.value.retryable
    assert lab.claims() == []


# --- release -----------------------------------------------------------------------------------


def test_a_release_gives_everything_back(lab: Lab) -> None:
    lab.add_hosts("one")
    ref = lab.add_server()
    lab.claim(ref)
    lab.placement.release(ReleaseClaim(ref, 1, error="no disk"))
    assert lab.claims() == []
    server = lab.server(ref)
    assert (server.host, server.task_state, server.epoch) == (None, "scheduling", 2)
    assert lab.events(ref)[-1] == ("compute__do_build_and_run_instance", "one", "Error")
    lab.placement.release(ReleaseClaim(ref, 1))


def test_a_release_of_what_never_happened_is_no_error(lab: Lab) -> None:
    ref = lab.add_server()
    lab.placement.release(ReleaseClaim(ref, 1))
    lab.placement.release(ReleaseClaim(Ref(new_id(), new_id(), "p", "r", "create"), 1))
    assert lab.server(ref).host is None


def test_a_late_release_spares_the_next_attempts_claim(lab: Lab) -> None:
    lab.add_hosts("one", "two")
    ref = lab.add_server()
    first = lab.claim(ref)
    lab.placement.release(ReleaseClaim(ref, 1))
    second = lab.claim(ref, 2, (first.host,))
    lab.placement.release(ReleaseClaim(ref, 1))
    assert [c.host for c in lab.claims()] == [second.host]
    assert lab.server(ref).host == second.host
    assert lab.events(ref)[-1][2] is None


def test_a_claim_that_arrives_after_its_release_takes_nothing(lab: Lab) -> None:
    lab.add_hosts("one")
    ref = lab.add_server()
    lab.placement.release(ReleaseClaim(ref, 1))
    with pytest.raises(Conflict):
        lab.claim(ref)
    assert lab.claims() == []


def test_each_attempt_has_a_larger_epoch_and_its_own_decision(lab: Lab) -> None:
    lab.add_hosts("one", "two")
    ref = lab.add_server()
    first = lab.claim(ref)
    lab.placement.release(ReleaseClaim(ref, 1, error="boom"))
    second = lab.claim(ref, 2, (first.host,))
    assert second.host != first.host
    assert second.fence.epoch > first.fence.epoch
    assert [d.attempt for d in lab.decisions(ref)] == [1, 2]
    assert lab.decisions(ref)[1].refusals == {
        first.host: "RetryFilter: the build failed there before"
    }


# --- decisions are kept ------------------------------------------------------------------------


def test_the_decision_says_why_this_host_and_why_not_the_others(lab: Lab) -> None:
    lab.add_hosts("one", "two")
    lab.add_hosts("small", ram_mb=600)
    ref = lab.add_server()
    placed = lab.claim(ref)
    [decision] = lab.decisions(ref)
    assert decision.host == placed.host
    assert set(decision.weights) == {"one", "two"}
    assert decision.refusals == {"small": "CapacityFilter: ram: 512 MB wanted, 132 MB free"}
    assert decision.counts == {"hosts": 3, "passed": 2, "refused": {"CapacityFilter": 1}}
    assert "2 of 3 hosts passed" in decision.summary


def test_no_valid_host_is_raised_after_its_decision_was_kept(lab: Lab) -> None:
    lab.add_hosts("one", "two", ram_mb=1024)
    ref = lab.add_server(flavor={"ram_mb": 1000})
    with pytest.raises(NoValidHost) as caught:
        lab.claim(ref)
    assert len(caught.value.message) <= 255
    assert caught.value.message.startswith(
        "No valid host was found. 2 hosts: 2 refused by Capacity"
    )
    assert "lacks 232 MB of RAM" in caught.value.message
    [decision] = lab.decisions(ref)
    assert decision.host is None
    assert decision.summary.startswith("No valid host was found.")
    assert lab.events(ref) == [("schedule_instances", None, "Error")]
    assert (lab.operation(ref).attempt, lab.server(ref).host) == (1, None)


def test_a_repeated_refusal_keeps_one_decision_and_sees_new_room(lab: Lab) -> None:
    ref = lab.add_server()
    with pytest.raises(NoValidHost, match="No host has reported"):
        lab.claim(ref)
    with pytest.raises(NoValidHost):
        lab.claim(ref)
    assert len(lab.decisions(ref)) == len(lab.events(ref)) == 1
    lab.add_hosts("one")
    assert lab.claim(ref).host == "one"
    assert [d.host for d in lab.decisions(ref)] == ["one"]
    assert lab.events(ref)[0] == ("schedule_instances", None, "Success")


def test_a_decision_over_many_hosts_names_a_hundred_and_counts_all(lab: Lab) -> None:
    lab.add_hosts(*(f"h{n:03}" for n in range(110)), ram_mb=600)
    lab.add_hosts(*(f"k{n:03}" for n in range(105)))
    ref = lab.add_server()
    lab.claim(ref)
    [decision] = lab.decisions(ref)
    assert len(decision.weights) == len(decision.refusals) == 100
    assert decision.counts == {"hosts": 215, "passed": 105, "refused": {"CapacityFilter": 110}}


# --- what the snapshot sees ----------------------------------------------------------------------


def placed_or_why(lab: Lab, **given: Any) -> str:
    try:
        return lab.place(**given).host
    except NoValidHost as error:
        return error.message


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"disabled": True, "disabled_reason": "new fan"}, "disabled (new fan)"),
        ({"forced_down": True}, "forced down"),
        ({"reported_at": now() - timedelta(hours=1)}, "silent for"),
        ({"reported_at": None}, "silent"),
    ],
)
def test_a_host_that_is_not_up_takes_no_server(
    lab: Lab, change: dict[str, Any], words: str
) -> None:
    lab.add_hosts("one")
    lab.place()  # what is known of the host from before must not hide the change
    lab.change(Host, "one", **change)
    assert words in placed_or_why(lab)


def test_a_changed_inventory_counts_at_once(lab: Lab) -> None:
    lab.add_hosts("one", ram_mb=1100)
    assert "lacks" in placed_or_why(lab, flavor={"ram_mb": 1000})
    with transaction(lab.engine) as session:
        host = session.get_one(Host, "one")
        inventory = Inventory(4, 4096, 100, "QEMU", 9000000, "one.example", uuid=host.uuid)
        report_host(session, "one", inventory, "e", now(), None)
    assert placed_or_why(lab, flavor={"ram_mb": 1000}) == "one"


def test_a_host_of_its_own_overcommit_and_its_aggregates(lab: Lab) -> None:
    lab = lab.with_settings(reserved_host_ram_mb=0)
    lab.add_hosts("one", vcpus=4, ram_mb=1000)

    def limits() -> tuple[int, int]:
        with reading(lab.engine) as session:
            [state] = host_states(session, lab.settings, now())
        return state.facts.vcpus_limit, state.facts.ram_mb_limit

    assert limits() == (64, 1500)
    lab.add_aggregate(["one"], cpu_allocation_ratio="2.0", ram_allocation_ratio="free text")
    assert limits() == (8, 1500)
    lab.add_aggregate(["one"], cpu_allocation_ratio="1.5")
    assert limits() == (6, 1500)
    with transaction(lab.engine) as session:
        set_allocation_ratios(session, "one", cpu=1.0, ram=1.0)
    assert limits() == (4, 1000)


def test_an_aggregates_zone_wins_over_the_hosts_own(lab: Lab) -> None:
    lab.add_hosts("one", "two")
    lab.change(Host, "one", availability_zone="east")
    assert placed_or_why(lab, availability_zone="east") == "one"
    lab.add_aggregate(["one"], availability_zone="west")
    assert placed_or_why(lab, availability_zone="west") == "one"
    assert "zone east" in placed_or_why(lab, availability_zone="east")
    assert placed_or_why(lab, availability_zone="nova") == "two"


def test_a_changed_aggregate_counts_at_once(lab: Lab) -> None:
    lab.add_hosts("one", "two")
    specs = {"extra_specs": {"aggregate_instance_extra_specs:ssd": "true"}}
    assert "aggregate metadata ssd" in placed_or_why(lab, flavor=specs)
    lab.add_aggregate(["two"], ssd="true")
    assert placed_or_why(lab, flavor=specs) == "two"


def test_a_host_can_be_asked_for(lab: Lab) -> None:
    lab.add_hosts("one", "two")
    for _ in range(3):
        assert lab.place(availability_zone="nova:two").host == "two"
        assert lab.place(availability_zone="nova::one.example").host == "one"
        assert lab.place(input={"host": "two"}).host == "two"
        assert lab.place(input={"hypervisor_hostname": "one.example"}).host == "one"
    assert "host ghost was asked for" in placed_or_why(lab, availability_zone="nova:ghost")


def test_a_forced_host_still_has_to_have_room(lab: Lab) -> None:
    lab = lab.with_settings(max_instances_per_host=1)
    lab.add_hosts("one", "two", vcpus=2, ram_mb=1536)
    lab.place(availability_zone="nova:one")
    lab.place(availability_zone="nova:one")  # the administrator overrules the number of servers
    lab.place(availability_zone="nova:one")
    assert "lacks" in placed_or_why(lab, availability_zone="nova:one")


def test_hints_name_servers_to_be_with_or_away_from(lab: Lab) -> None:
    lab.add_hosts("one", "two")
    ref = lab.add_server()
    host = lab.claim(ref).host
    other = {"one": "two", "two": "one"}[host]
    for _ in range(3):
        assert lab.place(scheduler_hints={"same_host": [ref.server_id]}).host == host
        assert lab.place(scheduler_hints={"same_host": ref.server_id}).host == host
        assert lab.place(scheduler_hints={"different_host": [ref.server_id]}).host == other
    assert "same_host" in placed_or_why(lab, scheduler_hints={"same_host": new_id()})


def test_a_deleted_group_asks_for_nothing(lab: Lab) -> None:
    lab.add_hosts("one")
    assert lab.place(group_id=new_id()).host == "one"
    assert lab.place(group_id=new_id()).host == "one"


def test_an_affinity_group_stays_together(lab: Lab) -> None:
    lab.add_hosts("one", "two", "three")
    group = lab.add_group("affinity")
    assert len({lab.place(group_id=group).host for _ in range(5)}) == 1

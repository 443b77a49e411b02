"""Many claims at once against a real database: never overbooked, no rule broken, none refused in vain."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from activities.control.placement import Placement
from db.hosts import usage_by_host
from db.session import reading
from domain.errors import Conflict, NoValidHost
from tests.activities.lab import Lab
from workflows.contract import ClaimHost, Placed, Ref, ReleaseClaim

# --- many at once --------------------------------------------------------------------------------

AT_ONCE = 16


def all_at_once(
    refs: Iterable[Ref], claim: Callable[[Ref], Placed], at_once: int = AT_ONCE
) -> Counter[str]:
    """host → servers placed on it; ``none`` counts the refused. Any other failure fails the test."""

    def one(ref: Ref) -> str:
        try:
            return claim(ref).host
        except NoValidHost:
            return "none"

    with ThreadPoolExecutor(at_once) as pool:
        return Counter(pool.map(one, refs))


def test_200_parallel_claims_fill_10_hosts_exactly(lab: Lab) -> None:
    lab = lab.with_settings(ram_allocation_ratio=1.0, cpu_allocation_ratio=5.0)
    lab.add_hosts(*(f"h{n}" for n in range(10)), vcpus=4, ram_mb=512 + 20 * 512)
    placements = [Placement(lab.engine, lab.settings) for _ in range(3)]  # as of three workers
    refs = [lab.add_server() for _ in range(200)]
    turns = {ref.server_id: n for n, ref in enumerate(refs)}

    def claim(ref: Ref) -> Placed:
        return placements[turns[ref.server_id] % 3].claim(ClaimHost(ref, 1))

    placed = all_at_once(refs, claim, at_once=200)
    assert placed == {f"h{n}": 20 for n in range(10)}
    with reading(lab.engine) as session:
        usage = usage_by_host(session)
    assert {(u.ram_mb, u.vcpus, u.servers) for u in usage.values()} == {(10240, 20, 20)}


def test_parallel_claims_beyond_the_room_place_exactly_what_fits(lab: Lab) -> None:
    lab = lab.with_settings(max_instances_per_host=3)
    lab.add_hosts("one", "two", ram_mb=65536, vcpus=64)
    placed = all_at_once([lab.add_server() for _ in range(30)], lab.claim)
    assert placed == {"one": 3, "two": 3, "none": 24}


def test_200_parallel_claims_in_an_anti_affinity_group_never_share_a_host(lab: Lab) -> None:
    lab.add_hosts(*(f"h{n}" for n in range(10)), ram_mb=65536)
    group = lab.add_group("anti-affinity")
    placed = all_at_once([lab.add_server(group_id=group) for _ in range(200)], lab.claim)
    assert placed == {**{f"h{n}": 1 for n in range(10)}, "none": 190}


def test_an_anti_affinity_group_may_allow_some_per_host(lab: Lab) -> None:
    lab.add_hosts("one", "two", ram_mb=65536)
    group = lab.add_group("anti-affinity", max_server_per_host=2)
    placed = all_at_once([lab.add_server(group_id=group) for _ in range(12)], lab.claim)
    assert placed == {"one": 2, "two": 2, "none": 8}


def test_the_same_claim_many_times_at_once_is_one_claim(lab: Lab) -> None:
    lab.add_hosts("one", "two", "three")
    ref = lab.add_server()
    assert len(all_at_once([ref] * 20, lab.claim)) == 1
    assert len(lab.claims()) == 1
    assert lab.server(ref).epoch == 1


def test_claims_and_releases_at_once_leave_no_claim_of_a_released_attempt(lab: Lab) -> None:
    lab.add_hosts("one", "two", ram_mb=65536)
    refs = [lab.add_server() for _ in range(40)]

    def race(job: tuple[bool, Ref]) -> None:
        releases, ref = job
        if releases:
            lab.placement.release(ReleaseClaim(ref, 1))
            return
        with suppress(Conflict):  # the release was first
            lab.claim(ref)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(race, [(releases, ref) for ref in refs for releases in (False, True)]))
    assert lab.claims() == []
    assert {lab.server(ref).host for ref in refs} == {None}

"""Selection as a whole: ranking, reasons, the nearest fix, and what holds for every request."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from domain.usage import Usage
from runtime.settings import Settings
from scheduler.filters import CapacityFilter, ComputeFilter, Filter
from scheduler.model import Aggregate, Group, HostFacts, HostState, Request, Selection
from scheduler.plugins import load_filters, load_weighers
from scheduler.select import KEPT, explain, select
from scheduler.weighers import BUILT_IN, RAMWeigher

FILTERS = load_filters(Settings().enabled_filters)
WEIGHERS = load_weighers(Settings().weigher_multipliers)
REQUEST = Request(server_id="s", project_id="p", vcpus=1, ram_mb=2048, disk_gb=1)


def host(name: str, ram_used: int = 0, down: str | None = None, **facts: Any) -> HostState:
    return HostState(
        HostFacts(
            **{
                "name": name,
                "zone": "nova",
                "vcpus": 8,
                "ram_mb": 16384,
                "disk_gb": 100,
                "vcpus_limit": 128,
                "ram_mb_limit": 16384,
                "disk_gb_limit": 100,
                "servers_limit": 50,
            }
            | facts
        ),
        Usage(ram_mb=ram_used),
        down,
    )


def decide(hosts: list[HostState], weighers: Any = WEIGHERS, **given: Any) -> Selection:
    return select(hosts, replace(REQUEST, **given), FILTERS, weighers)


def test_the_emptiest_host_is_first_and_weights_add_up() -> None:
    selection = decide([host("a", 8000), host("b", 2000), host("c", 4000)])
    assert [r.host for r in selection.ranked] == ["b", "c", "a"]
    assert [round(r.total, 3) for r in selection.ranked] == [1.0, 0.667, 0.0]
    for ranked in selection.ranked:
        assert ranked.total == sum(ranked.weights.values())


def test_a_negative_multiplier_stacks() -> None:
    stacking = load_weighers({"RAMWeigher": -1.0})
    selection = decide([host("a", 8000), host("b", 2000)], weighers=stacking)
    assert selection.ranked[0].host == "a"


def test_a_multiplier_of_zero_is_not_asked() -> None:
    assert load_weighers({"RAMWeigher": 0.0}) == ()


def test_equal_hosts_are_spread_over_servers_and_stable_for_one() -> None:
    hosts = [host(f"h{n}") for n in range(10)]
    firsts = Counter(decide(hosts, server_id=f"s{n}").ranked[0].host for n in range(300))
    assert set(firsts) == {h.name for h in hosts}
    assert max(firsts.values()) < 90
    again = [decide(list(reversed(hosts)), server_id="s1").ranked[0].host for _ in range(3)]
    assert set(again) == {decide(hosts, server_id="s1").ranked[0].host}


def test_soft_policies_prefer_but_do_not_insist() -> None:
    hosts = [host("a"), host("b", ram_used=100)]
    together = Group("g", "soft-affinity", members={"b": 1})
    apart = Group("g", "soft-anti-affinity", members={"a": 1})
    heavy = load_weighers(
        {"ServerGroupSoftAffinityWeigher": 9.0, "ServerGroupSoftAntiAffinityWeigher": 9.0}
    )
    assert decide(hosts, weighers=heavy, group=together).ranked[0].host == "b"
    assert decide(hosts, weighers=heavy, group=apart).ranked[0].host == "b"
    assert decide(hosts[:1], weighers=heavy, group=apart).ranked[0].host == "a"


def test_a_refusal_names_filters_counts_and_the_nearest_fix() -> None:
    full = [host(f"h{n}", ram_used=16384 - 100 * n) for n in range(1, 8)]
    elsewhere = [host(f"e{n}", zone="east") for n in range(3)]
    selection = decide(full + elsewhere, zone="nova")
    assert selection.counts == {"AvailabilityZoneFilter": 3, "CapacityFilter": 7}
    said = explain(selection)
    assert said.startswith("No valid host was found. 10 hosts: 3 refused by AvailabilityZoneFilter")
    assert "7 by CapacityFilter (closest h7: ram: 2048 MB wanted, 700 MB free)" in said
    assert said.endswith("Nearest: h7 lacks 1348 MB of RAM.")


def test_the_nearest_host_is_the_one_with_the_fewest_obstacles() -> None:
    selection = decide(
        [
            host(
                "far", ram_used=16384 - 2000, servers_limit=0
            ),  # a little RAM and its server limit
            host("near", ram_used=16384 - 500),  # much RAM, nothing else
        ]
    )
    assert selection.nearest == "near lacks 1548 MB of RAM"


def test_the_nearest_fix_names_every_obstacle_of_the_host() -> None:
    selection = decide([host("a", ram_used=16384, down="disabled (fan)")])
    assert selection.nearest == "a is disabled (fan) and lacks 2048 MB of RAM"


def test_a_forced_host_is_the_nearest_one() -> None:
    hosts = [host("free"), host("full", ram_used=16384)]
    selection = decide(hosts, host="full", forced=True)
    assert selection.nearest == "full lacks 2048 MB of RAM"


def test_a_cloud_without_hosts_says_so() -> None:
    assert explain(decide([])) == (
        "No valid host was found. No host has reported to this cloud yet."
    )


def test_a_fault_is_at_most_as_long_as_asked_and_keeps_counts_and_fix() -> None:
    long = "x" * 60
    hosts = [host(f"{long}{n}", ram_used=16384) for n in range(3)]
    hosts += [host("down", down="silent for 90 s"), host("east", zone="east")]
    text = explain(decide(hosts, zone="nova"), 255)
    assert len(text) <= 255
    assert "1 by ComputeFilter, 1 by AvailabilityZoneFilter, 3 by CapacityFilter" in text
    assert "Nearest: " in text
    assert len(explain(decide([host("y" * 255, down="z" * 255)]), 255)) == 255


def test_a_success_is_explained_too() -> None:
    selection = decide([host("a"), host("b", ram_used=8000), host("c", down="disabled")])
    said = explain(selection)
    assert said.startswith("a was chosen: 2 of 3 hosts passed, 1 refused by ComputeFilter.")
    assert "RAMWeigher +1.00" in said


def test_ten_thousand_hosts_are_ranked_to_the_kept_number_only() -> None:
    hosts = [host(f"h{n}", ram_used=n % 20000) for n in range(10_000)]
    selection = decide(hosts)
    assert len(selection.ranked) == KEPT
    assert selection.passed + len(selection.refusals) == selection.hosts == 10_000


# --- filters and weighers of other projects ---


class Picky(Filter):
    """One that knows nothing but ``passes``, and counts how often it is asked."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()

    def passes(self, host: HostState, request: Request) -> str | None:
        self.asked[host.name] += 1
        return "it is odd" if int(host.name[1:]) % 2 else None


class Roomy(CapacityFilter):
    """One that builds on a filter of ours which has a quicker way to judge."""

    def passes(self, host: HostState, request: Request) -> str | None:
        if host.free_ram_mb < 2 * request.ram_mb:
            return "less than twice the room"
        return super().passes(host, request)


class Reversed(RAMWeigher):
    def weigh(self, host: HostState, request: Request) -> float:
        return -super().weigh(host, request)


def test_a_filter_of_another_project_is_asked_once_for_each_host_that_comes_to_it() -> None:
    picky = Picky()
    hosts = [host(f"h{n:03}", down="off" if n < 50 else None) for n in range(300)]
    selection = select(hosts, REQUEST, (ComputeFilter(), picky), WEIGHERS)
    assert selection.counts == {"ComputeFilter": 50, "Picky": 125}
    assert selection.refusals["h051"] == "Picky: it is odd"
    assert (
        list(selection.refusals) == [h.name for h in hosts if h.down or int(h.name[1:]) % 2][:KEPT]
    )
    assert picky.asked == Counter(h.name for h in hosts if h.down is None)


def test_a_subclass_of_a_filter_or_weigher_of_ours_has_its_own_word() -> None:
    hosts = [host("a", ram_used=16384 - 3000), host("b", ram_used=8000), host("c")]
    weighers = ((Reversed(), 1.0),)
    selection = select(hosts, REQUEST, (Roomy(),), weighers)
    assert selection.refusals == {"a": "Roomy: less than twice the room"}
    assert [r.host for r in selection.ranked] == ["b", "c"]


class Stern:
    """For classes of ours to be mixed with."""

    def passes(self, host: HostState, request: Request) -> str | None:
        return "not b" if host.name == "b" else super().passes(host, request)  # type: ignore[misc]  # of the class it is mixed with

    def weigh(self, host: HostState, request: Request) -> float:
        return -super().weigh(host, request)  # type: ignore[misc]  # of the class it is mixed with


class SternFilter(Stern, CapacityFilter):
    pass


class SternWeigher(Stern, RAMWeigher):
    pass


def test_so_has_a_class_that_is_mixed_with_ours() -> None:
    hosts = [host("a", ram_used=3000), host("b"), host("c")]
    selection = select(hosts, REQUEST, (SternFilter(),), ((SternWeigher(), 1.0),))
    assert selection.refusals == {"b": "SternFilter: not b"}
    assert [r.host for r in selection.ranked] == ["a", "c"]


# --- every legal request ----------------------------------------------------------------------

names = st.sampled_from([f"h{n}" for n in range(6)])
amount = st.integers(0, 10**9)
text = st.text(max_size=12)
keys = st.one_of(
    text,
    st.sampled_from(
        ["trait:X", "trait2:Y", "resources:VCPU", "resources1:VGPU", "pci_passthrough:alias"]
    ),
    text.map(lambda t: f"capabilities:{t}"),
    text.map(lambda t: f"aggregate_instance_extra_specs:{t}"),
)
operators = st.sampled_from(["", ">= ", "= ", "s== ", "<in> ", "<or> ", "<all-in> ", "<range-in> "])
documents = st.dictionaries(keys, st.builds(str.__add__, operators, text), max_size=4)
image_keys = st.sampled_from(
    ["hw_architecture", "img_hv_type", "img_hv_requested_version", "hw_vm_mode", "trait:Z", "x"]
)
aggregates = st.builds(
    Aggregate,
    st.integers(1, 9),
    text,
    st.dictionaries(st.one_of(text, st.just("filter_tenant_id")), text, max_size=3),
)
facts = st.fixed_dictionaries(
    {
        "zone": st.sampled_from(["nova", "east"]),
        "vcpus": amount,
        "ram_mb": amount,
        "disk_gb": amount,
        "vcpus_limit": amount,
        "ram_mb_limit": amount,
        "disk_gb_limit": amount,
        "servers_limit": st.integers(0, 5),
        "hypervisor_type": text,
        "hypervisor_version": st.integers(0, 10**8),
        "capabilities": st.frozensets(st.sampled_from(["X", "Y", "Z"])),
        "aggregates": st.lists(aggregates, max_size=2).map(tuple),
    }
)
usages = st.builds(Usage, amount, amount, amount, st.integers(0, 6), st.integers(0, 6))
downs = st.one_of(st.none(), text)
some_hosts = st.dictionaries(names, st.tuples(facts, usages, downs), max_size=6)
groups = st.builds(
    Group,
    st.just("g"),
    st.sampled_from(["affinity", "anti-affinity", "soft-affinity", "soft-anti-affinity", "odd"]),
    st.integers(1, 3),
    st.dictionaries(names, st.integers(1, 4), max_size=3),
)
requests = st.builds(
    Request,
    server_id=text,
    project_id=text,
    vcpus=amount,
    ram_mb=amount,
    disk_gb=amount,
    zone=st.sampled_from([None, None, "nova", "east"]),
    host=st.one_of(st.none(), names),
    node=st.sampled_from([None, None, "n"]),
    forced=st.booleans(),
    extra_specs=documents,
    image_properties=st.dictionaries(image_keys, text, max_size=3),
    group=st.one_of(st.none(), groups),
    same_hosts=st.one_of(st.none(), st.frozensets(names)),
    different_hosts=st.one_of(st.none(), st.frozensets(names)),
    passed_over=st.frozensets(names, max_size=2),
)


@settings(max_examples=300, deadline=None)
@given(described=some_hosts, request=requests)
def test_every_legal_request_ends_in_hosts_that_no_filter_refuses(
    described: Mapping[str, tuple[dict[str, Any], Usage, str | None]], request: Request
) -> None:
    hosts = {
        name: HostState(HostFacts(name=name, **row), usage, down)
        for name, (row, usage, down) in described.items()
    }
    selection = select(list(hosts.values()), request, FILTERS, WEIGHERS)
    chosen = {r.host for r in selection.ranked}
    assert chosen | set(selection.refusals) == set(hosts)
    assert not chosen & set(selection.refusals)
    assert sum(selection.counts.values()) == len(selection.refusals)
    for name in chosen:
        assert hosts[name].down is None
        assert CapacityFilter().passes(hosts[name], request) is None
        assert request.zone in (None, hosts[name].facts.zone)
        assert name not in request.passed_over
        if request.group and request.group.policy == "anti-affinity":
            assert request.group.members.get(name, 0) < request.group.max_server_per_host
        if not request.forced:
            said = [f.passes(hosts[name], request) for f in FILTERS if f.concerns(request)]
            assert set(said) <= {None}
    assert len(explain(selection, 255)) <= 255
    assert bool(selection.nearest) == bool(hosts and not chosen)


@settings(max_examples=300, deadline=None)
@given(described=some_hosts, request=requests)
def test_the_quick_way_to_judge_and_to_weigh_says_what_the_slow_one_says(
    described: Mapping[str, tuple[dict[str, Any], Usage, str | None]], request: Request
) -> None:
    hosts = [
        HostState(HostFacts(name=name, **row), usage, down)
        for name, (row, usage, down) in described.items()
    ]
    for each in FILTERS:
        said = [each.passes(h, request) for h in hosts]
        verdicts = each.judge(hosts, request)
        assert [bool(v) for v in verdicts] == [reason is not None for reason in said]
        assert {(v, s) for v, s in zip(verdicts, said, strict=True) if isinstance(v, str)} <= {
            (s, s) for s in said
        }
    for kind in BUILT_IN:
        weigher = kind()
        assert weigher.column(hosts, request) == [weigher.weigh(h, request) for h in hosts]

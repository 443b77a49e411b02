"""Each filter and weigher on its own, by table."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from domain.errors import BadRequest
from domain.usage import Usage
from runtime.settings import Settings
from scheduler import plugins
from scheduler.constraints import matches
from scheduler.filters import ComputeFilter, Filter
from scheduler.model import Aggregate, Group, HostFacts, HostState, Request
from scheduler.plugins import load_filters, load_weighers
from scheduler.weighers import RAMWeigher

FACTS = HostFacts(
    name="one",
    zone="nova",
    vcpus=8,
    ram_mb=16384,
    disk_gb=100,
    vcpus_limit=128,
    ram_mb_limit=24000,
    disk_gb_limit=100,
    servers_limit=50,
    hypervisor_type="QEMU",
    hypervisor_version=7002000,
    hypervisor_hostname="one.example",
    cpu_model="EPYC",
    capabilities=frozenset({"COMPUTE_ACCEL_TCG", "HW_CPU_X86_AVX2"}),
)
REQUEST = Request(server_id="s", project_id="p", vcpus=1, ram_mb=512, disk_gb=1)


def ask(name: str, host: HostState, request: Request) -> str | None:
    """What the named filter says; None also when the request does not concern it."""
    one = load_filters([name])[-1]
    return one.passes(host, request) if one.concerns(request) else None


def host(usage: Usage | None = None, down: str | None = None, **facts: Any) -> HostState:
    return HostState(replace(FACTS, **facts), usage or Usage(), down)


def aggregate(**metadata: str) -> dict[str, Any]:
    return {"aggregates": (Aggregate(1, "a", metadata),)}


def specs(**given: str) -> dict[str, Any]:
    return {"extra_specs": given}


def group(policy: str, most: int = 1, **members: int) -> dict[str, Any]:
    return {"group": Group("g", policy, most, members)}


CAP, AGG = "capabilities:", "aggregate_instance_extra_specs:"

ROWS: list[tuple[str, HostState, dict[str, Any], str | None]] = [
    # filter, host, what the request has beyond the plain one, words of the refusal
    ("ComputeFilter", host(), {}, None),
    ("ComputeFilter", host(down="forced down"), {}, "forced down"),
    ("AvailabilityZoneFilter", host(), {}, None),
    ("AvailabilityZoneFilter", host(), {"zone": "nova"}, None),
    ("AvailabilityZoneFilter", host(), {"zone": "east"}, "zone east asked, host is in nova"),
    ("CapacityFilter", host(), {"ram_mb": 16384, "vcpus": 8, "disk_gb": 100}, None),
    ("CapacityFilter", host(), {"ram_mb": 16385}, "ram: 16385 MB wanted, 16384 MB free"),
    ("CapacityFilter", host(), {"vcpus": 9}, "vcpus: 9 wanted, 8 free"),
    ("CapacityFilter", host(), {"disk_gb": 101}, "disk: 101 GB wanted, 100 GB free"),
    ("CapacityFilter", host(Usage(ram_mb=23488)), {}, None),
    ("CapacityFilter", host(Usage(ram_mb=23489)), {}, "ram: 512 MB wanted, 511 MB free"),
    ("CapacityFilter", host(Usage(vcpus=128, disk_gb=200)), {}, "vcpus: 1 wanted, 0 free, disk"),
    ("NumInstancesFilter", host(Usage(servers=49)), {}, None),
    ("NumInstancesFilter", host(Usage(servers=50)), {}, "50 servers, at most 50"),
    ("SameHostFilter", host(), {}, None),
    ("SameHostFilter", host(), {"same_hosts": frozenset({"one"})}, None),
    ("SameHostFilter", host(), {"same_hosts": frozenset()}, "same_host"),
    ("DifferentHostFilter", host(), {"different_hosts": frozenset()}, None),
    ("DifferentHostFilter", host(), {"different_hosts": frozenset({"one"})}, "different_host"),
    ("ServerGroupAffinityFilter", host(), group("affinity"), None),
    ("ServerGroupAffinityFilter", host(), group("affinity", one=1), None),
    ("ServerGroupAffinityFilter", host(), group("affinity", two=1), "servers are on two"),
    ("ServerGroupAffinityFilter", host(), group("soft-affinity", two=1), None),
    ("ServerGroupAntiAffinityFilter", host(), group("anti-affinity", two=1), None),
    ("ServerGroupAntiAffinityFilter", host(), group("anti-affinity", one=1), "at most 1"),
    ("ServerGroupAntiAffinityFilter", host(), group("anti-affinity", most=2, one=1), None),
    ("ServerGroupAntiAffinityFilter", host(), group("anti-affinity", most=2, one=2), "at most 2"),
    ("ServerGroupAntiAffinityFilter", host(), group("soft-anti-affinity", one=9), None),
    ("AggregateMultiTenancyIsolation", host(), {}, None),
    ("AggregateMultiTenancyIsolation", host(**aggregate(ssd="true")), {}, None),
    ("AggregateMultiTenancyIsolation", host(**aggregate(filter_tenant_id="x, p")), {}, None),
    ("AggregateMultiTenancyIsolation", host(**aggregate(filter_tenant_id2="p")), {}, None),
    ("AggregateMultiTenancyIsolation", host(**aggregate(filter_tenant_id="x")), {}, "kept for other"),
    ("AggregateInstanceExtraSpecsFilter", host(), specs(**{AGG + "ssd": "true"}), "host has none"),
    (
        "AggregateInstanceExtraSpecsFilter",
        host(**aggregate(ssd="true")),
        specs(**{AGG + "ssd": "true"}),
        None,
    ),
    (
        "AggregateInstanceExtraSpecsFilter",
        host(**aggregate(ssd="slow, fast")),
        specs(**{AGG + "ssd": "<or> fast <or> faster"}),
        None,
    ),
    ("AggregateInstanceExtraSpecsFilter", host(**aggregate(gen="3")), specs(**{AGG + "gen": ">= 4"}), "gen"),
    ("AggregateInstanceExtraSpecsFilter", host(**aggregate(ssd="1")), specs(ssd="1"), None),
    ("AggregateInstanceExtraSpecsFilter", host(), specs(hypervisor_type="QEMU"), None),
    ("AggregateInstanceExtraSpecsFilter", host(), specs(ssd="1"), "ssd"),
    ("AggregateInstanceExtraSpecsFilter", host(), specs(**{"hw:cpu_policy": "shared"}), None),
    ("ComputeCapabilitiesFilter", host(), specs(**{"hw:cpu_policy": "shared"}), None),
    ("ComputeCapabilitiesFilter", host(), specs(**{CAP + "hypervisor_type": "s== QEMU"}), None),
    ("ComputeCapabilitiesFilter", host(), specs(**{CAP + "hypervisor_type": "ironic"}), "hypervisor_type"),
    ("ComputeCapabilitiesFilter", host(), specs(**{CAP + "hypervisor_version": ">= 7000000"}), None),
    ("ComputeCapabilitiesFilter", host(), specs(**{CAP + "vcpus_total": "> 8"}), "vcpus_total"),
    ("ComputeCapabilitiesFilter", host(), specs(**{CAP + "cpu_info:model": "<in> EPY"}), None),
    (
        "ComputeCapabilitiesFilter",
        host(),
        specs(**{CAP + "cpu_info:features": "<all-in> HW_CPU_X86_AVX2 COMPUTE_ACCEL_TCG"}),
        None,
    ),
    ("ComputeCapabilitiesFilter", host(), specs(**{CAP + "cpu_info:features": "<all-in> SGX"}), "features"),
    ("ComputeCapabilitiesFilter", host(), specs(**{CAP + "colour": "red"}), "colour is not reported"),
    ("ComputeCapabilitiesFilter", host(), specs(**{CAP + "cpu_info:x:y": "red"}), "not reported"),
    ("ComputeCapabilitiesFilter", host(), specs(**{"trait:COMPUTE_ACCEL_TCG": "required"}), None),
    ("ComputeCapabilitiesFilter", host(), specs(**{"trait:COMPUTE_ACCEL_KVM": "required"}), "missing"),
    ("ComputeCapabilitiesFilter", host(), specs(**{"trait:COMPUTE_ACCEL_KVM": "forbidden"}), None),
    ("ComputeCapabilitiesFilter", host(), specs(**{"trait:COMPUTE_ACCEL_TCG": "forbidden"}), "forbidden"),
    ("ComputeCapabilitiesFilter", host(), specs(**{"trait:COMPUTE_ACCEL_TCG": "liked"}), "neither"),
    ("ComputeCapabilitiesFilter", host(), specs(**{"trait1:CUSTOM_X": "required"}), "missing"),
    ("ComputeCapabilitiesFilter", host(), specs(**{"resources:VCPU": "2"}), None),
    ("ComputeCapabilitiesFilter", host(), specs(**{"resources:VGPU": "1"}), "VGPU is not offered"),
    ("ComputeCapabilitiesFilter", host(), specs(**{"pci_passthrough:alias": "gpu:1"}), "gpu:1 is not"),
    (
        "ComputeCapabilitiesFilter",
        host(),
        {"image_properties": {"trait:COMPUTE_ACCEL_KVM": "required"}},
        "image: trait",
    ),
]  # fmt: skip

_IMAGES: list[tuple[dict[str, str], str | None]] = [
    ({"os_distro": "debian"}, None),
    ({"hw_architecture": "x86_64"}, None),
    ({"architecture": "amd64"}, None),
    ({"hw_architecture": "i686"}, None),
    ({"hw_architecture": "aarch64"}, "needs architecture aarch64, host has x86_64"),
    ({"img_hv_type": "qemu"}, None),
    ({"hypervisor_type": "kvm"}, "needs hypervisor kvm, host has qemu"),
    ({"img_hv_type": "hyperv"}, "needs hypervisor hyperv"),
    ({"img_hv_requested_version": ">=6.0,<8.0"}, None),
    ({"hypervisor_version_requires": ">=8.0"}, "host has 7.2.0"),
    ({"img_hv_requested_version": "new!"}, "no version rule"),
    ({"hw_vm_mode": "hvm"}, None),
    ({"hw_vm_mode": "xen"}, "vm mode xen"),
]
ROWS += [
    ("ImagePropertiesFilter", host(), {"image_properties": image}, words)
    for image, words in _IMAGES
]


@pytest.mark.parametrize(("name", "state", "given", "words"), ROWS)
def test_a_filter_passes_or_says_why(
    name: str, state: HostState, given: dict[str, Any], words: str | None
) -> None:
    said = ask(name, state, replace(REQUEST, **given))
    if words is None:
        assert said is None
    else:
        assert said is not None
        assert words in said


@pytest.mark.parametrize("name", Settings().enabled_filters)
def test_every_filter_refuses_in_some_row(name: str) -> None:
    assert {words is None for n, _, _, words in ROWS if n == name} == {True, False}


def test_kvm_images_run_where_kvm_is() -> None:
    fast = host(capabilities=frozenset({"COMPUTE_ACCEL_KVM"}))
    request = replace(REQUEST, image_properties={"img_hv_type": "kvm"})
    assert ask("ImagePropertiesFilter", fast, request) is None


@pytest.mark.parametrize(
    ("value", "spec", "expected"),
    [
        ("8", "8", True),
        (8, "8", True),
        (8, "= 4", True),  # Nova's "=" is "at least"
        (8, "== 4", False),
        (8, "!= 4", True),
        (8, "<= 8", True),
        ("b", "s> a", True),
        ("b", "s!= b", False),
        ("x86_64", "<in> 86", True),
        ("b", "<or> a <or> b", True),
        ("c", "<or> a <or> b", False),
        ("15", "<range-in> [ 10 20 ]", True),
        ("two words", "two words", True),
        ("two", "two words", False),
        ("eight", ">= 4", False),
        ("8", ">= four", False),
        ("8", ">=", False),
        ("8", "<or>", False),
        ("", "", True),
        (["a", "b"], "b", True),
        (["a", "b"], "<all-in> a b", True),
        (["a"], "<all-in> a b", False),
        ("not a list", "<all-in> a", False),
    ],
)
def test_extra_spec_operators_are_novas(value: object, spec: str, expected: bool) -> None:
    assert matches(value, spec) is expected


@pytest.mark.parametrize(
    ("name", "usage", "given", "number"),
    [
        ("RAMWeigher", Usage(ram_mb=1000), {}, 23000),
        ("CPUWeigher", Usage(vcpus=28), {}, 100),
        ("DiskWeigher", Usage(disk_gb=40), {}, 60),
        ("NumInstancesWeigher", Usage(servers=7), {}, 7),
        ("IoOpsWeigher", Usage(building=3), {}, 3),
        ("ServerGroupSoftAffinityWeigher", Usage(), group("soft-affinity", one=2), 2),
        ("ServerGroupSoftAntiAffinityWeigher", Usage(), group("soft-anti-affinity", one=2), -2),
    ],
)
def test_a_weigher_gives_the_hosts_number(
    name: str, usage: Usage, given: dict[str, Any], number: float
) -> None:
    [(weigher, _)] = load_weighers({name: 1.0})
    request = replace(REQUEST, **given)
    assert weigher.concerns(request)
    assert weigher.weigh(host(usage), request) == number


@pytest.mark.parametrize(
    "name", ["ServerGroupSoftAffinityWeigher", "ServerGroupSoftAntiAffinityWeigher"]
)
def test_group_weighers_keep_silent_outside_their_policy(name: str) -> None:
    [(weigher, _)] = load_weighers({name: 1.0})
    assert not weigher.concerns(REQUEST)
    assert not weigher.concerns(replace(REQUEST, **group("anti-affinity", one=1)))


# --- plug-ins --------------------------------------------------------------------------------


class OddHostsFilter(Filter):
    """Somebody else's filter."""

    def passes(self, host: HostState, request: Request) -> str | None:
        return None if len(host.name) % 2 else "even name"


class _Entry:
    def __init__(self, target: object) -> None:
        self._target = target

    def load(self) -> object:
        return self._target


def test_the_settings_defaults_name_only_what_exists() -> None:
    assert len(load_filters(Settings().enabled_filters)) == len(Settings().enabled_filters) + 2
    assert load_weighers(Settings().weigher_multipliers)


def test_a_filter_of_another_project_is_found_by_its_entry_point(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[dict[str, str]] = []

    def entry_points(**which: str) -> list[_Entry]:
        asked.append(which)
        return [_Entry(OddHostsFilter)]

    monkeypatch.setattr(plugins, "entry_points", entry_points)
    assert isinstance(load_filters(["OddHostsFilter"])[-1], OddHostsFilter)
    assert asked == [{"group": "duranova.filters", "name": "OddHostsFilter"}]


def test_an_entry_point_that_is_no_filter_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins, "entry_points", lambda **_: [_Entry(RAMWeigher)])
    with pytest.raises(BadRequest, match="not a Filter"):
        load_filters(["RAMWeigher"])


def test_unknown_names_are_refused_at_start() -> None:
    with pytest.raises(BadRequest, match="SillyFilter"):
        load_filters(["ComputeFilter", "SillyFilter"])
    with pytest.raises(BadRequest, match="SillyWeigher"):
        load_weighers({"SillyWeigher": 1.0})


def test_a_filter_that_offers_no_fix_is_named_as_it_is() -> None:
    assert OddHostsFilter().fix(host(name="four"), REQUEST)[1] == (
        "is refused by OddHostsFilter (even name)"
    )
    assert ComputeFilter().fix(host(down="disabled"), REQUEST)[1] == "is disabled"

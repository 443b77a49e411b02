"""Filters that read the words of flavors (extra specs), images (properties) and aggregates (metadata)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache

from oslo_utils import specs_matcher, versionutils
from pyparsing import ParseBaseException

from scheduler.filters import Filter, Verdict
from scheduler.model import HostFacts, HostState, Request

_CAPABILITIES = "capabilities:"
_AGGREGATE = "aggregate_instance_extra_specs:"
_TENANTS = "filter_tenant_id"

# Which image architectures a host runs; Nova's spellings fold into libvirt's.
_ARCHITECTURES = {"amd64": "x86_64", "x64": "x86_64", "arm64": "aarch64", "i386": "i686"}
_ALSO_RUNS = {"x86_64": "i686", "aarch64": "armv7l", "ppc64": "ppc", "s390x": "s390"}


@lru_cache(maxsize=4096)
def _parse(spec: str) -> tuple[str, ...]:
    """The words of a specification such as ``>= 4`` or ``<or> a <or> b``; alone when it is a plain text."""
    try:
        words = tuple(str(word) for word in specs_matcher.make_grammar().parse_string(spec))
    except ParseBaseException:
        return (spec,)
    return words if len(words) > 1 else (spec,)


def matches(value: object, spec: str) -> bool:
    """Whether a host's value satisfies a specification in the operators of Nova's extra specs.

    A list matches ``<all-in>`` as a whole and every other specification by any of its items.
    """
    words = _parse(spec.strip())
    try:
        if isinstance(value, (list, tuple, frozenset)):
            if words[0] == "<all-in>":
                return set(words[1:]) <= {str(item) for item in value}
            return any(matches(item, spec) for item in value)
        if len(words) == 1:
            return str(value) == words[0]
        return bool(specs_matcher.op_methods[words[0]](str(value), *words[1:]))
    except (ValueError, TypeError, SyntaxError):
        return False  # a number was expected on one side


def _by_kind(
    judging: Filter,
    hosts: Sequence[HostState],
    request: Request,
    kind: Callable[[HostState], object],
) -> Sequence[Verdict]:
    """Asks once for each ``kind``, which is all that the filter looks at: of thousands of hosts there are few."""
    known: dict[object, Verdict] = {}
    verdicts: list[Verdict] = []
    for host in hosts:
        key = kind(host)
        verdict = known.get(key)
        if verdict is None:
            verdict = known[key] = judging.passes(host, request) or False
        verdicts.append(verdict)
    return verdicts


class ImagePropertiesFilter(Filter):
    """Architecture, hypervisor and hypervisor version that the image asks for."""

    def concerns(self, request: Request) -> bool:
        names = request.image_properties.keys()
        return any(
            n.startswith(("hw_arch", "arch", "img_hv", "hypervisor", "hw_vm_mode")) for n in names
        )

    def judge(self, hosts: Sequence[HostState], request: Request) -> Sequence[Verdict]:
        return _by_kind(self, hosts, request, _hardware)

    def passes(self, host: HostState, request: Request) -> str | None:
        asked = request.image_properties
        return (
            _architecture(host.facts, asked.get("hw_architecture") or asked.get("architecture"))
            or _hypervisor(host.facts, asked.get("img_hv_type") or asked.get("hypervisor_type"))
            or _version(
                host.facts,
                asked.get("img_hv_requested_version") or asked.get("hypervisor_version_requires"),
            )
            or _vm_mode(asked.get("hw_vm_mode"))
        )


def _hardware(host: HostState) -> object:
    facts = host.facts
    version = facts.hypervisor_version
    return facts.cpu_arch, facts.hypervisor_type, version, facts.capabilities


def _architecture(facts: HostFacts, wanted: str | None) -> str | None:
    if not wanted:
        return None
    arch = _ARCHITECTURES.get(wanted.lower(), wanted.lower())
    if arch in (facts.cpu_arch, _ALSO_RUNS.get(facts.cpu_arch)):
        return None
    return f"the image needs architecture {wanted}, host has {facts.cpu_arch}"


def _hypervisor(facts: HostFacts, wanted: str | None) -> str | None:
    if not wanted:
        return None
    has = facts.hypervisor_type.lower()
    is_qemu = has in ("qemu", "kvm")
    offers = {has}
    if is_qemu:
        offers.add("qemu")
        if "COMPUTE_ACCEL_KVM" in facts.capabilities:
            offers.add("kvm")
    if wanted.lower() in offers:
        return None
    return f"the image needs hypervisor {wanted}, host has {', '.join(sorted(offers))}"


def _version(facts: HostFacts, wanted: str | None) -> str | None:
    if not wanted:
        return None
    has = versionutils.convert_version_to_str(facts.hypervisor_version)
    try:
        if versionutils.VersionPredicate(wanted).satisfied_by(has):
            return None
    except ValueError:
        return f"the image asks for hypervisor version {wanted!r}, which is no version rule"
    return f"the image needs hypervisor version {wanted}, host has {has}"


def _vm_mode(wanted: str | None) -> str | None:
    return (
        None if wanted in (None, "", "hvm") else f"the image needs vm mode {wanted}, only hvm runs"
    )


class ComputeCapabilitiesFilter(Filter):
    """``capabilities:`` extra specs, traits, and things no host here has (PCI devices, custom resources).

    A request for something unknown refuses the host: nothing is silently left out.
    """

    def concerns(self, request: Request) -> bool:
        keys = request.extra_specs.keys()
        prefixes = (_CAPABILITIES, "trait:", "resources", "pci_passthrough:")
        return any(k.startswith(prefixes) or _is_numbered_group(k) for k in keys) or any(
            k.startswith("trait:") for k in request.image_properties
        )

    def judge(self, hosts: Sequence[HostState], request: Request) -> Sequence[Verdict]:
        if any(key.startswith(_CAPABILITIES) for key in request.extra_specs):
            return super().judge(hosts, request)
        return _by_kind(self, hosts, request, lambda host: host.facts.capabilities)

    def passes(self, host: HostState, request: Request) -> str | None:
        document: dict[str, object] | None = None
        for key, spec in request.extra_specs.items():
            if key.startswith(_CAPABILITIES):
                document = document if document is not None else capabilities(host)
                refusal = _capability(document, key, spec)
            else:
                refusal = _offered(host.facts, key, spec)
            if refusal:
                return refusal
        for key, spec in request.image_properties.items():
            if key.startswith("trait:") and (refusal := _offered(host.facts, key, spec)):
                return f"image: {refusal}"
        return None


def _is_numbered_group(key: str) -> bool:
    """``trait1:…`` and ``trait_NET:…``: a group of their own; with one provider per host, the same."""
    return key.startswith("trait") and ":" in key


def _offered(facts: HostFacts, key: str, spec: str) -> str | None:
    if _is_numbered_group(key):
        return _trait(facts, key.partition(":")[2], spec)
    kind, _, what = key.partition(":")
    if kind.startswith("resources") and what not in ("VCPU", "MEMORY_MB", "DISK_GB"):
        return f"resource {what} is not offered"
    return f"PCI device {spec} is not offered" if key.startswith("pci_passthrough:") else None


def _trait(facts: HostFacts, names: str, rule: str) -> str | None:
    wanted = names.removeprefix("in:").split(",")
    has = any(name.strip() in facts.capabilities for name in wanted)
    if rule == "required":
        return None if has else f"trait {names} is missing"
    if rule == "forbidden":
        return f"trait {names} is forbidden" if has else None
    return f"trait {names}: {rule!r} is neither required nor forbidden"


def capabilities(host: HostState) -> dict[str, object]:
    """What ``capabilities:`` extra specs may ask about, under Nova's names."""
    facts, usage = host.facts, host.usage
    return {
        "host": facts.name,
        "hypervisor_hostname": facts.hypervisor_hostname,
        "hypervisor_type": facts.hypervisor_type,
        "hypervisor_version": facts.hypervisor_version,
        "cpu_info": {
            "arch": facts.cpu_arch,
            "model": facts.cpu_model,
            "features": facts.capabilities,
        },
        "traits": facts.capabilities,
        "host_ip": facts.host_ip,
        "vcpus_total": facts.vcpus,
        "vcpus_used": usage.vcpus,
        "total_usable_ram_mb": facts.ram_mb,
        "free_ram_mb": facts.ram_mb - usage.ram_mb,
        "total_usable_disk_gb": facts.disk_gb,
        "free_disk_mb": (facts.disk_gb - usage.disk_gb) * 1024,
        "num_instances": usage.servers,
        "num_io_ops": usage.building,
    }


def _capability(document: Mapping[str, object], key: str, spec: str) -> str | None:
    name = key.removeprefix(_CAPABILITIES)
    value: object = document
    for part in name.split(":"):
        if not isinstance(value, Mapping) or part not in value:
            return f"capability {name} is not reported"
        value = value[part]
    return None if matches(value, spec) else f"capability {name}: {spec} wanted, host has {value}"


class AggregateInstanceExtraSpecsFilter(Filter):
    """``aggregate_instance_extra_specs:`` extra specs against the metadata of the host's aggregates.

    Extra specs without any scope, which flavors of old carry, may be met by an aggregate or a capability.
    """

    def concerns(self, request: Request) -> bool:
        return any(k.startswith(_AGGREGATE) or ":" not in k for k in request.extra_specs)

    def judge(self, hosts: Sequence[HostState], request: Request) -> Sequence[Verdict]:
        if any(":" not in key for key in request.extra_specs):
            return super().judge(hosts, request)  # a capability may do
        return _by_kind(self, hosts, request, lambda host: id(host.facts.aggregates))

    def passes(self, host: HostState, request: Request) -> str | None:
        for key, spec in request.extra_specs.items():
            name = key.removeprefix(_AGGREGATE)
            if key == name and ":" in key:
                continue
            values: list[object] = list(_metadata(host.facts, name))
            if key == name and name in (known := capabilities(host)):
                values.append(known[name])
            if not any(matches(value, spec) for value in values):
                return f"aggregate metadata {name}: {spec} wanted, host has {values or 'none'}"
        return None


class AggregateMultiTenancyIsolation(Filter):
    """Hosts of an aggregate with ``filter_tenant_id…`` are for those projects alone."""

    def judge(self, hosts: Sequence[HostState], request: Request) -> Sequence[Verdict]:
        return _by_kind(self, hosts, request, lambda host: id(host.facts.aggregates))

    def passes(self, host: HostState, request: Request) -> str | None:
        if not host.facts.aggregates:
            return None
        allowed = {
            project
            for aggregate in host.facts.aggregates
            for key in aggregate.metadata
            if key.startswith(_TENANTS)
            for project in _split(aggregate.metadata[key])
        }
        if not allowed or request.project_id in allowed:
            return None
        return "the host is kept for other projects"


def _metadata(facts: HostFacts, key: str) -> Iterable[str]:
    for aggregate in facts.aggregates:
        if key in aggregate.metadata:
            yield from _split(aggregate.metadata[key])


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",")]


BUILT_IN: tuple[type[Filter], ...] = (
    ImagePropertiesFilter,
    ComputeCapabilitiesFilter,
    AggregateInstanceExtraSpecsFilter,
    AggregateMultiTenancyIsolation,
)

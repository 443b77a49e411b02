"""The grammar of flavor extra specs."""

from __future__ import annotations

import pytest

from domain.errors import BadRequest
from domain.flavor import check_extra_spec


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rack", "anything"),
        ("my:own:key", ""),
        ("hw:cpu_policy", "dedicated"),
        ("hw:cpu_max_threads", "2"),
        ("hw:cpu_realtime_mask", "^0-1,3"),
        ("hw:mem_page_size", "2MB"),
        ("hw:numa_cpus.0", "0,2-3"),
        ("hw:numa_mem.1", "512"),
        ("hw:watchdog_action", "poweroff"),
        ("hw:hide_hypervisor_id", "True"),
        ("hw_rng:allowed", "no"),
        ("quota:cpu_quota", "-1"),
        ("quota:disk_read_iops_sec", "100"),
        ("quota:vif_inbound_average", "1"),
        ("resources:VCPU", "2"),
        ("resources_a:CUSTOM_GOLD", "1"),
        ("trait:HW_CPU_X86_AVX2", "required"),
        ("trait1:CUSTOM_FAST", "forbidden"),
        ("os:secure_boot", "required"),
        ("pci_passthrough:alias", "gpu:1,nic:2"),
        ("capabilities:cpu_info:arch", "x86_64"),
        ("aggregate_instance_extra_specs:ssd", "true"),
        ("accel:device_profile", "fpga"),
        ("group_policy", "isolate"),
    ],
)
def test_a_proper_spec_passes(key: str, value: str) -> None:
    check_extra_spec(key, value)


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("hw:cpu_policy", "magic", "'magic' is not one of: dedicated, shared, mixed."),
        ("hw:cpu_cores", "0", "'0' is less than the min value of '1'."),
        ("hw:cpu_cores", "two", "'two' is not a valid integer value."),
        ("hw:redirected_usb_ports", "16", "'16' is greater than the max value of '15'."),
        ("hw:boot_menu", "perhaps", "'perhaps' is not a valid boolean-like value."),
        ("hw:numa_cpus.0", "a", "'a' is not of the format"),
        ("hw:numa_cpus.x", "0", "extra spec 'hw:numa_cpus.x' does not appear to be a valid"),
        ("hw:no_such", "1", "extra spec 'hw:no_such' does not appear to be a valid extra spec."),
        ("trait:hw_lower", "required", "does not appear to be a valid extra spec."),
        ("trait:HW_CPU_X86_AVX2", "yes", "'yes' is not one of: required, forbidden."),
        ("resources:GOLD", "1", "does not appear to be a valid extra spec."),
        ("quota:cpu_limit", "-1", "'-1' is less than the min value of '0'."),
        ("os:anything", "1", "does not appear to be a valid extra spec."),
    ],
)
def test_an_improper_spec_is_refused_with_its_reason(key: str, value: str, reason: str) -> None:
    with pytest.raises(BadRequest) as caught:
        check_extra_spec(key, value)
    assert caught.value.message.startswith("Validation failed; ")
    assert reason in caught.value.message

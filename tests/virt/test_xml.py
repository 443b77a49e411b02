"""The domain definition a specification becomes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.errors import GuestRefused
from domain.guest import GuestSpec, ImageRef
from domain.ids import tap_name
from tests.virt.subjects import nic
from virt.libvirt.xml import Disk, Machine, domain_xml

SERVER = "11111111-2222-3333-4444-555555555555"
DISKS = [
    Disk(Path("/s/root.qcow2"), "qcow2"),
    Disk(Path("/s/swap.raw"), "raw"),
    Disk(Path("/s/config-drive.iso"), "raw", read_only=True),
]


def spec(**properties: str) -> GuestSpec:
    image = ImageRef("i", "0" * 128, "qcow2", 1, properties)
    return GuestSpec(SERVER, "web", "p", 2, 128, 1, image)


def built(guest: GuestSpec, machine: Machine | None = None) -> ElementTree.Element:
    text = domain_xml(guest, 7, DISKS, Path("/s/console.log"), machine or Machine())
    return ElementTree.fromstring(text)


def test_a_guest_is_named_after_its_server_and_says_so_to_cloud_init() -> None:
    root = built(spec())
    assert root.findtext("uuid") == SERVER
    assert root.findtext("name") == f"duranova-{SERVER}"
    assert root.findtext("sysinfo/system/entry[@name='product']") == "OpenStack Compute"
    (guest,) = root.findall("metadata/{*}guest")
    assert guest.get("epoch") == "7"


def test_tcg_guests_get_a_small_cache_and_kvm_guests_none() -> None:
    assert built(spec()).findtext("features/tcg/tb-cache") == "64"
    assert built(spec(), Machine("kvm", "host-model")).find("features/tcg") is None


@pytest.mark.parametrize(
    ("bus", "targets"),
    [
        ("virtio", ["vda", "vdb", "vdz"]),
        ("scsi", ["sda", "sdb", "sdc"]),
        ("ide", ["hda", "hdb", "hdc"]),
        ("sata", ["sda", "sdb", "sdc"]),
    ],
)
def test_disks_follow_the_images_bus(bus: str, targets: list[str]) -> None:
    root = built(spec(hw_disk_bus=bus))
    assert [t.get("dev") for t in root.findall("devices/disk/target")] == targets
    assert {t.get("bus") for t in root.findall("devices/disk/target")} == {bus}
    kinds = [d.get("device") for d in root.findall("devices/disk")]
    assert kinds[-1] == ("cdrom" if bus in ("ide", "sata") else "disk")
    assert len(root.findall("devices/disk/readonly")) == 1


def test_a_nic_uses_the_tap_that_was_made_for_it() -> None:
    card = nic("n1")
    (interface,) = built(replace(spec(), nics=(card,))).findall("devices/interface")
    target = interface.find("target")
    assert target is not None
    assert target.attrib == {"dev": tap_name(card.port_id), "managed": "no"}
    model = built(replace(spec(hw_vif_model="e1000"), nics=(card,))).find("devices/interface/model")
    assert model is not None
    assert model.get("type") == "e1000"


@pytest.mark.parametrize(
    "properties",
    [
        {"hw_disk_bus": "floppy"},
        {"hw_vif_model": "token-ring"},
        {"hw_video_model": "hercules"},
        {"hw_watchdog_action": "bite"},
        {"hw_firmware_type": "coreboot"},
        {"hw_cpu_cores": "many"},
        {"hw_cpu_cores": "0"},
        {"hw_cpu_sockets": "3"},
    ],
    ids=str,
)
def test_impossible_hardware_is_refused(properties: dict[str, str]) -> None:
    with pytest.raises(GuestRefused):
        built(replace(spec(**properties), nics=(nic("n1"),)))


def test_the_flavors_topology_counts_before_the_images() -> None:
    guest = replace(spec(hw_cpu_cores="1"), extra_specs={"hw:cpu_cores": "2"})
    topology = built(guest).find("cpu/topology")
    assert topology is not None
    assert topology.attrib == {"sockets": "1", "cores": "2", "threads": "1"}


def test_qemu_runs_as_root_where_libvirt_would_change_the_user() -> None:
    root = built(spec(), Machine(security_models=("none", "dac", "apparmor")))
    assert root.findtext("seclabel[@model='dac']/label") == "+0:+0"
    (apparmor,) = root.findall("seclabel[@model='apparmor']")
    assert apparmor.get("type") == "none"
    assert built(spec()).findall("seclabel") == []


@given(st.text())
def test_any_server_name_makes_a_well_formed_definition(name: str) -> None:
    root = built(replace(spec(), name=name, hostname="h"))
    assert root.findtext("uuid") == SERVER

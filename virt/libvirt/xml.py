"""A guest's libvirt domain definition, from its specification. Pure: no libvirt, no files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from string import ascii_lowercase
from xml.etree import ElementTree

from pydantic import TypeAdapter

from domain.errors import GuestRefused
from domain.guest import GuestSpec, NicSpec
from domain.ids import guest_name, tap_name

NAMESPACE = "https://duranova.dev/xmlns/guest/1"
TB_CACHE_MIB = 64
"""QEMU's translation cache: 64 is as fast as its default and saves some 80 MiB a guest."""

_SPEC = TypeAdapter(GuestSpec)
_ROOT_TARGET = {"virtio": "vd", "scsi": "sd", "sata": "sd", "ide": "hd", "usb": "sd"}
_VIF_MODELS = ("virtio", "e1000", "e1000e", "rtl8139", "ne2k_pci", "pcnet", "vmxnet3")
_VIDEO_MODELS = ("none", "vga", "cirrus", "virtio", "bochs", "qxl")
_WATCHDOG_ACTIONS = ("disabled", "reset", "poweroff", "pause", "none")


@dataclass(frozen=True, slots=True)
class Disk:
    """One disk of a guest: a file, how it is written, and whether the guest may write it."""

    path: Path
    format: str
    read_only: bool = False
    serial: str = ""


@dataclass(frozen=True, slots=True)
class Machine:
    """What the host gives every guest, whatever its specification."""

    domain_type: str = "qemu"
    """``qemu`` (TCG), ``kvm``, or ``test``."""
    cpu_model: str = "qemu64"
    """A model name, or ``host-model``/``host-passthrough`` (KVM only)."""
    disk_cache: str = "none"
    security_models: tuple[str, ...] = field(default=())


def domain_xml(
    spec: GuestSpec, epoch: int, disks: list[Disk], console: Path, machine: Machine
) -> str:
    """The definition of a guest. GuestRefused for an image property with an impossible value."""
    properties = spec.image.properties
    root = ElementTree.Element("domain", type=machine.domain_type)
    _add(root, "name", guest_name(spec.server_id))
    _add(root, "uuid", spec.server_id)
    _add(root, "title", spec.name)
    _metadata(root, spec, epoch)
    _add(root, "memory", str(spec.ram_mb), unit="MiB")
    _add(root, "vcpu", str(spec.vcpus), placement="static")
    _identity(root, spec)
    _firmware(root, properties)
    _features(root, machine)
    _cpu(root, spec, machine)
    windows = properties.get("os_type") == "windows"
    _add(root, "clock", offset="localtime" if windows else "utc")
    for event, action in (("poweroff", "destroy"), ("reboot", "restart"), ("crash", "destroy")):
        _add(root, f"on_{event}", action)
    devices = _add(root, "devices")
    _disks(devices, disks, properties, machine)
    for nic in spec.nics:
        _nic(devices, nic, properties)
    _serial_console(devices, console)
    _paravirtual(devices, properties)
    _security(root, machine)
    return ElementTree.tostring(root, encoding="unicode")


def _add(
    parent: ElementTree.Element, tag: str, text: str | None = None, **attributes: str
) -> ElementTree.Element:
    child = ElementTree.SubElement(parent, tag, attributes)
    child.text = text if text is None else _printable(text)
    return child


def _printable(text: str) -> str:
    """XML has no words for control characters; a server's name may hold them."""
    return "".join(c for c in text if c.isprintable())


def _choice(properties: Mapping[str, str], name: str, default: str, allowed: object) -> str:
    value = properties.get(name, default)
    if value not in allowed:  # type: ignore[operator]  # any container of names
        raise GuestRefused(f"image property {name}={value!r} is not supported")
    return value


def _metadata(root: ElementTree.Element, spec: GuestSpec, epoch: int) -> None:
    ElementTree.register_namespace("duranova", NAMESPACE)
    guest = _add(_add(root, "metadata"), f"{{{NAMESPACE}}}guest", epoch=str(epoch))
    for tag, text in (
        ("name", spec.name),
        ("project", spec.project_id),
        ("image", spec.image.id),
        ("spec", _SPEC.dump_json(spec).decode()),
    ):
        _add(guest, f"{{{NAMESPACE}}}{tag}", text)


def _identity(root: ElementTree.Element, spec: GuestSpec) -> None:
    # cloud-init looks for this product name before it asks the OpenStack metadata service.
    system = _add(_add(root, "sysinfo", type="smbios"), "system")
    for name, text in (
        ("manufacturer", "OpenStack Foundation"),
        ("product", "OpenStack Compute"),
        ("uuid", spec.server_id),
        ("family", "Virtual Machine"),
    ):
        _add(system, "entry", text, name=name)


def _firmware(root: ElementTree.Element, properties: Mapping[str, str]) -> None:
    efi = _choice(properties, "hw_firmware_type", "bios", ("bios", "uefi")) == "uefi"
    os = _add(root, "os", **({"firmware": "efi"} if efi else {}))
    machine = properties.get("hw_machine_type", "q35" if efi else "pc")
    _add(os, "type", "hvm", arch="x86_64", machine=machine)
    _add(os, "boot", dev="hd")
    _add(os, "smbios", mode="sysinfo")


def _features(root: ElementTree.Element, machine: Machine) -> None:
    features = _add(root, "features")
    _add(features, "acpi")
    _add(features, "apic")
    if machine.domain_type == "qemu":
        _add(_add(features, "tcg"), "tb-cache", str(TB_CACHE_MIB), unit="MiB")


def _cpu(root: ElementTree.Element, spec: GuestSpec, machine: Machine) -> None:
    if machine.domain_type == "test":
        return
    if machine.cpu_model in ("host-model", "host-passthrough"):
        cpu = _add(root, "cpu", mode=machine.cpu_model)
    else:
        cpu = _add(root, "cpu", mode="custom", match="exact", check="none")
        _add(cpu, "model", machine.cpu_model, fallback="allow")
    threads = _count(spec, "threads", 1)
    cores = _count(spec, "cores", 1)
    sockets = _count(spec, "sockets", max(1, spec.vcpus // (threads * cores)))
    if threads * cores * sockets != spec.vcpus:
        raise GuestRefused(
            f"a topology of {sockets} sockets, {cores} cores and {threads} threads"
            f" does not make {spec.vcpus} vCPUs"
        )
    topology = {"sockets": str(sockets), "cores": str(cores), "threads": str(threads)}
    _add(cpu, "topology", **topology)


def _count(spec: GuestSpec, what: str, default: int) -> int:
    """A topology number: the flavor's word counts before the image's."""
    text = spec.extra_specs.get(f"hw:cpu_{what}") or spec.image.properties.get(f"hw_cpu_{what}")
    if text is None:
        return default
    if not text.isdecimal() or int(text) < 1:
        raise GuestRefused(f"{text!r} is not a number of {what}")
    return int(text)


def _disks(
    devices: ElementTree.Element,
    disks: list[Disk],
    properties: Mapping[str, str],
    machine: Machine,
) -> None:
    bus = _choice(properties, "hw_disk_bus", "virtio", _ROOT_TARGET)
    if bus == "scsi":
        model = properties.get("hw_scsi_model", "virtio-scsi")
        _add(devices, "controller", type="scsi", index="0", model=model)
    if bus != "usb":
        _add(devices, "controller", type="usb", model="none")
    for index, disk in enumerate(disks):
        # The config drive sits at the far end so that volumes attached later follow the others.
        letter = "z" if disk.read_only and bus == "virtio" else ascii_lowercase[index]
        # Neither IDE nor SATA disks can be read-only; a guest that has these reads a CD-ROM.
        cdrom = disk.read_only and bus in ("ide", "sata")
        node = _add(devices, "disk", type="file", device="cdrom" if cdrom else "disk")
        driver = _add(node, "driver", name="qemu", type=disk.format, cache=machine.disk_cache)
        if not disk.read_only:
            driver.set("discard", "unmap")
        _add(node, "source", file=str(disk.path))
        _add(node, "target", dev=f"{_ROOT_TARGET[bus]}{letter}", bus=bus)
        if disk.serial:
            _add(node, "serial", disk.serial)
        if disk.read_only:
            _add(node, "readonly")


def _nic(devices: ElementTree.Element, nic: NicSpec, properties: Mapping[str, str]) -> None:
    """The tap is there before the guest: made, filtered and put on its bridge by the host."""
    model = _choice({"hw_vif_model": nic.vnic_model, **properties}, "hw_vif_model", "", _VIF_MODELS)
    node = _add(devices, "interface", type="ethernet")
    _add(node, "mac", address=nic.mac)
    _add(node, "target", dev=tap_name(nic.port_id), managed="no")
    _add(node, "model", type=model)
    if model == "virtio":
        _add(node, "mtu", size=str(nic.mtu))
    _add(node, "rom", enabled="no")


def _serial_console(devices: ElementTree.Element, console: Path) -> None:
    serial = _add(devices, "serial", type="pty")
    _add(serial, "log", file=str(console), append="on")
    _add(serial, "target", port="0")
    _add(_add(devices, "console", type="pty"), "target", type="serial", port="0")


def _paravirtual(devices: ElementTree.Element, properties: Mapping[str, str]) -> None:
    channel = _add(devices, "channel", type="unix")
    _add(channel, "target", type="virtio", name="org.qemu.guest_agent.0")
    rng = _add(devices, "rng", model="virtio")
    _add(rng, "backend", "/dev/urandom", model="random")
    _add(_add(devices, "memballoon", model="virtio"), "stats", period="10")
    video = _choice(properties, "hw_video_model", "none", _VIDEO_MODELS)
    _add(_add(devices, "video"), "model", type=video)
    action = _choice(properties, "hw_watchdog_action", "disabled", _WATCHDOG_ACTIONS)
    if action != "disabled":
        _add(devices, "watchdog", model="i6300esb", action=action)


def _security(root: ElementTree.Element, machine: Machine) -> None:
    """QEMU runs as root, since only root reads the data directory; no labels are put on files."""
    if machine.domain_type == "test":
        return
    if "dac" in machine.security_models:
        label = _add(root, "seclabel", type="static", model="dac", relabel="no")
        _add(label, "label", "+0:+0")
    for model in ("apparmor", "selinux"):
        if model in machine.security_models:
            _add(root, "seclabel", type="none", model=model)

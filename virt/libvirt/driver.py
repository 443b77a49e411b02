"""The hypervisor behind libvirt: QEMU guests on this host's disk.

Everything of a guest lies in ``<state>/instances/<server id>/``: its record (``guest.json``), disks,
config drive and console log. The record is written first and removed last, so a guest that is only
half there can always be finished or removed.
"""

from __future__ import annotations

import shutil
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from domain.errors import Fenced, GuestFailure, GuestRefused, NotFound
from domain.guest import Fence, GuestReport, GuestSpec, Inventory, NicSpec
from domain.ids import guest_name
from domain.states import PowerState
from virt import disks
from virt.disks import ImageCache
from virt.driver import Driver, Progress, Supplies, from_stage
from virt.ledger import Ledger, safe_id
from virt.libvirt.connection import Connection, HostFacts, Seen
from virt.libvirt.events import ChangeFeed
from virt.libvirt.instances import Instances
from virt.libvirt.xml import Machine, domain_xml

POLL_S = 0.1
KILL_WITHIN_S = 30.0
PRESS_AGAIN_S = 10.0
"""A guest that is still booting does not hear the power button: press it again after this long."""
CHORES_EVERY_S = 1.0
FORGET_EVERY_S = 3600.0


class Network(Protocol):
    """What the driver asks of ``virt.nics.HostNetwork``."""

    def open(self) -> None: ...
    def close(self) -> None: ...
    def plug(self, server_id: str, nics: Sequence[NicSpec]) -> None: ...
    def unplug(self, server_id: str) -> None: ...
    def apply(self, server_id: str, nics: Sequence[NicSpec]) -> None: ...
    def residue(self, server_id: str | None = None) -> list[str]: ...
    def owners(self) -> set[str]: ...
    def networks(self) -> list[str]: ...


@dataclass(frozen=True, slots=True)
class LibvirtHost:
    """How this host is to be driven."""

    name: str
    uri: str
    state_dir: Path
    domain_type: str = "qemu"
    """``qemu`` is TCG and always works; ``kvm`` only where a guest was seen to boot with it."""
    cpu_model: str = "qemu64"
    console_max_bytes: int = 1024**2
    """A console log is cut at this size; twice as much is kept."""
    unused_image_ttl_s: float = 86_400.0
    tombstone_ttl_s: float = 30 * 86_400.0
    qemu_log_dir: Path = Path("/var/log/libvirt/qemu")
    host_ip: str = "127.0.0.1"


class LibvirtDriver(Driver):
    """One libvirt host."""

    def __init__(self, host: LibvirtHost, supplies: Supplies, network: Network) -> None:
        self._host = host
        self._supplies = supplies
        self._network = network
        self._feed = ChangeFeed(self._chores, CHORES_EVERY_S)
        self._libvirt = Connection(host.uri, self._feed.ring)
        self._images = ImageCache(host.state_dir / "images", supplies)
        self._instances = Instances(host.state_dir / "instances", host.qemu_log_dir)
        self._ledger: Ledger
        self._facts: HostFacts
        self._machine = Machine(host.domain_type, host.cpu_model)
        self._forget_at = 0.0

    # --- the host -------------------------------------------------------------------------------

    def open(self) -> None:
        self._images.open()
        self._instances.open()
        self._ledger = Ledger(self._host.state_dir / "ledger")
        self._libvirt.open()
        self._facts = self._libvirt.facts()
        self._libvirt.warm_up(self._facts.arch, "pc", self._host.domain_type)
        direct = disks.supports_direct_io(self._host.state_dir)
        self._machine = replace(
            self._machine,
            disk_cache="none" if direct else "writeback",
            security_models=self._facts.security_models,
        )
        self._network.open()
        self._feed.start()

    def close(self) -> None:
        self._feed.stop()
        self._network.close()
        self._libvirt.close()

    def inventory(self) -> Inventory:
        facts = self._libvirt.facts()
        accelerator = "KVM" if self._host.domain_type == "kvm" else "TCG"
        return Inventory(
            vcpus=facts.vcpus,
            ram_mb=facts.ram_mb,
            disk_gb=shutil.disk_usage(self._host.state_dir).total // disks.GIB,
            hypervisor_type=facts.hypervisor_type,
            hypervisor_version=facts.hypervisor_version,
            hypervisor_hostname=self._host.name,
            cpu_arch=facts.arch,
            cpu_model=facts.cpu_model,
            capabilities=(f"COMPUTE_ACCEL_{accelerator}", f"HW_ARCH_{facts.arch.upper()}"),
            host_ip=self._host.host_ip,
            uuid=facts.uuid or str(uuid.uuid5(uuid.NAMESPACE_DNS, self._host.name)),
        )

    def guests(self) -> list[GuestReport]:
        seen = {s.uuid: s.power for s in self._libvirt.domains(guest_name(""))}
        # A folder without a domain is a guest too: its definition was lost, its disk was not.
        undefined = dict.fromkeys(set(self._instances.ids()) - set(seen), PowerState.NOSTATE)
        return [
            GuestReport(server_id, power, self._ledger.entry(server_id).accepted or 0)
            for server_id, power in sorted({**seen, **undefined}.items())
        ]

    def on_change(self, notify: Callable[[], None]) -> None:
        self._feed.listen(notify)

    def forget_unused(self) -> None:
        """Remove cached images no guest stands on and tombstones nobody can need any more."""
        self._images.forget_unused(self._host.unused_image_ttl_s, self._bases_in_use)
        self._ledger.forget(self._host.tombstone_ttl_s, keep=set(self._instances.ids()))

    # --- one guest ------------------------------------------------------------------------------

    def spawn(
        self, spec: GuestSpec, fence: Fence, progress: Progress, resume_at: str | None = None
    ) -> PowerState:
        server_id = safe_id(spec.server_id)
        self._ledger.admit(server_id, fence)
        seen = settled(self._libvirt, server_id, progress)
        if seen is not None and seen.active:
            return seen.power
        known = self._instances.recall(server_id)
        going_on = known is not None and known.epoch == fence.epoch
        self._instances.remember(spec, fence.epoch)
        try:
            stages = from_stage(self._stages(spec), resume_at if going_on else None)
            for stage, effect, announced in stages:
                if announced:
                    progress.step(stage)
                self._ledger.check(server_id, fence)
                effect(progress)
            self._ledger.check(server_id, fence)
        except Fenced:
            if self._ledger.is_buried(server_id):
                self._remove(server_id)  # the destroy that overtook us could not see our last step
            raise
        return started(self._libvirt, server_id, progress)

    def destroy(self, server_id: str, fence: Fence) -> None:
        if self._ledger.bury(safe_id(server_id), fence):
            self._remove(server_id)

    def start(self, spec: GuestSpec) -> PowerState:
        seen = settled(self._libvirt, safe_id(spec.server_id), Progress())
        if seen is None or not seen.active:
            self._known(spec.server_id)
            self._boot(spec, Progress())
        return started(self._libvirt, spec.server_id, Progress())

    def stop(self, server_id: str, timeout_s: float, progress: Progress) -> PowerState:
        seen = self._present(server_id)
        if seen.active and not shut_down(self._libvirt, seen, timeout_s, progress):
            kill(self._libvirt, server_id)
        return self.power_state(server_id)

    def reboot_soft(self, spec: GuestSpec, timeout_s: float, progress: Progress) -> PowerState:
        # Down and up again rather than a reset: the guest gets its current definition and wiring,
        # and an attempt that died in between is taken up by the next one.
        seen = self._present(spec.server_id)
        if seen.active and not shut_down(self._libvirt, seen, timeout_s, progress):
            return self.reboot_hard(spec, progress)
        self._boot(spec, progress)
        return started(self._libvirt, spec.server_id, progress)

    def reboot_hard(self, spec: GuestSpec, progress: Progress) -> PowerState:
        self._known(spec.server_id)
        kill(self._libvirt, spec.server_id)
        self._libvirt.drop_saved(spec.server_id)
        self._boot(spec, progress)
        return started(self._libvirt, spec.server_id, progress)

    def pause(self, server_id: str) -> PowerState:
        if self._running(server_id).power != PowerState.PAUSED:
            self._libvirt.freeze(server_id)
        return self.power_state(server_id)

    def unpause(self, server_id: str) -> PowerState:
        if self._running(server_id).power == PowerState.PAUSED:
            self._libvirt.thaw(server_id)
        return self.power_state(server_id)

    def suspend(self, server_id: str) -> PowerState:
        if self._present(server_id).power != PowerState.SUSPENDED:
            self._running(server_id)
            self._libvirt.save(server_id)
        return self.power_state(server_id)

    def resume(self, spec: GuestSpec) -> PowerState:
        return self.start(spec)

    def power_state(self, server_id: str) -> PowerState:
        seen = self._libvirt.look(server_id)
        return seen.power if seen is not None else PowerState.NOSTATE

    def console_log(self, server_id: str, max_bytes: int) -> bytes:
        if not self._instances.path(server_id).exists():
            raise self._absent(server_id)
        return disks.log_tail(self._instances.console(server_id), max_bytes)

    def apply_nics(self, server_id: str, nics: Sequence[NicSpec]) -> None:
        known = self._instances.recall(server_id)
        if known is not None:
            self._instances.remember(replace(known.spec, nics=tuple(nics)), known.epoch)
            self._network.apply(server_id, nics)

    # --- truth ----------------------------------------------------------------------------------

    def residue(self, server_id: str | None = None) -> list[str]:
        domains = self._libvirt.domains(guest_name(server_id or ""))
        names = [f"domain:{seen.name}" for seen in domains]
        names += [f"file:{name}" for name in self._instances.files(server_id)]
        return sorted(names + self._network.residue(server_id))

    def owners(self) -> set[str]:
        domains = self._libvirt.domains(guest_name(""))
        named = {seen.name.removeprefix(guest_name("")) for seen in domains}
        return named | set(self._instances.ids()) | self._network.owners()

    def networks(self) -> list[str]:
        return self._network.networks()

    # --- how it is done -------------------------------------------------------------------------

    def _stages(self, spec: GuestSpec) -> list[tuple[str, Callable[[Progress], object]]]:
        server_id = spec.server_id
        return [
            ("image", lambda progress: self._images.base(spec.image, progress)),
            ("disk", lambda _: self._instances.make_disks(spec, self._images.path(spec.image))),
            ("config_drive", lambda _: self._instances.make_config_drive(spec, self._supplies)),
            ("nics", lambda _: self._network.plug(server_id, spec.nics)),
            ("define", lambda _: self._define(spec)),
            ("start", lambda _: self._libvirt.launch(server_id)),
        ]

    def _boot(self, spec: GuestSpec, progress: Progress) -> None:
        """Bring up a guest that does not run, after its current specification."""
        server_id = spec.server_id
        self._instances.remember(spec, self._ledger.entry(server_id).accepted or 0)
        saved = self.power_state(server_id) == PowerState.SUSPENDED
        for stage, effect in self._stages(spec):
            if saved and stage not in ("nics", "start"):
                continue  # it goes on with the devices it was saved with
            progress.step(stage)
            effect(progress)

    def _define(self, spec: GuestSpec) -> None:
        epoch = self._ledger.entry(spec.server_id).accepted or 0
        of_guest = self._instances.disks(spec)
        console = self._instances.console(spec.server_id)
        self._libvirt.define(domain_xml(spec, epoch, of_guest, console, self._machine))

    def _remove(self, server_id: str) -> None:
        kill(self._libvirt, server_id)
        self._libvirt.undefine(server_id)
        self._network.unplug(server_id)
        self._instances.remove(server_id)

    def _present(self, server_id: str) -> Seen:
        seen = self._libvirt.look(safe_id(server_id))
        if seen is None:
            raise self._absent(server_id)
        return seen

    def _known(self, server_id: str) -> None:
        """NotFound for a guest that is not here; one whose definition was lost can be defined anew."""
        if self._instances.recall(server_id) is None:
            self._present(server_id)

    def _running(self, server_id: str) -> Seen:
        seen = self._present(server_id)
        if not seen.active:
            raise GuestRefused(f"server {server_id} is not running")
        return seen

    def _absent(self, server_id: str) -> NotFound:
        return NotFound(f"server {server_id} is not on host {self._host.name}")

    def _bases_in_use(self) -> set[Path]:
        known = (self._instances.recall(server_id) for server_id in self._instances.ids())
        return {self._images.path(guest.spec.image) for guest in known if guest is not None}

    def _chores(self) -> None:
        self._instances.cap_consoles(self._host.console_max_bytes)
        if time.monotonic() >= self._forget_at:
            self._forget_at = time.monotonic() + FORGET_EVERY_S
            self.forget_unused()


def kill(libvirt: Connection, server_id: str) -> None:
    """Pull the plug until it is out. GuestFailure when QEMU will not die."""
    deadline = time.monotonic() + KILL_WITHIN_S
    patience = threading.Event()
    while (seen := libvirt.look(server_id)) is not None and seen.active:
        if time.monotonic() > deadline:
            raise GuestFailure(f"server {server_id} cannot be stopped: its process does not die")
        try:
            libvirt.kill(server_id)
        except GuestFailure:  # a process in a system call dies later
            patience.wait(POLL_S)


def settled(libvirt: Connection, server_id: str, progress: Progress) -> Seen | None:
    """The domain once its state is known. Right after its daemon came back, a guest that was being started
    shows as active while the daemon finds out that it never ran; one that stays so is ended."""
    deadline = time.monotonic() + KILL_WITHIN_S
    while (
        (seen := libvirt.look(server_id)) is not None
        and seen.active
        and seen.power == PowerState.NOSTATE
    ):
        progress.check()
        if time.monotonic() > deadline:
            kill(libvirt, server_id)
            return libvirt.look(server_id)
        progress.cancelled.wait(POLL_S)
    return seen


def started(libvirt: Connection, server_id: str, progress: Progress) -> PowerState:
    """The state of a guest that was just started. GuestFailure if it is gone already."""
    seen = settled(libvirt, server_id, progress)
    if seen is None:
        raise GuestFailure(f"server {server_id} was started and is gone")
    return seen.power


def shut_down(libvirt: Connection, seen: Seen, timeout_s: float, progress: Progress) -> bool:
    """Ask the guest to go down by itself; whether it did in time."""
    if seen.power == PowerState.PAUSED:
        return False  # nobody is awake inside
    deadline = time.monotonic() + timeout_s
    press_at = 0.0
    while time.monotonic() < deadline:
        progress.check()
        if time.monotonic() >= press_at:
            libvirt.press_power_button(seen.uuid)
            press_at = time.monotonic() + PRESS_AGAIN_S
        progress.cancelled.wait(POLL_S)
        now = libvirt.look(seen.uuid)
        if now is None or not now.active:
            return True
    return False

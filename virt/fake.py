"""A complete hypervisor in memory: same states, same fences, same leftovers, no QEMU.

It is cheap (a thousand of them fit one process), it can outlive a ``kill -9`` (give it a directory),
and it breaks on demand: ``fail``, ``delay`` and ``hold`` take the name of a stage of ``spawn``
(``image`` … ``start``) or of a method (``destroy``, ``stop``, ``power_on``, ``reboot_soft``, …).
"""

from __future__ import annotations

import hashlib
import json
import threading
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from pydantic import TypeAdapter

from domain.errors import DuranovaError, GuestFailure, GuestRefused, NotFound
from domain.guest import Fence, GuestReport, GuestSpec, ImageRef, Inventory, NicSpec
from domain.ids import guest_name, tap_name
from domain.states import PowerState
from virt.driver import Driver, Progress, Supplies, from_stage
from virt.ledger import Ledger, safe_id, write_atomic

ALIVE = (PowerState.RUNNING, PowerState.PAUSED)


@dataclass(slots=True)
class Guest:
    """One guest of a fake host."""

    spec: GuestSpec
    epoch: int
    power: PowerState = PowerState.NOSTATE
    boots: int = 0
    parts: set[str] = field(default_factory=set)
    """What exists of it: names as in ``Driver.residue``."""


_GUEST = TypeAdapter(Guest)


class Held:
    """A stage that stands still: wait for ``reached``, then call ``release``."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self._released = threading.Event()

    def release(self) -> None:
        """Let the stage go on, this time and every later time."""
        self._released.set()

    def wait(self, progress: Progress) -> None:
        """Stand still until released; Cancelled if the caller gives up first."""
        self.reached.set()
        while not self._released.wait(0.01):
            progress.check()


@dataclass(slots=True)
class _Fault:
    times: int
    error: DuranovaError
    after: bool


class Faults:
    """What is to go wrong, by step name."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._fail: dict[str, _Fault] = {}
        self._delay: dict[str, float] = {}
        self._held: dict[str, Held] = {}
        self.reached: deque[str] = deque(maxlen=256)
        """The last steps entered, oldest first."""

    def fail(
        self, step: str, times: int = 1, error: DuranovaError | None = None, *, after: bool = False
    ) -> None:
        """Make the next ``times`` visits of a step fail, before its effect or ``after`` it."""
        error = error or GuestFailure(f"injected failure of {step}")
        self._fail[step] = _Fault(times, error, after)

    def delay(self, step: str, seconds: float) -> None:
        """Make every visit of a step last this long; 0 ends that. A cancel cuts it short."""
        self._delay[step] = seconds

    def hold(self, step: str) -> Held:
        """Make a step stand still until the returned handle is released."""
        self._held[step] = Held()
        return self._held[step]

    def clear(self) -> None:
        """Nothing goes wrong any more."""
        for held in self._held.values():
            held.release()
        self._fail, self._delay, self._held = {}, {}, {}

    def load(self, text: str) -> None:
        """Take faults from JSON: step → ``{"fail": times, "message": …, "after": …, "delay_s": …}``."""
        for step, given in json.loads(text).items():
            if given.get("fail"):
                message = given.get("message", f"injected failure of {step}")
                self.fail(
                    step, given["fail"], GuestFailure(message), after=given.get("after", False)
                )
            self.delay(step, given.get("delay_s", 0.0))

    def enter(self, step: str, progress: Progress) -> None:
        """Be at a step: suffer what is planned for it."""
        self.reached.append(step)
        if held := self._held.get(step):
            held.wait(progress)
        if (seconds := self._delay.get(step, 0.0)) and progress.cancelled.wait(seconds):
            progress.check()
        self._strike(step, after=False)

    def leave(self, step: str) -> None:
        """Leave a step whose effect has happened."""
        self._strike(step, after=True)

    def _strike(self, step: str, *, after: bool) -> None:
        with self._lock:
            fault = self._fail.get(step)
            if fault is None or fault.after is not after or fault.times < 1:
                return
            fault.times -= 1
        raise fault.error


class _Store:
    """A fake host's disk: the guests' files, when it has a directory, and which images it has seen."""

    def __init__(self, directory: Path | None, supplies: Supplies | None) -> None:
        self._directory = directory
        self._supplies = supplies
        self._images: set[str] = set()
        self._faults_read_ns = 0

    def load(self) -> dict[str, Guest]:
        if self._directory is None:
            return {}
        (self._directory / "guests").mkdir(parents=True, exist_ok=True)
        files = (self._directory / "guests").glob("*.json")
        guests = [_GUEST.validate_json(path.read_bytes()) for path in files]
        return {guest.spec.server_id: guest for guest in guests}

    def save(self, guest: Guest) -> None:
        if self._directory is not None:
            path = self._directory / "guests" / f"{guest.spec.server_id}.json"
            write_atomic(path, _GUEST.dump_json(guest), durable=False)

    def remove(self, server_id: str) -> None:
        if self._directory is not None:
            (self._directory / "guests" / f"{server_id}.json").unlink(missing_ok=True)

    def ledger(self) -> Ledger:
        directory = self._directory
        return Ledger(directory / "ledger" if directory else None, durable=False)

    def take_image(self, image: ImageRef, progress: Progress) -> None:
        if self._supplies is None or image.checksum in self._images:
            return
        digest = hashlib.sha512()
        for chunk in self._supplies.image(image.id):
            progress.check()
            digest.update(chunk)
        if digest.hexdigest() != image.checksum:
            raise GuestFailure(f"image {image.id} does not have its checksum")
        self._images.add(image.checksum)

    def take_config_drive(self, server_id: str) -> None:
        if self._supplies is not None:
            self._supplies.config_drive(server_id)

    def read_faults(self, faults: Faults) -> None:
        """Take ``faults.json`` into account if it changed since."""
        if self._directory is None:
            return
        path = self._directory / "faults.json"
        with suppress(FileNotFoundError):
            changed_ns = path.stat().st_mtime_ns
            if changed_ns != self._faults_read_ns:
                self._faults_read_ns = changed_ns
                faults.load(path.read_text())


class FakeDriver(Driver):
    """One hypervisor that exists only here.

    ``directory`` makes it durable: one small JSON file for each guest, and ``faults.json`` (see
    ``Faults.load``) is read whenever it changes, so that another process can break this one.
    ``supplies``, when given, is really asked: images are streamed and their checksum verified.
    """

    def __init__(
        self,
        host: str,
        directory: Path | None = None,
        supplies: Supplies | None = None,
        inventory: Inventory | None = None,
    ) -> None:
        self.host = host
        self.faults = Faults()
        self._store = _Store(directory, supplies)
        self._inventory = inventory or Inventory(
            vcpus=64,
            ram_mb=262_144,
            disk_gb=4_096,
            hypervisor_type="fake",
            hypervisor_version=1_000_000,
            hypervisor_hostname=host,
            cpu_model="fake",
            capabilities=("COMPUTE_ACCEL_TCG", "HW_ARCH_X86_64"),
        )
        self._inventory = replace(
            self._inventory, uuid=str(uuid.uuid5(uuid.NAMESPACE_DNS, f"fake.{host}"))
        )
        self._ledger = self._store.ledger()
        self._guests: dict[str, Guest] = {}
        self._listeners: list[Callable[[], None]] = []
        self._lock = threading.RLock()

    # --- the host -------------------------------------------------------------------------------

    def open(self) -> None:
        self._guests.update(self._store.load())

    def close(self) -> None:
        self._listeners.clear()
        self.faults.clear()

    def inventory(self) -> Inventory:
        self._at("inventory")
        return self._inventory

    def guests(self) -> list[GuestReport]:
        self._at("guests")
        with self._lock:
            return [
                GuestReport(server_id, guest.power, guest.epoch)
                for server_id, guest in self._guests.items()
                if _domain(server_id) in guest.parts
            ]

    def on_change(self, notify: Callable[[], None]) -> None:
        self._listeners.append(notify)

    def set_power(self, server_id: str, power: PowerState) -> None:
        """Change a guest behind everybody's back, as a crash or a shutdown from inside would."""
        self._save(self._present(server_id), power)
        for notify in list(self._listeners):
            notify()

    # --- one guest ------------------------------------------------------------------------------

    def spawn(
        self, spec: GuestSpec, fence: Fence, progress: Progress, resume_at: str | None = None
    ) -> PowerState:
        server_id = safe_id(spec.server_id)
        self._ledger.admit(server_id, fence)
        with self._lock:
            known = self._guests.get(server_id)
            going_on = known is not None and known.epoch == fence.epoch
            guest = self._guests.setdefault(server_id, Guest(spec, fence.epoch))
            guest.epoch = fence.epoch
            if guest.power in ALIVE:
                return self._save(guest, guest.power)
            guest.spec = spec
        stages = from_stage(self._stages(guest), resume_at if going_on else None)
        for stage, effect, announced in stages:
            if announced:
                progress.step(stage)
                self._at(stage, progress)
            self._ledger.check(server_id, fence)
            effect(progress)
            self.faults.leave(stage)
        return guest.power

    def destroy(self, server_id: str, fence: Fence) -> None:
        self._at("destroy")
        with self._lock:
            if self._ledger.bury(safe_id(server_id), fence):
                self._guests.pop(server_id, None)
                self._store.remove(server_id)
        self.faults.leave("destroy")

    def start(self, spec: GuestSpec) -> PowerState:
        guest = self._present(spec.server_id)
        self._at("power_on")
        if guest.power in ALIVE:
            return guest.power
        self._wire(guest, spec)
        return self._run(guest)

    def stop(self, server_id: str, timeout_s: float, progress: Progress) -> PowerState:
        guest = self._present(server_id)
        self._at("stop", progress)
        if guest.power in (PowerState.SHUTDOWN, PowerState.SUSPENDED):
            return guest.power
        return self._save(guest, PowerState.SHUTDOWN)

    def reboot_soft(self, spec: GuestSpec, timeout_s: float, progress: Progress) -> PowerState:
        guest = self._present(spec.server_id)
        self._at("reboot_soft", progress)
        self._wire(guest, spec)
        return self._run(guest)

    def reboot_hard(self, spec: GuestSpec, progress: Progress) -> PowerState:
        guest = self._present(spec.server_id)
        self._at("reboot_hard", progress)
        self._wire(guest, spec)
        return self._run(guest)

    def pause(self, server_id: str) -> PowerState:
        guest = self._present(server_id)
        self._at("pause")
        return self._save(guest, PowerState.PAUSED, allowed=ALIVE)

    def unpause(self, server_id: str) -> PowerState:
        guest = self._present(server_id)
        self._at("unpause")
        return self._save(guest, PowerState.RUNNING, allowed=ALIVE)

    def suspend(self, server_id: str) -> PowerState:
        guest = self._present(server_id)
        self._at("suspend")
        return self._save(guest, PowerState.SUSPENDED, allowed=(*ALIVE, PowerState.SUSPENDED))

    def resume(self, spec: GuestSpec) -> PowerState:
        guest = self._present(spec.server_id)
        self._at("resume")
        if guest.power in ALIVE:
            return guest.power
        self._wire(guest, spec)
        if guest.power is PowerState.SUSPENDED:  # it goes on where it was: no new boot
            return self._save(guest, PowerState.RUNNING)
        return self._run(guest)

    def power_state(self, server_id: str) -> PowerState:
        guest = self._guests.get(server_id)
        return guest.power if guest is not None else PowerState.NOSTATE

    def console_log(self, server_id: str, max_bytes: int) -> bytes:
        text = _boot_log(self._present(server_id)).encode()
        return text[max(0, len(text) - max_bytes) :]

    def apply_nics(self, server_id: str, nics: Sequence[NicSpec]) -> None:
        self._at("apply_nics")
        guest = self._guests.get(server_id)
        if guest is not None:
            self._wire(guest, replace(guest.spec, nics=tuple(nics)))

    # --- truth ----------------------------------------------------------------------------------

    def residue(self, server_id: str | None = None) -> list[str]:
        with self._lock:
            chosen = [g for key, g in self._guests.items() if server_id in {None, key}]
            return sorted(part for guest in chosen for part in guest.parts)

    def owners(self) -> set[str]:
        with self._lock:
            return {server_id for server_id, guest in self._guests.items() if guest.parts}

    def networks(self) -> list[str]:
        with self._lock:
            return sorted(
                {
                    nic.network_id
                    for guest in self._guests.values()
                    for nic in guest.spec.nics
                    if f"tap:{tap_name(nic.port_id)}" in guest.parts
                }
            )

    # --- how it is done -------------------------------------------------------------------------

    def _stages(self, guest: Guest) -> list[tuple[str, Callable[[Progress], object]]]:
        spec = guest.spec
        files = f"file:instances/{spec.server_id}"

        def config_drive(_: Progress) -> None:
            if spec.config_drive:
                self._store.take_config_drive(spec.server_id)
                self._make(guest, f"{files}/config-drive.iso")

        return [
            ("image", lambda progress: self._store.take_image(spec.image, progress)),
            ("disk", lambda _: self._make(guest, f"{files}/root.qcow2")),
            ("config_drive", config_drive),
            ("nics", lambda _: self._wire(guest, spec)),
            ("define", lambda _: self._make(guest, _domain(spec.server_id))),
            ("start", lambda _: self._run(guest)),
        ]

    def _make(self, guest: Guest, *parts: str) -> None:
        guest.parts.update(parts)
        self._save(guest, guest.power)

    def _wire(self, guest: Guest, spec: GuestSpec) -> None:
        wires = ("tap:", "rules:", "dhcp:")
        with self._lock:
            guest.spec = spec
            guest.parts = {part for part in guest.parts if not part.startswith(wires)}
            for nic in spec.nics:
                tap = tap_name(nic.port_id)
                self._make(guest, f"tap:{tap}", f"rules:{tap}")
                if nic.subnet.enable_dhcp:
                    self._make(guest, f"dhcp:{nic.port_id}")
            self._save(guest, guest.power)

    def _run(self, guest: Guest) -> PowerState:
        guest.boots += 1
        self._make(guest, f"file:instances/{guest.spec.server_id}/console.log")
        return self._save(guest, PowerState.RUNNING)

    def _present(self, server_id: str) -> Guest:
        guest = self._guests.get(server_id)
        if guest is None or _domain(server_id) not in guest.parts:
            raise NotFound(f"server {server_id} is not on host {self.host}")
        return guest

    def _save(
        self, guest: Guest, power: PowerState, allowed: Sequence[PowerState] | None = None
    ) -> PowerState:
        with self._lock:
            if allowed is not None and guest.power not in allowed:
                raise GuestRefused(f"server {guest.spec.server_id} is not running")
            guest.power = power
            if self._guests.get(guest.spec.server_id) is guest:  # not destroyed meanwhile
                self._store.save(guest)
            return power

    def _at(self, step: str, progress: Progress | None = None) -> None:
        self._store.read_faults(self.faults)
        self.faults.enter(step, progress or Progress())


def _domain(server_id: str) -> str:
    return f"domain:{guest_name(server_id)}"


def _boot_log(guest: Guest) -> str:
    """What a guest's serial console would show: every boot so far, from firmware to login."""
    spec = guest.spec
    hostname = spec.hostname or spec.name
    lines = [
        "SeaBIOS (version 1.16.2)",
        "[    0.000000] Linux version 6.1.0-fake (builder@fake) #1 SMP",
        f"[    0.000000] Memory: {spec.ram_mb * 1024}K available",
        f"[    0.512000] smp: Brought up 1 node, {spec.vcpus} CPUs",
        *(f"[    1.024000] eth{n}: {nic.mac} {nic.ip}" for n, nic in enumerate(spec.nics)),
        f"[    2.048000] systemd[1]: Hostname set to <{hostname}>.",
        "",
        f"{hostname} login: ",
    ]
    return "\n".join(lines * guest.boots)

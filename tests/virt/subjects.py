"""What the virt tests work on: drivers with the things they need, and guests to put on them."""

from __future__ import annotations

import hashlib
import itertools
import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from domain.guest import Fence, GuestSpec, ImageRef, NicSpec, SubnetSpec
from domain.ids import guest_name, new_id, tap_name
from domain.states import PowerState
from virt.disks import ImageCache
from virt.driver import Driver, Progress, Supplies
from virt.fake import FakeDriver
from virt.libvirt.private import PrivateLibvirtd

BOOT_TIMEOUT_S = 150.0
"""A guest needs 6 s on an idle machine; on a loaded one it may need far longer."""

REPO = Path(__file__).parents[2]
BUILD_S = 600


def test_image() -> Path:
    """The bootable image the real-QEMU tests run; built from the distribution's packages at first use."""
    image = Path(os.environ.get("DURANOVA_TEST_IMAGE", REPO / "build/guest/tiny.qcow2"))
    if not image.is_file():
        subprocess.run([REPO / "deploy/guest/build.sh", image.parent], check=True, timeout=BUILD_S)
    return image


test_image.__test__ = False  # type: ignore[attr-defined]  # a helper, whatever its name says


def image_ref(path: Path, disk_format: str = "qcow2", **properties: str) -> ImageRef:
    with path.open("rb") as file:
        checksum = hashlib.file_digest(file, "sha512").hexdigest()
    return ImageRef(path.name, checksum, disk_format, path.stat().st_size, properties)


class FileSupplies(Supplies):
    """Serves image files from a directory (the image id is the file's name) and counts."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.images_served = 0
        self.chunk_bytes = 1024**2

    def image(self, image_id: str) -> Iterator[bytes]:
        self.images_served += 1
        with (self.directory / image_id).open("rb") as file:
            while chunk := file.read(self.chunk_bytes):
                yield chunk

    def config_drive(self, server_id: str) -> dict[str, bytes]:
        meta = b'{"uuid": "%s", "hostname": "from-drive"}' % server_id.encode()
        return {
            "openstack/latest/meta_data.json": meta,
            "openstack/2018-08-27/meta_data.json": meta,
            "openstack/content/0000": b"hello",
        }


class NoNetwork:
    """In place of HostNetwork where networking is not under test: remembers who is plugged."""

    def __init__(self) -> None:
        self.plugged: dict[str, tuple[NicSpec, ...]] = {}

    def open(self) -> None: ...

    def close(self) -> None: ...

    def plug(self, server_id: str, nics: Sequence[NicSpec]) -> None:
        self.plugged[server_id] = tuple(nics)

    def apply(self, server_id: str, nics: Sequence[NicSpec]) -> None:
        self.plugged[server_id] = tuple(nics)

    def unplug(self, server_id: str) -> None:
        self.plugged.pop(server_id, None)

    def residue(self, server_id: str | None = None) -> list[str]:
        chosen = self.plugged if server_id is None else {server_id} & self.plugged.keys()
        return [f"rules:{tap_name(nic.port_id)}" for key in chosen for nic in self.plugged[key]]

    def owners(self) -> set[str]:
        return set(self.plugged)

    def networks(self) -> list[str]:
        return sorted({nic.network_id for nics in self.plugged.values() for nic in nics})


def nic(network_id: str, ip: str = "10.9.0.7") -> NicSpec:
    mac = f"fa:16:3e:00:00:{int(ip.rsplit('.', 1)[1]):02x}"
    return NicSpec(
        new_id(), network_id, 7, mac, ip, SubnetSpec(new_id(), "10.9.0.0/24", "10.9.0.1")
    )


_epochs = itertools.count(1)


def fence(epoch: int | None = None) -> Fence:
    return Fence(next(_epochs) if epoch is None else epoch, "op")


@dataclass
class Subject:
    """A driver under test and all a test needs to know of its kind."""

    kind: str
    make: Callable[[], Driver]
    """A fresh driver object on the same host: what a restarted worker has."""
    image: ImageRef
    supplies: FileSupplies
    pull_the_plug: Callable[[Driver, str], None]
    """End a guest behind the driver's back."""
    can: frozenset[str] = frozenset()
    """``console``, ``boot`` (code runs inside), ``durable`` (guests outlive the driver object),
    ``nics``, ``announces`` (changes are told)."""
    state_dir: Path = Path()
    host: Any = None
    """A libvirt host's description; a test may replace it before ``restart``."""
    network: Any = field(default_factory=NoNetwork)
    """A libvirt host's network; likewise."""
    cache_of: Callable[[Driver], ImageCache] | None = None
    driver: Driver = field(init=False)

    made: list[str] = field(default_factory=list)

    def open(self) -> None:
        self.driver = self.make()
        self.driver.open()

    def restart(self) -> None:
        """What a new worker process on the same host does."""
        self.driver.close()
        self.open()

    def spec(self, **changes: object) -> GuestSpec:
        spec = GuestSpec(new_id(), "web-1", "p1", 1, 96, 0, self.image, hostname="web-1")
        spec = replace(spec, **changes)  # type: ignore[arg-type]  # names are the spec's own
        self.made.append(spec.server_id)
        return spec

    def spawned(self, **changes: object) -> tuple[GuestSpec, Fence]:
        """A running guest."""
        spec, token = self.spec(**changes), fence()
        self.driver.spawn(spec, token, Progress())
        return spec, token

    def clean(self) -> None:
        for server_id in self.made:
            self.driver.destroy(server_id, Fence(2**40, "clean"))
        if self.cache_of is not None:  # its files are immutable: only it can remove them
            self.cache_of(self.driver).forget_unused(0, set)
        self.driver.close()


# --- the kinds ---------------------------------------------------------------------------------------


def fake_subject(tmp_path: Path) -> Subject:
    supplies, image = blank_image(tmp_path)
    return Subject(
        kind="the fake",
        make=lambda: FakeDriver("fake-1", tmp_path / "host", supplies),
        image=image,
        supplies=supplies,
        pull_the_plug=lambda driver, server_id: driver.set_power(server_id, PowerState.SHUTDOWN),  # type: ignore[attr-defined]  # the fake's own
        can=frozenset({"console", "durable", "nics", "announces"}),
    )


def blank_image(tmp_path: Path) -> tuple[FileSupplies, ImageRef]:
    images = tmp_path / "supplies"
    images.mkdir()
    (images / "disk.raw").write_bytes(b"\0" * 4096)
    return FileSupplies(images), image_ref(images / "disk.raw", "raw")


def libvirt_test_subject(tmp_path: Path, state_dir: Path) -> Subject:
    """libvirt's in-process mock: real definitions and states, nothing runs."""
    from virt.libvirt.driver import LibvirtDriver, LibvirtHost  # noqa: PLC0415  needs the binding

    supplies, image = blank_image(tmp_path)
    host = LibvirtHost("mock-1", "test:///default", state_dir, "test", qemu_log_dir=tmp_path)
    network = NoNetwork()
    return Subject(
        kind="libvirt's test driver",
        make=lambda: LibvirtDriver(host, supplies, network),
        image=image,
        supplies=supplies,
        pull_the_plug=lambda driver, server_id: driver._libvirt.kill(server_id),  # type: ignore[attr-defined]  # behind its back
        can=frozenset({"announces"}),
        cache_of=lambda driver: driver._images,  # type: ignore[attr-defined]  # to clean up
    )


def qemu_subject(state_dir: Path, daemon: PrivateLibvirtd) -> Subject:
    """Guests that boot."""
    from virt.libvirt.driver import LibvirtDriver, LibvirtHost  # noqa: PLC0415  needs the binding

    supplies = FileSupplies(test_image().parent)
    host = LibvirtHost(daemon.name, daemon.uri(), state_dir, qemu_log_dir=daemon.qemu_log_dir)
    subject: Subject

    def make() -> LibvirtDriver:
        return LibvirtDriver(subject.host, supplies, subject.network)

    subject = Subject(
        kind="QEMU",
        make=make,
        image=image_ref(test_image()),
        supplies=supplies,
        pull_the_plug=lambda _, server_id: kill_qemu(daemon, server_id),
        can=frozenset({"announces", "boot", "console", "durable"}),
        state_dir=state_dir,
        host=host,
        cache_of=lambda driver: driver._images,  # type: ignore[attr-defined]  # to clean up
    )
    return subject


def kill_qemu(daemon: PrivateLibvirtd, server_id: str) -> None:
    os.kill(daemon.qemu_pid(guest_name(server_id)), signal.SIGKILL)

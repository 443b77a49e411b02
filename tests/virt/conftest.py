"""The drivers under test: a fake, libvirt's own test driver, and QEMU behind a private libvirtd."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from domain.guest import ImageRef
from domain.ids import guest_name
from domain.states import PowerState
from tests.virt.subjects import FileSupplies, NoNetwork, Subject, image_ref, test_image
from virt.fake import FakeDriver
from virt.libvirt.private import PrivateLibvirtd


@pytest.fixture(scope="session")
def private_libvirtd() -> Iterator[PrivateLibvirtd]:
    """One private libvirtd for all tests of the session; guests come and go on it."""
    if os.geteuid() != 0 or not shutil.which("libvirtd") or not shutil.which("qemu-img"):
        pytest.skip("needs root, libvirtd and QEMU")
    directory = Path(tempfile.mkdtemp(prefix="duranova-libvirtd-"))
    daemon = PrivateLibvirtd(directory, f"test-{os.getpid()}", own_network=True)
    daemon.start()
    yield daemon
    daemon.remove()


@pytest.fixture
def state_dir() -> Iterator[Path]:
    """A host's state directory. Not below pytest's own: cached images are immutable files."""
    directory = Path(tempfile.mkdtemp(prefix="duranova-host-"))
    yield directory
    shutil.rmtree(directory)


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

    if not test_image().exists():
        pytest.skip(f"no bootable image at {test_image()}; DURANOVA_TEST_IMAGE may name one")
    supplies = FileSupplies(test_image().parent)
    host = LibvirtHost(daemon.name, daemon.uri(), state_dir, qemu_log_dir=daemon.qemu_log_dir)
    network = NoNetwork()
    return Subject(
        kind="QEMU",
        make=lambda: LibvirtDriver(host, supplies, network),
        image=image_ref(test_image()),
        supplies=supplies,
        pull_the_plug=lambda _, server_id: kill_qemu(daemon, server_id),
        can=frozenset({"announces", "boot", "console", "durable"}),
        cache_of=lambda driver: driver._images,  # type: ignore[attr-defined]  # to clean up
    )


def kill_qemu(daemon: PrivateLibvirtd, server_id: str) -> None:
    os.kill(daemon.qemu_pid(guest_name(server_id)), signal.SIGKILL)


@pytest.fixture(
    params=[
        "fake",
        "libvirt-test",
        pytest.param("libvirt-qemu", marks=[pytest.mark.libvirt, pytest.mark.timeout(400)]),
    ]
)
def subject(request: pytest.FixtureRequest, tmp_path: Path, state_dir: Path) -> Iterator[Subject]:
    makers: dict[str, Callable[[], Subject]] = {
        "fake": lambda: fake_subject(tmp_path),
        "libvirt-test": lambda: libvirt_test_subject(tmp_path, state_dir),
        "libvirt-qemu": lambda: qemu_subject(
            state_dir, request.getfixturevalue("private_libvirtd")
        ),
    }
    if request.param != "fake":
        pytest.importorskip("libvirt")
    subject = makers[request.param]()
    yield subject
    subject.clean()


@pytest.fixture
def qemu(state_dir: Path, private_libvirtd: PrivateLibvirtd) -> Iterator[Subject]:
    """The real thing, where only it can show something."""
    pytest.importorskip("libvirt")
    subject = qemu_subject(state_dir, private_libvirtd)
    yield subject
    subject.clean()

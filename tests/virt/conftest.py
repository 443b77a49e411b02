"""The drivers under test: a fake, libvirt's own test driver, and QEMU behind a private libvirtd."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.virt.subjects import Subject, fake_subject, libvirt_test_subject, qemu_subject
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
    subject.open()
    yield subject
    subject.clean()


@pytest.fixture
def qemu(state_dir: Path, private_libvirtd: PrivateLibvirtd) -> Iterator[Subject]:
    """The real thing, where only it can show something."""
    pytest.importorskip("libvirt")
    subject = qemu_subject(state_dir, private_libvirtd)
    subject.open()
    yield subject
    subject.clean()

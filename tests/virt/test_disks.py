"""Images come from users, disks stand on images: what is refused, what is shared, what is kept."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pycdlib
import pytest

from domain.errors import GuestFailure, GuestRefused
from domain.guest import ImageRef
from tests.virt.subjects import FileSupplies, image_ref
from virt import disks
from virt.disks import ImageCache
from virt.driver import Cancelled, Progress

needs_qemu_img = pytest.mark.skipif(not shutil.which("qemu-img"), reason="needs qemu-img")


@pytest.fixture
def supplies(tmp_path: Path) -> FileSupplies:
    (tmp_path / "supplies").mkdir()
    (tmp_path / "supplies" / "disk.raw").write_bytes(os.urandom(3 * 1024**2))
    return FileSupplies(tmp_path / "supplies")


@pytest.fixture
def cache(state_dir: Path, supplies: FileSupplies) -> Iterator[ImageCache]:
    cache = ImageCache(state_dir / "images", supplies)
    cache.open()
    yield cache
    cache.forget_unused(0, set)


@pytest.fixture
def image(supplies: FileSupplies) -> ImageRef:
    return image_ref(supplies.directory / "disk.raw", "raw")


def create(supplies: FileSupplies, name: str, *arguments: str) -> Path:
    path = supplies.directory / name
    command = ["qemu-img", "create", "-q", "-f", "qcow2", *arguments[:-1], str(path)]
    subprocess.run([*command, *arguments[-1:]], check=True)
    return path


# --- the cache --------------------------------------------------------------------------------------


def test_many_askers_cause_one_download(
    cache: ImageCache, supplies: FileSupplies, image: ImageRef
) -> None:
    other = ImageCache(cache.path(image).parent, supplies)  # as another process would have
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(c.base, image, Progress()) for c in (cache, other) * 4]
        paths = {future.result() for future in asked}
    assert supplies.images_served == 1
    (path,) = paths
    assert path.read_bytes() == (supplies.directory / "disk.raw").read_bytes()
    assert path.stat().st_mode & 0o222 == 0


def test_a_base_cannot_be_written_even_by_root(cache: ImageCache, image: ImageRef) -> None:
    path = cache.base(image, Progress())
    flags = subprocess.run(["lsattr", str(path)], check=False, capture_output=True, text=True)
    if "i" not in flags.stdout.split(" ")[0]:
        pytest.skip("this file system has no immutable files")
    with pytest.raises(PermissionError):
        path.open("r+b")


def test_damaged_bytes_are_not_kept_and_another_try_may_succeed(
    cache: ImageCache, supplies: FileSupplies, image: ImageRef
) -> None:
    file = supplies.directory / "disk.raw"
    good = file.read_bytes()
    file.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.raises(GuestFailure, match="checksum"):
        cache.base(image, Progress())
    assert not cache.path(image).exists()
    file.write_bytes(good)
    assert cache.base(image, Progress()).exists()


def test_a_download_can_be_cancelled_between_chunks(
    cache: ImageCache, supplies: FileSupplies, image: ImageRef
) -> None:
    progress = Progress()
    served = supplies.image

    def cancel_after_one(image_id: str) -> Iterator[bytes]:
        for chunk in served(image_id):
            yield chunk
            progress.cancelled.set()

    supplies.image = cancel_after_one  # type: ignore[method-assign]  # this one instance
    with pytest.raises(Cancelled):
        cache.base(image, progress)
    assert not list(cache.path(image).parent.glob("*.part"))


def test_waiting_for_another_download_can_be_cancelled(
    cache: ImageCache, supplies: FileSupplies, image: ImageRef
) -> None:
    reached, release = threading.Event(), threading.Event()
    served = supplies.image

    def slow(image_id: str) -> Iterator[bytes]:
        reached.set()
        release.wait(30)
        yield from served(image_id)

    supplies.image = slow  # type: ignore[method-assign]  # this one instance
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(cache.base, image, Progress())
        assert reached.wait(10)
        cancelled = threading.Event()
        cancelled.set()
        with pytest.raises(Cancelled):
            cache.base(image, Progress(cancelled))
        release.set()
        assert first.result().exists()


def test_only_old_unused_bases_are_forgotten(cache: ImageCache, image: ImageRef) -> None:
    path = cache.base(image, Progress())
    assert cache.forget_unused(3600, set) == []
    assert cache.forget_unused(0, lambda: {path}) == []
    assert path.exists()
    assert cache.forget_unused(0, set) == [path]
    assert not path.exists()


@pytest.mark.parametrize(
    "bad",
    [
        ImageRef("i", "../" * 40 + "x" * 8, "raw", 1),
        ImageRef("i", "0" * 127, "raw", 1),
        ImageRef("i", "0" * 128, "vmdk", 1),
    ],
)
def test_an_impossible_reference_is_refused(cache: ImageCache, bad: ImageRef) -> None:
    with pytest.raises(GuestRefused):
        cache.base(bad, Progress())


# --- hostile images -----------------------------------------------------------------------------------


@needs_qemu_img
@pytest.mark.parametrize(
    "options",
    [
        ("-b", "/etc/passwd", "-F", "raw", "1M"),
        ("-o", "data_file={data},data_file_raw=on", "1M"),
    ],
    ids=["backing-file", "data-file"],
)
def test_a_qcow2_that_names_another_file_is_refused(
    cache: ImageCache, supplies: FileSupplies, tmp_path: Path, options: tuple[str, ...]
) -> None:
    options = tuple(word.format(data=tmp_path / "data") for word in options)
    path = create(supplies, "evil.qcow2", *options)
    with pytest.raises(GuestRefused):
        cache.base(image_ref(path), Progress())
    assert not list(cache.path(image_ref(path)).parent.glob("*.qcow2"))


@needs_qemu_img
def test_a_raw_image_that_is_a_qcow2_is_refused(cache: ImageCache, supplies: FileSupplies) -> None:
    path = create(supplies, "lie.raw", "1M")
    with pytest.raises(GuestRefused, match="qcow2"):
        cache.base(image_ref(path, "raw"), Progress())


def test_a_qcow2_that_is_anything_else_is_refused(cache: ImageCache, image: ImageRef) -> None:
    lie = ImageRef(image.id, image.checksum, "qcow2", image.size_bytes)
    with pytest.raises(GuestRefused, match="is raw"):
        cache.base(lie, Progress())


# --- disks ------------------------------------------------------------------------------------------


@needs_qemu_img
def test_a_root_disk_has_the_flavors_size_and_an_explicit_base(
    cache: ImageCache, image: ImageRef, tmp_path: Path
) -> None:
    base, path = cache.base(image, Progress()), tmp_path / "root.qcow2"
    disks.root_disk(path, base, image, 2)
    info = subprocess.run(
        ["qemu-img", "info", "-f", "qcow2", str(path)], check=True, capture_output=True, text=True
    ).stdout
    assert "virtual size: 2 GiB" in info
    assert f"backing file: {base}" in info
    assert "backing file format: raw" in info


@needs_qemu_img
def test_a_disk_that_is_there_is_left_alone(
    cache: ImageCache, image: ImageRef, tmp_path: Path
) -> None:
    path = tmp_path / "root.qcow2"
    path.write_bytes(b"the guest's own data")
    disks.root_disk(path, cache.base(image, Progress()), image, 2)
    assert path.read_bytes() == b"the guest's own data"


@needs_qemu_img
def test_an_image_larger_than_the_flavors_disk_is_refused(
    cache: ImageCache, supplies: FileSupplies, tmp_path: Path
) -> None:
    image = image_ref(create(supplies, "large.qcow2", "3G"))
    base = cache.base(image, Progress())
    with pytest.raises(GuestRefused, match="3 GB, the flavor has 2"):
        disks.root_disk(tmp_path / "root.qcow2", base, image, 2)
    disks.root_disk(tmp_path / "root.qcow2", base, image, 0)  # 0 keeps the image's size


def test_messages_of_tools_do_not_name_the_hosts_files(tmp_path: Path, image: ImageRef) -> None:
    (tmp_path / "base").write_bytes(b"x" * 1024)
    with pytest.raises(GuestFailure) as failure:
        disks.root_disk(tmp_path / "no" / "such" / "folder", tmp_path / "base", image, 1)
    assert str(tmp_path) not in failure.value.message


# --- the config drive -------------------------------------------------------------------------------


def test_a_config_drive_is_labelled_and_keeps_names_and_content(tmp_path: Path) -> None:
    files = {
        "openstack/latest/meta_data.json": b'{"a": 1}',
        "openstack/2018-08-27/user_data": bytes(range(256)) * 20,
        "openstack/latest/vendor_data2.json": b"",
        "ec2/latest/meta-data.json": b"{}",
    }
    path = tmp_path / "drive.iso"
    disks.config_drive(path, files)
    assert path.stat().st_mode & 0o777 == 0o600  # it may hold a password
    iso = pycdlib.PyCdlib()
    iso.open(str(path))
    try:
        assert iso.pvd.volume_identifier.strip() == b"config-2"
        for spelling in ("rr_path", "joliet_path"):
            for name, content in files.items():
                read = tmp_path / "read"
                iso.get_file_from_iso(str(read), **{spelling: f"/{name}"})
                assert read.read_bytes() == content
    finally:
        iso.close()


# --- logs -------------------------------------------------------------------------------------------


def test_a_capped_log_keeps_its_end_while_the_writer_goes_on(tmp_path: Path) -> None:
    log = tmp_path / "console.log"
    with log.open("ab", buffering=0) as writer:
        writer.write(b"a" * 50 + b"b" * 60)
        assert disks.cap_log(log, 100)
        assert not disks.cap_log(log, 100)
        writer.write(b"c" * 10)
    assert log.read_bytes() == b"c" * 10
    assert disks.log_tail(log, 30) == b"b" * 20 + b"c" * 10
    assert disks.log_tail(log, 1000) == b"a" * 40 + b"b" * 60 + b"c" * 10
    assert disks.log_tail(log, 0) == b""


def test_a_log_that_does_not_exist_is_empty(tmp_path: Path) -> None:
    assert not disks.cap_log(tmp_path / "no.log", 10)
    assert disks.log_tail(tmp_path / "no.log", 10) == b""

"""Disks of guests: the image cache, overlays on it, blank disks and the config drive.

Images come from users. A cached base is therefore inspected before any tool opens it, every tool
call names the format, and the base is made immutable: one write to it would change every guest
that stands on it.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pycdlib
from oslo_utils.imageutils import format_inspector

from domain.errors import GuestFailure, GuestRefused
from domain.guest import ImageRef
from virt.driver import Progress, Supplies, without_paths
from virt.ledger import write_atomic

GIB = 1024**3
MIB = 1024**2
BASE_FORMATS = ("qcow2", "raw")
_TOOL_LIMITS = ("prlimit", f"--as={4 * GIB}", "--cpu=60", "--")
"""Image headers are hostile input: no tool may take the host's memory or time over one."""


class ImageCache:
    """Images by content on this host's disk, each fetched once, whoever asks first.

    Safe between threads and between processes that share the directory.
    """

    def __init__(self, directory: Path, supplies: Supplies) -> None:
        self._directory = directory
        self._supplies = supplies

    def open(self) -> None:
        """Make the directory."""
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)

    def path(self, image: ImageRef) -> Path:
        """Where the base of this image is, or would be. GuestRefused for an impossible reference."""
        if image.disk_format not in BASE_FORMATS:
            raise GuestRefused(f"image {image.id} has the unsupported format {image.disk_format}")
        if len(image.checksum) != 128 or not set(image.checksum) <= set("0123456789abcdef"):
            raise GuestRefused(f"image {image.id} has no SHA-512 checksum")
        return self._directory / f"{image.checksum}.{image.disk_format}"

    def base(self, image: ImageRef, progress: Progress) -> Path:
        """The verified base file of an image, fetched if need be.

        GuestFailure when its bytes cannot be had or are damaged on the way, GuestRefused when they
        are not what the image claims or refer to other files.
        """
        path = self.path(image)
        with self._locked(path, progress):
            if not path.exists():
                self._fetch(image, path, progress)
        return path

    def forget_unused(self, older_than_s: float, used: Callable[[], set[Path]]) -> list[Path]:
        """Remove the bases that no guest stands on and nobody asked for lately; what was removed.

        ``used`` is called with the base's lock held, so a spawn that has just asked counts: it
        records its specification before it asks.
        """
        removed = []
        for path in sorted(self._directory.glob("*.*")):
            lock = _lock_path(path)
            if path.suffix[1:] not in BASE_FORMATS or not _older(lock, older_than_s):
                continue
            with lock.open("ab") as held:
                try:
                    fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue
                if path not in used() and _older(lock, older_than_s):
                    _protect(path, on=False)
                    path.unlink(missing_ok=True)
                    removed.append(path)
        return removed

    @contextmanager
    def _locked(self, path: Path, progress: Progress) -> Iterator[None]:
        lock = _lock_path(path)
        with lock.open("ab") as held:
            while True:
                try:
                    fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:  # somebody else fetches it: wait, but stay cancellable
                    progress.cancelled.wait(0.1)
                    progress.check()
            os.utime(lock)
            yield

    def _fetch(self, image: ImageRef, path: Path, progress: Progress) -> None:
        part = path.with_name(f"{path.name}.part")
        digest = hashlib.sha512()
        try:
            with part.open("wb") as file:
                for chunk in self._supplies.image(image.id):
                    progress.check()
                    digest.update(chunk)
                    file.write(chunk)
                file.flush()
                os.fsync(file.fileno())
            if digest.hexdigest() != image.checksum:
                raise GuestFailure(f"image {image.id} does not have its checksum")
            inspect(part, image)
            _protect(part, on=True, immutable=False)
            part.rename(path)
            _protect(path, on=True)
        except OSError as error:
            raise GuestFailure(f"image {image.id} cannot be stored: {error.strerror}") from error
        finally:
            part.unlink(missing_ok=True)


def inspect(path: Path, image: ImageRef) -> int:
    """The virtual size of an image file in bytes. GuestRefused when it is not what it is said to be.

    A qcow2 that names a backing or a data file would make the host read that file for the guest; a
    "raw" image that is in truth another format could do the same to a tool that guesses.
    """
    try:
        found = format_inspector.detect_file_format(str(path))
        if found is None:
            raise GuestRefused(f"the format of image {image.id} cannot be recognised")
        allowed = ("qcow2",) if image.disk_format == "qcow2" else ("raw", "gpt")
        if found.NAME not in allowed:
            raise GuestRefused(
                f"image {image.id} is said to be {image.disk_format} but is {found.NAME}"
            )
        if found.NAME != "qcow2":
            return path.stat().st_size  # used as raw and named so to every tool: nothing is parsed
        found.safety_check()
        return int(found.virtual_size)
    except (format_inspector.ImageFormatError, format_inspector.SafetyCheckFailed) as error:
        raise GuestRefused(f"image {image.id} is not safe to run: {error}") from error


def root_disk(path: Path, base: Path, image: ImageRef, disk_gb: int) -> None:
    """Make the guest's root disk, a qcow2 overlay of the flavor's size, unless it is there.

    GuestRefused when the image needs more than the flavor gives.
    """
    needed = inspect(base, image)
    size = disk_gb * GIB if disk_gb else needed
    if size < needed:
        raise GuestRefused(
            f"image {image.id} needs a root disk of {-(-needed // GIB)} GB, the flavor has {disk_gb}"
        )
    create = ("qemu-img", "create", "-q", "-f", "qcow2", "-F", image.disk_format, "-b", str(base))
    _made_at(path, lambda part: _run(*create, str(part), str(size)))


def ephemeral_disk(path: Path, size_gb: int, label: str) -> None:
    """Make an empty ext4 disk of its own, unless it is there."""

    def make(part: Path) -> None:
        _sparse(part, size_gb * GIB)
        _run("mkfs.ext4", "-q", "-F", "-L", label, "-E", "nodiscard", str(part))

    _made_at(path, make)


def swap_disk(path: Path, size_mb: int) -> None:
    """Make a swap disk, unless it is there."""

    def make(part: Path) -> None:
        _sparse(part, size_mb * MIB)
        _run("mkswap", str(part))

    _made_at(path, make)


def config_drive(path: Path, files: dict[str, bytes]) -> None:
    """Write an ISO 9660 image labelled ``config-2`` with these files (path → content).

    Rock Ridge and Joliet names keep the case; the plain ISO names mean nothing.
    """
    iso = pycdlib.PyCdlib()
    iso.new(interchange_level=3, joliet=3, rock_ridge="1.09", vol_ident="config-2")
    try:
        plain = {"": ""}
        for name in sorted(files):
            *folders, leaf = name.split("/")
            folder = ""
            for part in folders:
                parent, folder = folder, f"{folder}/{part}"
                if folder not in plain:
                    plain[folder] = f"{plain[parent]}/D{len(plain):06}"
                    iso.add_directory(plain[folder], rr_name=part, joliet_path=folder)
            content = files[name]
            plain[f"{folder}/{leaf}"] = f"{plain[folder]}/F{len(plain):06}.;1"
            iso.add_fp(
                io.BytesIO(content),
                len(content),
                plain[f"{folder}/{leaf}"],
                rr_name=leaf,
                joliet_path=f"{folder}/{leaf}",
            )
        image = io.BytesIO()
        iso.write_fp(image)
    finally:
        iso.close()
    write_atomic(path, image.getvalue())


def supports_direct_io(directory: Path) -> bool:
    """Whether files here can be opened past the page cache (tmpfs, for one, cannot)."""
    probe = directory / f".direct-io-{os.getpid()}"
    try:
        os.close(os.open(probe, os.O_CREAT | os.O_RDWR | os.O_DIRECT, 0o600))
    except OSError:
        return False
    finally:
        probe.unlink(missing_ok=True)
    return True


def cap_log(path: Path, max_bytes: int) -> bool:
    """Keep an append-only log near ``max_bytes``: move its end to ``<path>.0`` and empty it.

    The writer keeps the file open in append mode and goes on at the new end. What it writes between
    the copy and the cut is lost. True when the log was cut.
    """
    try:
        with path.open("r+b") as log:
            size = log.seek(0, os.SEEK_END)
            if size <= max_bytes:
                return False
            log.seek(size - max_bytes)
            write_atomic(older_log(path), log.read(max_bytes), durable=False)
            log.truncate(0)
            return True
    except FileNotFoundError:
        return False


def older_log(path: Path) -> Path:
    """Where the part of a log before its last cut is (virtlogd's rotation uses the same name)."""
    return path.with_name(f"{path.name}.0")


def log_tail(path: Path, max_bytes: int) -> bytes:
    """The last bytes of a log and, if they do not suffice, of the part before its last cut."""
    text = b""
    for file in (path, older_log(path)):
        try:
            with file.open("rb") as log:
                size = log.seek(0, os.SEEK_END)
                log.seek(max(0, size - (max_bytes - len(text))))
                text = log.read(max_bytes - len(text)) + text
        except FileNotFoundError:
            continue
    return text


# --- how it is done ---------------------------------------------------------------------------------


def _lock_path(base: Path) -> Path:
    return base.with_name(f"{base.name}.lock")


def _older(lock: Path, age_s: float) -> bool:
    try:
        return time.time() - lock.stat().st_mtime >= age_s
    except FileNotFoundError:
        lock.touch()  # a base without its lock: start to count now
        return age_s <= 0


def _made_at(path: Path, make: Callable[[Path], None]) -> None:
    """Make a file beside its place and move it there, so that what is there is whole."""
    if path.exists():
        return
    part = path.with_name(f"{path.name}.part")
    part.unlink(missing_ok=True)
    make(part)
    part.chmod(0o600)
    part.rename(path)


def _sparse(path: Path, size_bytes: int) -> None:
    with path.open("wb") as file:
        file.truncate(size_bytes)


def _protect(path: Path, *, on: bool, immutable: bool = True) -> None:
    """Read-only for all, and immutable where the file system can; or neither."""
    if not path.exists():
        return
    if immutable:
        flag = "+i" if on else "-i"
        subprocess.run(["chattr", flag, str(path)], check=False, capture_output=True)
    if on and immutable:
        return  # the mode can no longer be changed, and was before
    path.chmod(0o444 if on else 0o600)


def _run(*command: str) -> None:
    try:
        subprocess.run([*_TOOL_LIMITS, *command], check=True, capture_output=True, timeout=120)
    except subprocess.CalledProcessError as error:
        detail = without_paths(error.stderr.decode(errors="replace").strip())
        raise GuestFailure(f"{command[0]} failed: {detail}") from error
    except subprocess.TimeoutExpired as error:
        raise GuestFailure(f"{command[0]} did not end in time") from error

"""Where image bytes lie: one directory, one file per image, named by its id, there only when whole.

An upload streams into a file beside it while it is measured and inspected, and takes its final name when
everything about it holds. Whatever goes wrong before leaves nothing.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oslo_utils.imageutils import format_inspector

from domain.errors import BadRequest, Conflict, TooLarge

DISK_FORMATS = ("qcow2", "raw")
"""What a guest's disk can be made from."""
_MAX_VIRTUAL_SIZE = 2**63 - 1
_PARTITIONED = "gpt"
"""The inspector's name for a disk with a GPT or an MBR: a raw one."""


@dataclass(frozen=True, slots=True)
class Stored:
    """What is known of the bytes after an upload."""

    size: int
    virtual_size: int
    md5: str
    sha512: str


class Inspection:
    """Looks at a stream as it passes and says in the end whether it is what it claims to be."""

    def __init__(self, disk_format: str) -> None:
        self._declared = disk_format
        self._passing: list[bytes] = []
        self._inspector = format_inspector.InspectWrapper(iter(self._passing.pop, None))

    def see(self, chunk: bytes) -> None:
        """The next bytes, in order."""
        self._passing.append(chunk)
        next(self._inspector)

    def virtual_size(self) -> int:
        """Call once, after the last byte: how large the disk is that a guest would see, in bytes.

        BadRequest when the content is not of the declared format, is of several at once, or is a qcow2
        that refers to other files or needs features nobody has checked.
        """
        self._inspector.close()
        try:
            found = self._inspector.format
            assert found is not None  # noqa: S101  # decided, the stream has ended
            self._check(found)
        except format_inspector.SafetyCheckFailed as failed:
            reasons = "; ".join(sorted(str(reason) for reason in failed.failures.values()))
            raise BadRequest(f"Image content is not safe: {reasons}.") from None
        except format_inspector.ImageFormatError as broken:
            raise BadRequest(f"Image content cannot be used: {broken}.") from None
        return int(found.virtual_size)

    def _check(self, found: Any) -> None:
        name = str(found)
        if name == _PARTITIONED:
            # A partition table is the guest's to read; raw disks are opened as raw, whatever it says.
            name = "raw"
        if name != self._declared:
            raise BadRequest(
                f"Image content is of format {name}, but disk_format says {self._declared}."
            )
        if name == "qcow2":
            found.safety_check()
        if found.virtual_size > _MAX_VIRTUAL_SIZE:
            raise BadRequest("The virtual size of the image is out of range.")


class Incoming:
    """An upload under way; made by ``ImageStore.receive``. Methods block: call them from a thread."""

    def __init__(self, part: Path, final: Path, disk_format: str, max_bytes: int) -> None:
        self._part, self._final, self._max_bytes = part, final, max_bytes
        self._size = 0
        self._md5 = hashlib.md5(usedforsecurity=False)
        self._sha512 = hashlib.sha512()
        self._inspection = Inspection(disk_format)
        self._file = part.open("wb")

    def write(self, chunk: bytes) -> None:
        """Take the next bytes. TooLarge beyond the limit or when the disk is full."""
        self._size += len(chunk)
        if self._size > self._max_bytes:
            raise TooLarge(f"The image is larger than the {self._max_bytes} bytes it may have.")
        self._md5.update(chunk)
        self._sha512.update(chunk)
        self._inspection.see(chunk)
        with _disk_full_is_too_large():
            self._file.write(chunk)

    def finish(self) -> Stored:
        """All bytes have come: judge them, make them durable, give them their name."""
        virtual_size = self._inspection.virtual_size()
        with _disk_full_is_too_large():
            self._file.flush()
            os.fsync(self._file.fileno())
        self._file.close()
        self._part.replace(self._final)
        _sync_directory(self._final.parent)
        return Stored(self._size, virtual_size, self._md5.hexdigest(), self._sha512.hexdigest())

    def discard(self) -> None:
        """Leave nothing under the temporary name."""
        with suppress(OSError):  # it may fail to flush when the disk is full
            self._file.close()
        self._part.unlink(missing_ok=True)


class ImageStore:
    """The directory of image bytes."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def path(self, image_id: str) -> Path:
        """Where an image's bytes are, or will be."""
        return self._directory / image_id

    @contextmanager
    def lock(self, image_id: str) -> Iterator[None]:
        """Hold the right to upload this image. Conflict when someone else holds it.

        The kernel gives it back when a process dies, so a broken upload never blocks the next one.
        """
        self._directory.mkdir(parents=True, exist_ok=True)
        path = self._directory / f"{image_id}.lock"
        with path.open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                current = os.path.samestat(os.fstat(file.fileno()), path.stat())
            except (BlockingIOError, FileNotFoundError):
                current = False
            if not current:  # or it was released and removed between our open and our flock
                raise Conflict(f"An upload of image {image_id} is under way.")
            try:
                yield
            finally:
                path.unlink()

    def receive(self, image_id: str, disk_format: str, max_bytes: int) -> Incoming:
        """Begin an upload; hold ``lock`` meanwhile and call ``discard`` at the end, come what may."""
        part = self._directory / f"{image_id}.part"
        return Incoming(part, self.path(image_id), disk_format, max_bytes)

    def remove(self, image_id: str) -> None:
        """Forget an image's bytes; it need not have any."""
        self.path(image_id).unlink(missing_ok=True)


@contextmanager
def _disk_full_is_too_large() -> Iterator[None]:
    try:
        yield
    except OSError as failure:
        if failure.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise TooLarge("The image store is full.") from failure
        raise


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

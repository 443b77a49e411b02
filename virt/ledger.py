"""What a host remembers of each server: the epoch it last accepted, its tombstone, its specification.

Commands reach a host late, twice, or out of order: a worker may hang for an hour inside one call and
go on. The ledger decides which of them still count, by the epoch of their fence, and survives the
worker. A destroy writes its tombstone *before* it removes anything, and a spawn asks again at every
stage, so whichever comes last finds the truth.
"""

from __future__ import annotations

import fcntl
import os
import re
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from domain.errors import Fenced, GuestFailure, GuestRefused
from domain.guest import Fence, GuestSpec

_SAFE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


@dataclass(frozen=True, slots=True)
class Entry:
    """One server in the ledger. Epochs only grow; ``None`` means never."""

    accepted: int | None = None
    """The epoch of the newest spawn that was let in."""
    buried: int | None = None
    """The epoch of the newest destroy: the tombstone."""


@dataclass(frozen=True, slots=True)
class Remembered:
    """A guest as it was last described to this host."""

    spec: GuestSpec
    epoch: int


_ENTRY = TypeAdapter(Entry)
_REMEMBERED = TypeAdapter(Remembered)


def safe_id(server_id: str) -> str:
    """The id itself, when it can be a file name. GuestRefused otherwise: ids become paths."""
    if not _SAFE_ID.fullmatch(server_id):
        raise GuestRefused(f"{server_id!r} is not a server id")
    return server_id


def write_atomic(path: Path, content: bytes, *, durable: bool = True) -> None:
    """Replace a file so that a reader, or a crash, sees the old or the new content; mode 0600."""
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def remember(path: Path, remembered: Remembered, *, durable: bool = True) -> None:
    """Keep a guest's specification in one file."""
    write_atomic(path, _REMEMBERED.dump_json(remembered), durable=durable)


def recall(path: Path) -> Remembered | None:
    """What ``remember`` kept; ``None`` when there is no such file. GuestFailure if it is damaged."""
    try:
        return _REMEMBERED.validate_json(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValidationError as damaged:
        raise GuestFailure(f"the record of a guest cannot be read: {path.name}") from damaged


class Ledger:
    """Epochs and tombstones, one small file for each server; ``directory=None`` keeps them in memory.

    Safe between threads and between processes that share the directory.
    """

    def __init__(self, directory: Path | None, *, durable: bool = True) -> None:
        self._directory = directory
        self._durable = durable
        self._memory: dict[str, Entry] = {}
        self._lock = threading.Lock()
        if directory is not None:
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)

    def entry(self, server_id: str) -> Entry:
        """What is known of a server; an empty entry when nothing is."""
        if self._directory is None:
            return self._memory.get(server_id, Entry())
        try:
            return _ENTRY.validate_json(self._path(server_id).read_bytes())
        except FileNotFoundError:
            return Entry()
        except ValidationError as damaged:
            raise GuestFailure(f"the ledger of {server_id} cannot be read") from damaged

    def admit(self, server_id: str, fence: Fence) -> None:
        """Let a spawn in and record its epoch. Fenced when it is stale."""
        with self._exclusive():
            entry = self.entry(server_id)
            _refuse_stale(server_id, entry, fence)
            if entry.accepted != fence.epoch:
                self._write(server_id, replace(entry, accepted=fence.epoch))

    def check(self, server_id: str, fence: Fence) -> None:
        """Fenced when a spawn that was let in has been overtaken since."""
        _refuse_stale(server_id, self.entry(server_id), fence)

    def is_buried(self, server_id: str) -> bool:
        """Whether the newest guest of this server was destroyed."""
        entry = self.entry(server_id)
        return entry.buried is not None and (entry.accepted or 0) <= entry.buried

    def bury(self, server_id: str, fence: Fence) -> bool:
        """Leave a tombstone. False when a guest of a later epoch lives here and must be left alone."""
        with self._exclusive():
            entry = self.entry(server_id)
            if entry.buried is None or entry.buried < fence.epoch:
                self._write(server_id, replace(entry, buried=fence.epoch))
            return entry.accepted is None or entry.accepted <= fence.epoch

    def forget(self, older_than_s: float, keep: set[str]) -> list[str]:
        """Drop tombstones older than this, except those of the servers in ``keep``; who was dropped.

        A tombstone must outlive every command that could still be under way.
        """
        if self._directory is None:
            return []
        dropped = []
        with self._exclusive():
            for path in self._directory.glob("*.json"):
                with suppress(FileNotFoundError):
                    old = time.time() - path.stat().st_mtime > older_than_s
                    if old and path.stem not in keep:
                        path.unlink()
                        dropped.append(path.stem)
        return dropped

    def _path(self, server_id: str) -> Path:
        assert self._directory is not None  # noqa: S101 - callers looked
        return self._directory / f"{safe_id(server_id)}.json"

    def _write(self, server_id: str, entry: Entry) -> None:
        if self._directory is None:
            self._memory[server_id] = entry
        else:
            write_atomic(self._path(server_id), _ENTRY.dump_json(entry), durable=self._durable)

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        with self._lock:
            if self._directory is None:
                yield
                return
            with (self._directory / ".lock").open("ab") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield


def _refuse_stale(server_id: str, entry: Entry, fence: Fence) -> None:
    if entry.buried is not None and fence.epoch <= entry.buried:
        raise Fenced(f"server {server_id} was destroyed here under epoch {entry.buried}")
    if entry.accepted is not None and fence.epoch < entry.accepted:
        raise Fenced(f"server {server_id} has moved on here to epoch {entry.accepted}")

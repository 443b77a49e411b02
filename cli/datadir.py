"""The data directory of ``duranova up``: one owner, its secrets, its clouds.yaml."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel, ValidationError

from cli.clouds import CLOUDS, clouds_yaml
from domain.errors import DuranovaError

FORMAT = 1
"""Of the directory as a whole; a program refuses one that it does not know."""


class StartError(DuranovaError):
    """The program cannot start; the message is one line that says what to do. Exit code 2."""


class Secrets(BaseModel):
    """What a first start makes up and every later start reads."""

    format: int = FORMAT
    secret_key: str = field(default_factory=str)
    passwords: dict[str, str] = {}


class Running(BaseModel):
    """Where the parts of a running ``duranova up`` are, for commands that look at it."""

    pid: int
    database_url: str
    temporal_address: str
    temporal_namespace: str
    public_url: str


@dataclass(frozen=True, slots=True)
class DataDir:
    """An open data directory; held until the process ends."""

    path: Path
    secrets: Secrets
    lock: int

    @property
    def database_url(self) -> str:
        """The SQLite database in it."""
        return f"sqlite:///{self.path / 'duranova.db'}"

    @property
    def temporal_db(self) -> Path:
        """The embedded Temporal server's file."""
        return self.path / "temporal.db"

    def partitions(self) -> int:
        """How many partitions the queues in Temporal's file may have tasks in. A task in one that is not
        read would wait for ever, and earlier versions had four."""
        mark = self.path / _ONE_PARTITION
        if not self.temporal_db.exists():
            mark.touch()
        return 1 if mark.exists() else _PARTITIONS_BEFORE

    def log(self, name: str) -> Path:
        """A log file."""
        return self.path / "log" / f"{name}.log"

    def write_clouds(self, public_url: str, region: str) -> Path:
        """Write clouds.yaml (0600) for this address and return its path."""
        path = self.path / "clouds.yaml"
        _write_private(path, clouds_yaml(public_url, region, self.secrets.passwords))
        return path

    def write_running(self, running: Running) -> None:
        """Say where everything is (0600: a database's URL may hold a password), while it runs."""
        _write_private(self.path / _RUNNING, running.model_dump_json(indent=2))

    def forget_running(self) -> None:
        """It runs no more."""
        (self.path / _RUNNING).unlink(missing_ok=True)


_RUNNING = "running.json"
_ONE_PARTITION = "temporal-one-partition"
_PARTITIONS_BEFORE = 4


def read_running(path: Path) -> Running:
    """What runs in this data directory. StartError when nothing does."""
    try:
        running = Running.model_validate_json((path / _RUNNING).read_text())
    except OSError as error:
        raise StartError(f"no duranova runs in {path}: {error.strerror}") from error
    except ValidationError:
        raise StartError(f"{path / _RUNNING} is not ours") from None
    try:
        os.kill(running.pid, 0)
    except ProcessLookupError:
        raise StartError(f"no duranova runs in {path}: the last one was killed") from None
    except PermissionError:
        pass  # somebody else's, and alive
    return running


def open_data_dir(path: Path) -> DataDir:
    """Open the directory for this process alone, making it and its secrets if it is new.

    StartError when it cannot be written, is in use, or was made by another kind of program.
    """
    path = path.absolute()
    try:
        (path / "log").mkdir(parents=True, exist_ok=True)
        path.chmod(0o700)
        lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StartError(
            f"cannot write to {path}: {error.strerror}; choose another with --data-dir"
        ) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise StartError(
            f"another duranova runs in {path}; stop it, or choose another --data-dir"
        ) from None
    return DataDir(path, _secrets(path), lock)


def _secrets(path: Path) -> Secrets:
    file = path / "secrets.json"
    if not file.exists():
        if (path / "duranova.db").exists():
            raise StartError(f"{file} is missing but {path} holds a database; restore it")
        made = Secrets(
            secret_key=secrets.token_urlsafe(48),
            passwords={user: secrets.token_urlsafe(18) for user in CLOUDS.values()},
        )
        _write_private(file, made.model_dump_json(indent=2))
    try:
        known = Secrets.model_validate_json(file.read_text())
    except (ValidationError, json.JSONDecodeError):
        raise StartError(f"{file} is not ours; choose another --data-dir") from None
    if known.format != FORMAT:
        raise StartError(
            f"{path} has format {known.format}, this program knows {FORMAT}; "
            "use the duranova that made it, or another --data-dir"
        )
    return known


def _write_private(path: Path, text: str) -> None:
    fresh = path.with_suffix(path.suffix + ".new")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    fresh.rename(path)

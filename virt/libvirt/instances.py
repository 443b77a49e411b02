"""The guests' folders on this host: record, disks, config drive, console log."""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path

from domain.guest import GuestSpec
from domain.ids import guest_name
from virt import disks
from virt.driver import Supplies
from virt.ledger import Remembered, recall, remember, safe_id
from virt.libvirt.xml import Disk


class Instances:
    """The guests' folders and what lies in them."""

    def __init__(self, directory: Path, qemu_log_dir: Path) -> None:
        self._directory = directory
        self._qemu_log_dir = qemu_log_dir
        self._lock = threading.Lock()

    def open(self) -> None:
        """Make the directory; only its owner may look into it."""
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)

    def path(self, server_id: str) -> Path:
        """The guest's folder."""
        return self._directory / safe_id(server_id)

    def console(self, server_id: str) -> Path:
        """Where its serial console is logged."""
        return self.path(server_id) / "console.log"

    def ids(self) -> list[str]:
        """Every guest that has a folder."""
        return sorted(os.listdir(self._directory))

    def remember(self, spec: GuestSpec, epoch: int) -> None:
        """Keep the guest's specification, before anything else of it is made."""
        folder = self.path(spec.server_id)
        folder.mkdir(exist_ok=True, mode=0o700)
        remember(folder / "guest.json", Remembered(spec, epoch))

    def recall(self, server_id: str) -> Remembered | None:
        """What was remembered last."""
        return recall(self.path(server_id) / "guest.json")

    def make_disks(self, spec: GuestSpec, base: Path) -> None:
        """Make the disks that are not there."""
        folder = self.path(spec.server_id)
        disks.root_disk(folder / "root.qcow2", base, spec.image, spec.disk_gb)
        if spec.ephemeral_gb:
            disks.ephemeral_disk(folder / "ephemeral0.raw", spec.ephemeral_gb, "ephemeral0")
        if spec.swap_mb:
            disks.swap_disk(folder / "swap.raw", spec.swap_mb)

    def make_config_drive(self, spec: GuestSpec, supplies: Supplies) -> None:
        """Make the config drive, if the guest has one and it is not there."""
        path = self.path(spec.server_id) / "config-drive.iso"
        if spec.config_drive and not path.exists():
            disks.config_drive(path, supplies.config_drive(spec.server_id))

    def disks(self, spec: GuestSpec) -> list[Disk]:
        """The disks in the order the guest sees them."""
        folder = self.path(spec.server_id)
        found = [Disk(folder / "root.qcow2", "qcow2")]
        if spec.ephemeral_gb:
            found.append(Disk(folder / "ephemeral0.raw", "raw"))
        if spec.swap_mb:
            found.append(Disk(folder / "swap.raw", "raw"))
        if spec.config_drive:
            found.append(Disk(folder / "config-drive.iso", "raw", read_only=True))
        return found

    def files(self, server_id: str | None) -> list[str]:
        """Every file and folder of a guest, or of all, relative to the host's state directory."""
        folders = self._directory.iterdir() if server_id is None else [self.path(server_id)]
        return [
            str(Path("instances") / path.relative_to(self._directory))
            for folder in folders
            if folder.exists()
            for path in (folder, *folder.rglob("*"))
        ]

    def remove(self, server_id: str) -> None:
        """Remove the guest's folder and the log QEMU wrote about it."""
        (self._qemu_log_dir / f"{guest_name(server_id)}.log").unlink(missing_ok=True)
        folder = self.path(server_id)
        with self._lock:
            if not folder.exists():
                return
            for path in folder.iterdir():
                if path.name != "guest.json":  # the record goes last
                    path.unlink()
            shutil.rmtree(folder)

    def cap_consoles(self, max_bytes: int) -> None:
        """Cut the console logs that have grown beyond this."""
        for server_id in self.ids():
            with self._lock:  # not while the folder is being removed
                disks.cap_log(self.console(server_id), max_bytes)

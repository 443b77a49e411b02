"""``duranova up`` as prey: the process that is API, control worker and parent of all others dies as well."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import suppress
from pathlib import Path

from chaos.cloud import UpCloud
from chaos.guests import Guests
from chaos.hypervisor import guests_of, private_libvirtd
from chaos.waiting import eventually

_BACK_WITHIN_S = 120.0
_CHILDREN = {"temporal": b"start-dev", "hosts": b"cli.main\0host\0"}
"""Part → what its command line says."""


class WholeCloud:
    """One ``duranova up``. Its children are started again by it, itself by the runner."""

    def __init__(self, data_dir: Path, driver: str, hosts: int) -> None:
        self._driver = driver
        self._cloud = UpCloud(data_dir.absolute(), "--driver", driver, "--hosts", str(hosts))
        self.data_dir = self._cloud.data_dir
        self.log_dir = self.data_dir / "log"
        self.url = f"http://127.0.0.1:{self._cloud.port}"
        self.database_url = f"sqlite:///{self.data_dir}/duranova.db"
        self._libvirtd = private_libvirtd(self.data_dir)

    @property
    def parts(self) -> tuple[str, ...]:
        """What can be killed."""
        private = self._libvirtd.libvirtd_pid() is not None
        return ("up", *_CHILDREN, *(["libvirtd"] if private else []))

    @property
    def temporal_address(self) -> str:
        """Of the Temporal server that runs now; it has another port after each start."""
        words = (Path("/proc") / str(self._find("temporal")) / "cmdline").read_bytes().split(b"\0")
        return f"127.0.0.1:{words[words.index(b'--port') + 1].decode()}"

    def guests(self) -> Guests:
        """What runs on the hosts."""
        return guests_of(self._driver, self.data_dir)

    async def start(self) -> None:
        """Start it and return when it is ready."""
        await asyncio.to_thread(self._cloud.start)

    async def kill(self, part: str, down_s: float) -> None:
        """kill -9; returns when it runs again."""
        await asyncio.to_thread(self._kill, part, down_s)

    async def close(self) -> None:
        """End every process."""
        await asyncio.to_thread(self._cloud.close)

    def _kill(self, part: str, down_s: float) -> None:
        pid = self._find(part)
        if pid is None:
            return  # it dies or is starting because of an earlier kill
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        if part == "up":
            self._cloud.restart(down_s)
        else:
            eventually(lambda: self._find(part) not in (None, pid), _BACK_WITHIN_S)

    def _find(self, part: str) -> int | None:
        if part == "up":
            return self._cloud.pid
        if part == "libvirtd":
            return self._libvirtd.libvirtd_pid()
        return self._cloud.find(_CHILDREN[part])

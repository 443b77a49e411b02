"""The cloud as separate processes, each to be killed alone: Temporal, API, control worker, hosts."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from pydantic import SecretStr

from chaos.guests import Guests
from chaos.hypervisor import guests_of, private_libvirtd
from cli.children import Child
from cli.datadir import DataDir, StartError, open_data_dir
from cli.hypervisors import Hypervisor, plan_hypervisors
from cli.records import ensure_first_records
from db import schema
from db.session import open_engine, transaction
from runtime.devserver import command as temporal_command
from runtime.devserver import free_port, wait_ready
from runtime.settings import Settings

LIBVIRTD = "libvirtd"
_TRY_AGAIN_S = 1.0


class SplitCloud:
    """One cloud; ``close`` ends every process of it, guests excepted."""

    def __init__(self, data_dir: Path, driver: str, hosts: int) -> None:
        self._driver, self._hosts = driver, hosts
        self._data: DataDir = open_data_dir(data_dir)
        self.data_dir = self._data.path
        self.log_dir = self.data_dir / "log"
        url = f"http://127.0.0.1:{free_port()}"
        self.settings = Settings(
            data_dir=self.data_dir,
            database_url=self._data.database_url,
            temporal_address=f"127.0.0.1:{free_port()}",
            public_url=url,
            control_url=url,
            secret_key=SecretStr(self._data.secrets.secret_key),
        )
        self._children: dict[str, Child] = {}
        self._hypervisors: list[Hypervisor] = []
        self._libvirtd = private_libvirtd(self.data_dir)

    @property
    def url(self) -> str:
        """Of the API."""
        return self.settings.public_url

    @property
    def database_url(self) -> str:
        """Of the record."""
        return self.settings.database_url

    @property
    def temporal_address(self) -> str:
        """Of the Temporal server."""
        return self.settings.temporal_address

    @property
    def parts(self) -> tuple[str, ...]:
        """What can be killed."""
        private = self._driver == "libvirt" and self._libvirtd.libvirtd_pid() is not None
        return (*self._children, *([LIBVIRTD] if private else []))

    def guests(self) -> Guests:
        """What runs on the hosts."""
        return guests_of(self._driver, self.data_dir)

    async def start(self) -> None:
        """Start everything and return when all of it is ready. StartError when it cannot."""
        await asyncio.to_thread(self._prepare)
        port = int(self.settings.temporal_address.rpartition(":")[2])
        temporal = temporal_command(port, self._data.temporal_db, None)
        self._add("temporal", temporal, {}, says_ready=False)
        await self._children["temporal"].start()
        await wait_ready(self.settings.temporal_address, self.settings.temporal_namespace)
        everything = self._control_side()
        listen = self.settings.public_url.removeprefix("http://")
        self._add("api", _duranova("api", "--listen", listen), everything)
        self._add("control", _duranova("control"), everything)
        for hypervisor in self._hypervisors:
            own = hypervisor.environment(self.settings)
            line = [*hypervisor.prefix, *_duranova("host", *hypervisor.arguments)]
            self._add(hypervisor.name, line, own)
        # A host is ready once the API has taken its report.
        await asyncio.gather(
            *(child.start() for name, child in self._children.items() if name != "temporal")
        )

    async def kill(self, part: str, down_s: float) -> None:
        """kill -9, and start it again after a while, until it is ready."""
        if part == LIBVIRTD:  # its anchor starts it again
            if pid := self._libvirtd.libvirtd_pid():
                os.kill(pid, signal.SIGKILL)
            return
        child = self._children[part]
        await child.kill()
        await asyncio.sleep(down_s)
        while True:
            try:
                await child.start()
                return
            except StartError:  # what it needs is down as well
                await child.kill()
                await asyncio.sleep(_TRY_AGAIN_S)

    async def close(self) -> None:
        """Stop every process."""
        await asyncio.gather(
            *(child.stop() for name, child in self._children.items() if name != "temporal")
        )
        if temporal := self._children.get("temporal"):
            await temporal.stop()
        for hypervisor in self._hypervisors:
            if hypervisor.stop is not None:
                await asyncio.to_thread(hypervisor.stop)
        with suppress(OSError):
            os.close(self._data.lock)

    def _prepare(self) -> None:
        schema.upgrade(self.settings.database_url)
        engine = open_engine(self.settings.database_url)
        with transaction(engine) as session:
            ensure_first_records(session, self._data.secrets.passwords)
        engine.dispose()
        self._data.write_clouds(self.settings.public_url, self.settings.region)
        if self._driver == "libvirt":
            self._hypervisors = plan_hypervisors("libvirt", self._hosts, self._data)
        else:
            self._hypervisors = [self._fake(n) for n in range(1, self._hosts + 1)]

    def _fake(self, number: int) -> Hypervisor:
        name = f"host-{number}"
        state = str(self.data_dir / "hosts")
        arguments = ("--driver", "fake", "--name", name, "--state-dir", state)
        return Hypervisor(name, (name,), arguments)

    def _control_side(self) -> dict[str, str]:
        settings = self.settings
        return {
            "DURANOVA_REPORT_INTERVAL_S": "2",  # the audit waits for reports
            "DURANOVA_DATA_DIR": str(settings.data_dir),
            "DURANOVA_DATABASE_URL": settings.database_url,
            "DURANOVA_TEMPORAL_ADDRESS": settings.temporal_address,
            "DURANOVA_PUBLIC_URL": settings.public_url,
            "DURANOVA_CONTROL_URL": settings.control_url,
            "DURANOVA_SECRET_KEY": settings.secret_key.get_secret_value(),
        }

    def _add(
        self, name: str, line: list[str], env: Mapping[str, str], *, says_ready: bool = True
    ) -> None:
        self._children[name] = Child(name, line, self._data.log(name), env, says_ready=says_ready)


def _duranova(*words: str) -> list[str]:
    return [sys.executable, "-m", "cli.main", *words]

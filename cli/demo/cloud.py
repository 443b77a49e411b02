"""The demo's own cloud: a ``duranova up`` on free ports in a directory of its own, and its end."""

from __future__ import annotations

import os
import select
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from cli.children import last_line
from cli.datadir import StartError, open_data_dir
from cli.hypervisors import SYSTEM_URI
from domain.errors import DuranovaError
from domain.ids import bridge_name, tap_name
from runtime.devserver import free_port
from virt.libvirt.private import PrivateLibvirtd
from virt.nics import HostNetwork

HOST = "host-1"
READY_WITHIN_S = 240.0
STOPPED_WITHIN_S = 60.0
_MARK = "this-is-a-demo"
_BAD_LEVELS = [f'"level": "{level}"' for level in ("warning", "error", "critical")]


class DemoCloud:
    """One ``duranova up``. Its directory carries a mark, and no other directory is ever removed."""

    def __init__(self, directory: Path, driver: str) -> None:
        self.directory = directory.absolute()
        self.url = f"http://127.0.0.1:{free_port()}"
        self.ui = f"http://127.0.0.1:{free_port()}"
        self._driver = driver
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def clouds(self) -> Path:
        """The clouds.yaml."""
        return self.directory / "clouds.yaml"

    @property
    def logs(self) -> Path:
        """The directory of all logs."""
        return self.directory / "log"

    def prepare(self) -> None:
        """Make the directory, after removing what an earlier demo left there. StartError if it is
        in use or not a demo's."""
        if self.directory.exists() and any(self.directory.iterdir()):
            if not (self.directory / _MARK).exists():
                raise StartError(
                    f"{self.directory} is not a demo's; choose another with --data-dir"
                )
            os.close(open_data_dir(self.directory).lock)
            self._await_orphans()
            self.clear()
            self.remove()
        self.logs.mkdir(parents=True)
        (self.directory / _MARK).touch()

    def start(self) -> None:
        """Start it and return when it is ready. StartError when it does not come up."""
        reader, writer = os.pipe()
        command = [sys.executable, "-m", "cli.main", "up", "--data-dir", str(self.directory)]
        command += ["--listen", self.url.removeprefix("http://"), "--driver", self._driver]
        command += ["--temporal-ui-port", self.ui.rpartition(":")[2], "--ready-fd", str(writer)]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "TERM", "--", *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(writer,),
                start_new_session=True,  # ctrl-C is the demo's, which still has to clean up
            )
        os.close(writer)
        with os.fdopen(reader) as ready:
            spoke, _, _ = select.select([ready], [], [], READY_WITHIN_S)
            if not spoke or not ready.readline():
                raise StartError(f"`duranova up` did not start: {last_line(self._log)}")

    def check(self) -> None:
        """StartError when it has ended by itself."""
        if self._process is not None and self._process.poll() is not None:
            raise StartError(f"`duranova up` ended: {last_line(self._log)}")

    def stop(self) -> None:
        """Stop it. Guests and, with them, what they need may remain: see ``clear``."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(STOPPED_WITHIN_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None
        self._await_orphans()

    def typed(self, file: Path) -> str:
        """A file's name without anything to quote, for a client that works in our directory."""
        plain = str(file)
        if shlex.quote(plain) == plain:
            return plain
        if file.parent != self.directory:
            (self.directory / "given-file").symlink_to(file)
            return "given-file"
        return file.name

    def console(self, server_id: str) -> str:
        """What the host has of a guest's console, without asking anybody."""
        file = self._instances / server_id / "console.log"
        return file.read_text(errors="replace") if file.exists() else ""

    def remains(self, server_id: str, ports: Iterable[str], networks: Iterable[str]) -> list[str]:
        """What this machine still has of a server: devices, its domain, its files."""
        names = [*map(tap_name, ports), *map(bridge_name, networks)]
        found = [f"device {name}" for name in names if Path("/sys/class/net", name).exists()]
        found += [f"domain {name}" for name in self._domains() if server_id in name]
        # Where the libvirt driver keeps a guest, and where the fake one does.
        files = [self._instances / server_id, self._host / "guests" / f"{server_id}.json"]
        return found + [
            f"file {file.relative_to(self.directory)}" for file in files if file.exists()
        ]

    def clear(self) -> None:
        """Remove guests, wiring, packet filter and libvirtd of a cloud that does not run; logs stay."""
        if self._driver == "fake":
            return
        for console in self._instances.glob("*/console.log"):
            shutil.copyfile(console, self.logs / f"console-{console.parent.name}.log")
        if self._instances.is_dir() and any(self._instances.iterdir()):
            # Seconds, for what only a failed demo leaves.
            from cli.demo.leftovers import destroy_guests  # noqa: PLC0415  # see above

            if self._libvirt.exists():
                self._daemon.start()
            destroy_guests(HOST, self._host, self._uri, self.logs / "demo.log")
        if (wiring := self._host / "network").exists():
            HostNetwork(wiring, HOST, _nobody_answers).remove()
        if self._libvirt.exists():
            shutil.copytree(self._libvirt / "log", self.logs / "libvirt", dirs_exist_ok=True)
            self._daemon.remove()

    def remove(self) -> None:
        """Remove the directory."""
        # Images that guests stood on are immutable files, where the file system can do that.
        subprocess.run(
            ["chattr", "-R", "-i", str(self.directory)], check=False, capture_output=True
        )
        shutil.rmtree(self.directory)

    def last_words(self, count: int = 8) -> dict[Path, list[str]]:
        """The end of each log that says something is wrong, and of what ``up`` printed."""
        words = {}
        for log in sorted(self.logs.glob("*.log")):
            lines = log.read_text(errors="replace").splitlines()
            bad = [line for line in lines if any(level in line for level in _BAD_LEVELS)]
            if bad or log == self._log:
                words[log] = [line[:400] for line in (bad or lines)[-count:]]
        return words

    # --- how it is done -------------------------------------------------------------------------

    @property
    def _log(self) -> Path:
        return self.logs / "up.log"

    @property
    def _instances(self) -> Path:
        return self._host / "instances"

    @property
    def _host(self) -> Path:
        return self.directory / "hosts" / HOST

    @property
    def _libvirt(self) -> Path:
        return self.directory / "libvirt" / HOST

    @property
    def _daemon(self) -> PrivateLibvirtd:
        return PrivateLibvirtd(self._libvirt, HOST, own_network=False)

    @property
    def _uri(self) -> str:
        return self._daemon.uri() if self._libvirt.exists() else SYSTEM_URI

    def _await_orphans(self) -> None:
        """A killed ``up`` takes its children along, and they need a moment. StartError if they stay."""
        deadline = time.monotonic() + STOPPED_WITHIN_S
        while orphans := _processes(f"{self.directory}/hosts", f"{self.directory}/temporal.db"):
            if time.monotonic() > deadline:
                raise StartError(f"these processes did not end: {', '.join(map(str, orphans))}")
            time.sleep(0.1)  # nobody tells of the end of a process that is not ours

    def _domains(self) -> list[str]:
        if self._driver == "fake":
            return []
        listed = subprocess.run(
            ["virsh", "--connect", self._uri, "list", "--all", "--name"],
            check=False,
            capture_output=True,
            text=True,
            timeout=60,
        )
        if listed.returncode != 0:
            raise DuranovaError(f"virsh cannot list domains: {listed.stderr.strip()}")
        return listed.stdout.split()


def _processes(*words: str) -> list[int]:
    """The processes that have one of these words on their command line."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it has ended meanwhile
            if any(word.encode() in file.read_bytes().split(b"\0") for word in words):
                found.append(int(file.parent.name))
    return found


def _nobody_answers(
    server_id: str, method: str, path: str, headers: Mapping[str, str]
) -> tuple[int, Mapping[str, str], bytes]:
    return 503, {}, b""

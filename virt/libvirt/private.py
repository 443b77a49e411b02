"""A libvirtd of our own: one hypervisor in its own namespaces, several to a machine.

``duranova up`` and the tests start one instead of using the machine's libvirtd. Run as a program this
module is the daemon's *anchor*: it holds the namespaces, starts libvirtd again when it dies, and
reaps what QEMU leaves (QEMU daemonizes; where nobody reaps it at once, libvirt waits seconds for a
process that is gone). The anchor runs with nothing but the standard library.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
import uuid
from pathlib import Path
from urllib.parse import quote
from xml.etree import ElementTree

MOUNTS = {
    "etc": "/etc/libvirt",
    "run": "/run/libvirt",
    "lib": "/var/lib/libvirt",
    "log": "/var/log/libvirt",
    "cache": "/var/cache/libvirt",
}
"""Our folders and where libvirtd, in its own mount namespace, believes them to be."""

_LIBVIRTD_CONF = """\
unix_sock_rw_perms = "0700"
auth_unix_ro = "none"
auth_unix_rw = "none"
host_uuid = "{host_uuid}"
keepalive_interval = 5
keepalive_count = 3
max_clients = 200
max_workers = 40
"""

_QEMU_CONF = """\
user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
security_driver = "none"
namespaces = [ ]
cgroup_controllers = [ ]
stdio_handler = "file"
max_core = 0
"""
# stdio_handler: QEMU writes its console log itself, in append mode. Behind virtlogd a guest that
# outlives a kill -9 of everything would have lost its console until its next start.

_FLOCK = "hhqqi"
"""``struct flock`` of 64-bit Linux: type, whence, start, length, pid."""
_SOCKET_PATH_MAX = 107
_PR_SET_CHILD_SUBREAPER = 36


class NotStarted(Exception):
    """The private libvirtd does not run; the message names its log."""


class PrivateLibvirtd:
    """One private libvirtd; everything of it is below ``directory``. Needs root.

    ``name`` is its host name, unique on the machine. With ``own_network`` it lives in the network
    namespace ``duranova-<name>``, which outlives it, as its guests do.
    """

    def __init__(self, directory: Path, name: str, *, own_network: bool) -> None:
        self._directory = directory.absolute()
        self.name = name
        self.network_namespace = f"duranova-{name}" if own_network else None

    def uri(self) -> str:
        """The connection URI for this machine's processes, from any namespace."""
        return f"qemu+unix:///system?socket={quote(str(self._socket))}"

    def pid(self) -> int | None:
        """The anchor's pid, whose namespaces the guests share; ``None`` when it does not run.

        The anchor holds a lock for as long as it lives and the kernel names the holder, so no stale
        pid file deceives anybody.
        """
        try:
            with self._lock.open("rb+") as lock:
                asked = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
                held, _, _, _, pid = struct.unpack(_FLOCK, fcntl.fcntl(lock, fcntl.F_GETLK, asked))
        except FileNotFoundError:
            return None
        return None if held == fcntl.F_UNLCK else int(pid)

    def libvirtd_pid(self) -> int | None:
        """The daemon's own pid, or ``None`` between its death and its next start."""
        try:
            pid = int((self._directory / "run" / "libvirtd.pid").read_text())
            ours = Path(f"/proc/{pid}/comm").read_text().strip() == "libvirtd"
        except (OSError, ValueError):
            return None
        return pid if ours else None

    def qemu_pid(self, guest: str) -> int:
        """The process of a running domain. FileNotFoundError when it does not run."""
        return int(self.qemu_pid_file(guest).read_text())

    def qemu_pid_file(self, guest: str) -> Path:
        """Where libvirt notes the process of a running domain."""
        return self._directory / "run" / "qemu" / f"{guest}.pid"

    @property
    def qemu_log_dir(self) -> Path:
        """Where QEMU's own messages go, one file for each guest."""
        return self._directory / "log" / "qemu"

    def start(self, timeout_s: float = 30.0) -> None:
        """Start the daemon unless it runs, and return when it answers. NotStarted if it does not."""
        if len(str(self._socket)) > _SOCKET_PATH_MAX:
            raise NotStarted(f"{self._socket} is too long for the path of a socket")
        deadline, launched = time.monotonic() + timeout_s, False
        while not (self.pid() and self._answers()):
            if self.pid() is None and not launched:
                self._configure()
                self._launch()
                launched = True
            if time.monotonic() > deadline:
                raise NotStarted(f"libvirtd of {self.name} did not start, see {self._log}")
            time.sleep(0.05)

    def stop(self, timeout_s: float = 20.0) -> None:
        """Stop the daemon and its anchor. Guests go on running; ``start`` finds them again."""
        pid = self.pid()
        if pid is None:
            return
        os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + timeout_s
        while self.pid() is not None:
            if time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)

    def remove(self) -> None:
        """Stop everything, guests too, and remove every trace but files outside the directory."""
        self.stop()
        for file in (self._directory / "run" / "qemu").glob("*.pid"):
            _kill_qemu(int(file.read_text()), file.stem)
        if self.network_namespace and self._namespace_file.exists():
            subprocess.run(["ip", "netns", "del", self.network_namespace], check=True)
        shutil.rmtree(self._directory, ignore_errors=True)

    # --- how it is done -------------------------------------------------------------------------

    @property
    def _socket(self) -> Path:
        return self._directory / "run" / "libvirt-sock"

    @property
    def _lock(self) -> Path:
        return self._directory / "anchor.lock"

    @property
    def _log(self) -> Path:
        return self._directory / "log" / "libvirtd.log"

    @property
    def _namespace_file(self) -> Path:
        return Path("/run/netns") / f"duranova-{self.name}"

    def _configure(self) -> None:
        for folder, mount_point in MOUNTS.items():
            (self._directory / folder).mkdir(parents=True, exist_ok=True, mode=0o700)
            Path(mount_point).mkdir(parents=True, exist_ok=True)
        identity = self._directory / "host_uuid"
        if not identity.exists():
            identity.write_text(str(uuid.uuid4()))
        conf = _LIBVIRTD_CONF.format(host_uuid=identity.read_text())
        (self._directory / "etc" / "libvirtd.conf").write_text(conf)
        (self._directory / "etc" / "qemu.conf").write_text(_QEMU_CONF)

    def _launch(self) -> None:
        command = ["unshare", "--mount", "--uts", "--propagation", "private"]
        command += [sys.executable, "-I", __file__, str(self._directory), self.name]
        if self.network_namespace:
            if not self._namespace_file.exists():
                subprocess.run(["ip", "netns", "add", self.network_namespace], check=True)
            command = ["nsenter", f"--net={self._namespace_file}", *command]
        with self._log.open("ab") as log:
            subprocess.Popen(
                ["setsid", "--fork", *command], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            ).wait()

    def _answers(self) -> bool:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            return probe.connect_ex(str(self._socket)) == 0


def _kill_qemu(pid: int, guest: str) -> None:
    """End a leftover QEMU, if this pid is still that guest."""
    try:
        if f"guest={guest}".encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(pid, signal.SIGKILL)
    except (FileNotFoundError, ProcessLookupError):
        return


def forget_unborn(status_dir: Path) -> None:
    """Remove what a killed libvirtd noted of guests whose process it did not know yet (pid 0).

    Its successor would take such a guest for running, wait for its monitor, and keep the guest's lock for
    ever (seen with libvirt 9.0). Without the note the guest is what it is: defined and not running.
    """
    for status in status_dir.glob("*.xml"):
        try:
            unborn = ElementTree.parse(status).getroot().get("pid") == "0"  # noqa: S314  libvirtd's own
        except (OSError, ElementTree.ParseError):
            continue
        if not unborn:
            continue
        pid_file = status.with_suffix(".pid")
        if pid_file.exists():
            _kill_qemu(int(pid_file.read_text() or 0), status.stem)
        pid_file.unlink(missing_ok=True)
        status.unlink()


# --- the anchor, in its own process -----------------------------------------------------------------


class _Anchor:
    """Holds the namespaces, keeps libvirtd running, reaps orphans at once."""

    def __init__(self, directory: Path, name: str) -> None:
        self._directory = directory
        self._name = name
        self._stopping = False
        self._daemon = 0

    def run(self) -> None:
        """Live until SIGTERM."""
        self._locked = (self._directory / "anchor.lock").open("ab")
        fcntl.lockf(self._locked, fcntl.LOCK_EX | fcntl.LOCK_NB)
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        signal.signal(signal.SIGTERM, self._stop)
        self._prepare()
        started = self._start_daemon()
        while True:
            pid, _ = os.waitpid(-1, 0)
            if pid != self._daemon:
                continue  # an orphan, reaped
            if self._stopping:
                return
            if time.monotonic() - started < 1.0:
                time.sleep(1.0)  # it dies at once: do not spin
            started = self._start_daemon()

    def _stop(self, *_: object) -> None:
        self._stopping = True
        if self._daemon:
            os.kill(self._daemon, signal.SIGTERM)

    def _prepare(self) -> None:
        for folder, mount_point in MOUNTS.items():
            source = str(self._directory / folder)
            subprocess.run(["mount", "--bind", source, mount_point], check=True)
        subprocess.run(["hostname", self._name], check=True)
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)

    def _start_daemon(self) -> float:
        forget_unborn(self._directory / "run" / "qemu")
        # A daemon without its anchor would hold the pid file and the sockets of its successor.
        command = ["setpriv", "--pdeathsig", "KILL", "libvirtd", "-p", "/run/libvirt/libvirtd.pid"]
        self._daemon = subprocess.Popen(command).pid
        return time.monotonic()


if __name__ == "__main__":
    _Anchor(Path(sys.argv[1]), sys.argv[2]).run()

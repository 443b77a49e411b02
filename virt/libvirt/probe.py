"""Does KVM really work on this machine?

A device that opens proves little: software KVMs offer the same interface, run firmware and boot loader,
and hang as soon as the guest enters long mode. So the last word has a guest that must get as far as a
64-bit program printing a line, with the kernel and initrd of our own tiny image.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from virt.ledger import write_atomic

DEVICE = Path("/dev/kvm")
QEMU = "qemu-system-x86_64"
BOOT_WITHIN_S = 10.0
"""A guest under KVM needs about one second, on a busy machine a few."""
_GET_API_VERSION = 0xAE00
_API_VERSION = 12
_POLL_S = 0.05
_KILLED_WITHIN_S = 2.0
# busybox is its first process, as `uname`; when that ends the kernel panics and so ends QEMU.
_KERNEL_LINE = "console=ttyS0 quiet panic=-1 no_timer_check rdinit=/bin/busybox -- uname -srm"
_PROGRAM_SPOKE = re.compile(rb"^Linux \S+ x86_64", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether guests may use KVM, and why or why not: half a sentence for a log."""

    works: bool
    reason: str


Boot = Callable[[Path, Path, float], Verdict]
"""(kernel, initrd, seconds) → whether that guest came up."""


def boot_under_kvm(kernel: Path, initrd: Path, within_s: float) -> Verdict:
    """Boot the probe guest the way a server would be: hardware acceleration, the host's own CPU."""
    return boot(kernel, initrd, within_s, accelerator="kvm", cpu="host")


def probe(
    guest_dir: Path,
    cache: Path | None = None,
    *,
    device: Path = DEVICE,
    cpuinfo: Path = Path("/proc/cpuinfo"),
    guest_boots: Boot = boot_under_kvm,
) -> Verdict:
    """Whether KVM works here; decided within seconds, whatever the machine does.

    ``guest_dir`` holds ``vmlinuz`` and ``initrd`` of the tiny guest. What the booted guest said is kept
    in ``cache`` until the machine, QEMU or the guest is another one; the cheap checks come each time.
    """
    refusal = _static_refusal(device, cpuinfo)
    if refusal is not None:
        return Verdict(False, refusal)
    kernel, initrd = guest_dir / "vmlinuz", guest_dir / "initrd"
    if not (kernel.is_file() and initrd.is_file()):
        return Verdict(False, f"cannot be tried: no guest in {guest_dir} (deploy/guest/build.sh)")
    key = _key(kernel, initrd)
    known = _recall(cache, key)
    if known is not None:
        return known
    verdict = guest_boots(kernel, initrd, BOOT_WITHIN_S)
    if cache is not None:
        cache.parent.mkdir(parents=True, exist_ok=True)
        record = {"key": key, "works": verdict.works, "reason": verdict.reason}
        write_atomic(cache, json.dumps(record).encode())
    return verdict


def _static_refusal(device: Path, cpuinfo: Path) -> str | None:
    try:
        descriptor = os.open(device, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        missing = error.errno == errno.ENOENT
        return f"there is no {device}" if missing else f"cannot open {device}: {error.strerror}"
    try:
        version = fcntl.ioctl(descriptor, _GET_API_VERSION)
    except OSError as error:
        return f"{device} is no KVM device: {error.strerror}"
    finally:
        os.close(descriptor)
    if version != _API_VERSION:
        return f"KVM speaks API version {version}, not {_API_VERSION}"
    flags = re.search(r"^flags\s*:(.*)$", cpuinfo.read_text(), re.MULTILINE)
    if flags is None or not {"vmx", "svm"} & set(flags[1].split()):
        return "the CPU shows neither vmx nor svm, so this KVM is emulated"
    return None


def boot(kernel: Path, initrd: Path, within_s: float, *, accelerator: str, cpu: str) -> Verdict:
    """Whether this kernel gets as far as a program under this accelerator (``kvm`` or ``tcg``).

    Returns after ``within_s`` and two seconds at the latest.
    """
    command = ["prlimit", "--core=0", "--", shutil.which(QEMU) or QEMU]
    command += ["-accel", accelerator, "-cpu", cpu, "-machine", "pc", "-m", "128"]
    command += ["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]
    command += ["-kernel", str(kernel), "-initrd", str(initrd), "-append", _KERNEL_LINE]
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="duranova-probe-") as folder:
        console, log = Path(folder) / "console", Path(folder) / "log"
        command += ["-serial", f"file:{console}"]
        with log.open("wb") as words:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=words, stderr=words, cwd=folder
            )
        try:
            while True:
                ended = process.poll() is not None  # before the last look at what it printed
                if console.exists() and _PROGRAM_SPOKE.search(console.read_bytes()):
                    return Verdict(True, f"a guest booted in {time.monotonic() - started:.1f} s")
                if ended:
                    return Verdict(False, f"QEMU gave up: {_first_line(log)}")
                if time.monotonic() - started > within_s:
                    return Verdict(False, f"a guest did not boot within {within_s:.0f} s")
                time.sleep(_POLL_S)
        finally:
            process.kill()
            with suppress(subprocess.TimeoutExpired):  # stuck in the kernel: nobody can help it
                process.wait(_KILLED_WITHIN_S)


def _first_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[0].removeprefix(f"{QEMU}: ")[:200] if lines else "without a word"


def _key(*files: Path) -> list[str]:
    """What a verdict holds for: this boot of the machine, this QEMU, this guest."""
    key = [Path("/proc/sys/kernel/random/boot_id").read_text().strip()]
    for path in (Path(shutil.which(QEMU) or "/nonexistent"), *files):
        known = path.stat() if path.exists() else None
        key.append(f"{path}:{known.st_mtime_ns}:{known.st_size}" if known else f"{path}:none")
    return key


def _recall(cache: Path | None, key: list[str]) -> Verdict | None:
    if cache is None:
        return None
    try:
        record = json.loads(cache.read_text())
        if record["key"] == key:
            return Verdict(bool(record["works"]), f"{record['reason']} (seen before)")
    except (OSError, ValueError, LookupError, TypeError):
        pass  # none yet, or not ours: look again
    return None

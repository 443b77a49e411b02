"""Whether KVM is used: only where a guest was seen to run a program with it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from runtime.settings import Settings
from virt.libvirt import probe as module
from virt.libvirt.probe import Verdict, boot, probe
from workers import host

REPOSITORY = Path(__file__).parents[2]


class Guest:
    """A probe guest that says what it is told to, and counts how often it was asked."""

    def __init__(self, verdict: Verdict) -> None:
        self.verdict = verdict
        self.boots = 0

    def __call__(self, kernel: Path, initrd: Path, within_s: float) -> Verdict:
        self.boots += 1
        return self.verdict


class Machine:
    """A machine as the probe sees it, with a KVM device that speaks the right version."""

    def __init__(self, folder: Path) -> None:
        self.cpuinfo = folder / "cpuinfo"
        self.cpuinfo.write_text("processor\t: 0\nflags\t\t: fpu vme svm lm\n")
        self.device = folder / "kvm"
        self.device.touch()
        self.guests = folder / "guest"
        self.guests.mkdir()
        for name in ("vmlinuz", "initrd"):
            (self.guests / name).write_text(name)
        self.cache = folder / "host" / "kvm.json"

    def asks(self, guest: Guest) -> Verdict:
        return probe(
            self.guests, self.cache, device=self.device, cpuinfo=self.cpuinfo, guest_boots=guest
        )


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    monkeypatch.setattr(module.fcntl, "ioctl", lambda *_: 12)
    return Machine(tmp_path)


BOOTED = Verdict(True, "a guest booted in 1.0 s")
HUNG = Verdict(False, "a guest did not boot within 10 s")


def test_kvm_works_when_a_guest_booted_with_it(machine: Machine) -> None:
    assert machine.asks(Guest(BOOTED)) == BOOTED


def test_kvm_that_only_looks_right_does_not_work(machine: Machine) -> None:
    assert machine.asks(Guest(HUNG)) == HUNG


@pytest.mark.parametrize("verdict", [BOOTED, HUNG])
def test_verdict_is_asked_of_a_guest_once_per_boot_of_the_machine(
    machine: Machine, verdict: Verdict
) -> None:
    guest = Guest(verdict)
    machine.asks(guest)
    again = machine.asks(guest)
    assert (again.works, guest.boots) == (verdict.works, 1)
    assert again.reason == f"{verdict.reason} (seen before)"


def test_another_qemu_is_asked_anew(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.asks(Guest(HUNG))
    other = tmp_path / "bin" / "qemu-system-x86_64"
    other.parent.mkdir()
    other.write_text("#!/bin/sh\n")
    other.chmod(0o755)
    monkeypatch.setenv("PATH", f"{other.parent}:{os.environ['PATH']}")
    assert machine.asks(Guest(BOOTED)) == BOOTED


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"key": 5}', "\x00"])
def test_damaged_memory_of_a_verdict_is_no_verdict(machine: Machine, content: str) -> None:
    machine.cache.parent.mkdir()
    machine.cache.write_text(content)
    assert machine.asks(Guest(BOOTED)) == BOOTED


def test_cpu_without_virtualisation_flags_is_believed_before_any_guest(machine: Machine) -> None:
    guest = Guest(BOOTED)
    machine.cpuinfo.write_text("flags\t\t: fpu vme lm\n")
    verdict = machine.asks(guest)
    assert (verdict.works, guest.boots) == (False, 0)
    assert "neither vmx nor svm" in verdict.reason


def test_machine_that_lost_kvm_since_the_last_verdict_is_not_taken_at_its_word(
    machine: Machine,
) -> None:
    machine.asks(Guest(BOOTED))
    machine.device.unlink()
    verdict = machine.asks(Guest(BOOTED))
    assert verdict == Verdict(False, f"there is no {machine.device}")


def test_device_of_another_kind_or_version_is_refused(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.fcntl, "ioctl", lambda *_: 11)
    assert "API version 11" in machine.asks(Guest(BOOTED)).reason
    monkeypatch.undo()
    assert "is no KVM device" in machine.asks(Guest(BOOTED)).reason


def test_without_a_guest_to_try_kvm_is_not_used_and_not_remembered(machine: Machine) -> None:
    (machine.guests / "initrd").rename(machine.guests / "elsewhere")
    verdict = machine.asks(Guest(BOOTED))
    assert not verdict.works
    assert "cannot be tried" in verdict.reason
    (machine.guests / "elsewhere").rename(machine.guests / "initrd")
    assert machine.asks(Guest(BOOTED)) == BOOTED


@pytest.mark.parametrize(
    ("virt_type", "seen", "used"),
    [
        ("auto", BOOTED, True),
        ("auto", HUNG, False),
        ("kvm", HUNG, True),
        ("qemu", BOOTED, False),
    ],
)
def test_setting_decides_over_what_the_probe_sees(
    virt_type: str,
    seen: Verdict,
    used: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "probe", lambda *_: seen)
    settings = Settings.model_validate({"virt_type": virt_type})
    assert host._uses_kvm(settings, tmp_path) is used


@pytest.fixture(scope="module")
def guests() -> Path:
    subprocess.run([REPOSITORY / "deploy" / "guest" / "build.sh"], check=True, timeout=500)
    return REPOSITORY / "build" / "guest"


@pytest.mark.libvirt
@pytest.mark.timeout(60)
def test_this_machine_gets_a_verdict_with_a_reason(guests: Path, tmp_path: Path) -> None:
    verdict = probe(guests, tmp_path / "kvm.json")
    assert verdict.reason
    flags = Path("/proc/cpuinfo").read_text()
    if "vmx" not in flags and "svm" not in flags:
        assert not verdict.works


@pytest.mark.libvirt
@pytest.mark.timeout(120)
def test_probe_guest_speaks_where_the_accelerator_works_and_is_ended_where_not(
    guests: Path,
) -> None:
    files = guests / "vmlinuz", guests / "initrd"
    assert boot(*files, 100, accelerator="tcg", cpu="qemu64").works
    too_short = boot(*files, 0.2, accelerator="tcg", cpu="qemu64")
    assert too_short == Verdict(False, "a guest did not boot within 0 s")
    impossible = boot(*files, 10, accelerator="tcg", cpu="no-such-cpu")
    assert not impossible.works
    assert "no-such-cpu" in impossible.reason
    assert not [words for words in _children() if b"qemu-system-x86_64" in words]


def _children() -> list[bytes]:
    """The command lines of what this process has started and not ended."""
    me = f"/proc/{os.getpid()}/task/{os.getpid()}/children"
    return [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in Path(me).read_text().split()]

"""What only a guest that really boots can show."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from pyroute2 import netns

from domain.errors import GuestFailure, GuestRefused
from domain.guest import GuestReport, SecurityRule
from domain.ids import guest_name, new_id, tap_name
from domain.states import PowerState
from tests.virt.subjects import BOOT_TIMEOUT_S, Subject, fence, nic, qemu_subject
from tests.virt.waiting import eventually
from virt.driver import Cancelled, Progress
from virt.libvirt.private import NotStarted, PrivateLibvirtd
from virt.nics import HostNetwork

pytestmark = [pytest.mark.libvirt, pytest.mark.timeout(400)]


def console(subject: Subject, server_id: str) -> bytes:
    return subject.driver.console_log(server_id, 10**6)


def booted(subject: Subject, server_id: str, times: int = 1) -> None:
    eventually(lambda: console(subject, server_id).count(b"BOOT-OK") >= times, BOOT_TIMEOUT_S)


def in_namespace(daemon: PrivateLibvirtd, *command: str) -> str:
    assert daemon.network_namespace
    full = ["ip", "netns", "exec", daemon.network_namespace, *command]
    return subprocess.run(full, check=True, capture_output=True, text=True).stdout


# --- the guest --------------------------------------------------------------------------------------


def test_a_guest_reads_its_config_drive_goes_down_when_asked_and_comes_up_again(
    qemu: Subject,
) -> None:
    spec, _ = qemu.spawned(config_drive=True)
    booted(qemu, spec.server_id)
    assert b"BOOT-OK from-drive" in console(qemu, spec.server_id)
    stopped = qemu.driver.stop(spec.server_id, BOOT_TIMEOUT_S, Progress())
    assert stopped == PowerState.SHUTDOWN
    assert qemu.driver.start(spec) == PowerState.RUNNING
    booted(qemu, spec.server_id, times=2)


def test_a_soft_reboot_lets_the_guest_shut_down_and_boots_it(qemu: Subject) -> None:
    spec, _ = qemu.spawned()
    booted(qemu, spec.server_id)
    seen: list[str] = []
    progress = Progress(on_step=seen.append)
    assert qemu.driver.reboot_soft(spec, BOOT_TIMEOUT_S, progress) == PowerState.RUNNING
    assert seen.count("start") == 1
    booted(qemu, spec.server_id, times=2)


def test_a_suspended_guest_goes_on_where_it_was(qemu: Subject) -> None:
    spec, _ = qemu.spawned()
    booted(qemu, spec.server_id)
    qemu.driver.suspend(spec.server_id)
    qemu.driver.resume(spec)
    # It hears the power button, so it lives; it did not boot again, so it is the same life.
    qemu.driver.stop(spec.server_id, BOOT_TIMEOUT_S, Progress())
    assert console(qemu, spec.server_id).count(b"BOOT-OK") == 1


def test_waiting_for_a_shutdown_can_be_cancelled(qemu: Subject) -> None:
    spec, _ = qemu.spawned()
    cancelled = threading.Event()
    timer = threading.Timer(0.5, cancelled.set)
    timer.start()
    with pytest.raises(Cancelled):
        qemu.driver.stop(spec.server_id, BOOT_TIMEOUT_S, Progress(cancelled))
    timer.join()
    assert qemu.driver.power_state(spec.server_id) == PowerState.RUNNING


def test_a_guest_has_the_disks_of_its_flavor(qemu: Subject) -> None:
    spec, _ = qemu.spawned(disk_gb=1, ephemeral_gb=1, swap_mb=64)
    folder = qemu.state_dir / "instances" / spec.server_id
    info = ["qemu-img", "info", "-U", "-f", "qcow2", "--output=json", str(folder / "root.qcow2")]
    described = subprocess.run(info, check=True, capture_output=True, text=True).stdout
    assert '"virtual-size": 1073741824' in described
    assert '"backing-filename-format": "qcow2"' in described
    kinds = [
        subprocess.run(
            ["blkid", "-o", "value", "-s", "TYPE", str(folder / name)],
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()
        for name in ("ephemeral0.raw", "swap.raw")
    ]
    assert kinds == ["ext4", "swap"]
    booted(qemu, spec.server_id)


def test_an_impossible_machine_is_refused_and_leaves_nothing(qemu: Subject) -> None:
    image = replace(qemu.image, properties={"hw_machine_type": "no-such-machine"})
    spec, token = qemu.spec(image=image), fence()
    with pytest.raises(GuestRefused):
        qemu.driver.spawn(spec, token, Progress())
    qemu.driver.destroy(spec.server_id, token)
    assert qemu.driver.residue(spec.server_id) == []


@pytest.mark.parametrize(
    "properties",
    [
        {"hw_machine_type": "q35"},
        {"hw_disk_bus": "scsi"},
        {"hw_disk_bus": "ide", "hw_vif_model": "e1000"},
        {"hw_disk_bus": "sata", "hw_machine_type": "q35"},
        {"hw_video_model": "vga", "hw_watchdog_action": "reset"},
    ],
    ids=lambda p: "-".join(p.values()),
)
def test_hardware_asked_for_by_the_image_starts(qemu: Subject, properties: dict[str, str]) -> None:
    image = replace(qemu.image, properties=properties)
    spec, _ = qemu.spawned(image=image, config_drive=True, vcpus=2)
    assert qemu.driver.power_state(spec.server_id) == PowerState.RUNNING


def test_a_guest_is_connected_to_its_tap(qemu: Subject, private_libvirtd: PrivateLibvirtd) -> None:
    card = nic("11111111-2222-3333-4444-555555555555")
    tap = tap_name(card.port_id)
    in_namespace(private_libvirtd, "ip", "tuntap", "add", tap, "mode", "tap", "vnet_hdr")
    in_namespace(private_libvirtd, "ip", "link", "set", tap, "up")
    spec, token = qemu.spawned(nics=(card,))
    eventually(lambda: "LOWER_UP" in in_namespace(private_libvirtd, "ip", "link", "show", tap), 10)
    qemu.driver.stop(spec.server_id, 0, Progress())
    assert tap in in_namespace(private_libvirtd, "ip", "link", "show", tap)
    assert qemu.driver.start(spec) == PowerState.RUNNING
    qemu.driver.destroy(spec.server_id, token)
    in_namespace(private_libvirtd, "ip", "tuntap", "del", tap, "mode", "tap")


@pytest.fixture
def inside(private_libvirtd: PrivateLibvirtd) -> Iterator[None]:
    """This thread, and what it starts, lives in the daemon's network namespace, as a worker does."""
    netns.pushns(private_libvirtd.network_namespace)
    yield
    netns.popns()


@pytest.mark.usefixtures("inside")
def test_a_guest_is_reached_at_its_address_until_it_is_destroyed(
    qemu: Subject, private_libvirtd: PrivateLibvirtd, tmp_path: Path
) -> None:
    qemu.network = HostNetwork(
        tmp_path / "network", private_libvirtd.name, lambda *_: (404, {}, b""), nat=False
    )
    qemu.restart()
    rule = SecurityRule("ingress", "icmp", remote_cidr="0.0.0.0/0")
    card = replace(nic(new_id()), rules=(rule,))
    spec, token = qemu.spawned(nics=(card,))
    eventually(lambda: pings(card.ip), BOOT_TIMEOUT_S)
    qemu.restart()  # a new worker finds the guest and its wires
    assert pings(card.ip)
    qemu.driver.suspend(spec.server_id)
    assert not pings(card.ip)
    assert qemu.driver.resume(spec) == PowerState.RUNNING
    eventually(lambda: pings(card.ip), BOOT_TIMEOUT_S)
    qemu.driver.apply_nics(spec.server_id, [replace(card, rules=())])
    assert f"tap:{tap_name(card.port_id)}" in qemu.driver.residue(spec.server_id)
    qemu.driver.destroy(spec.server_id, token)
    assert qemu.driver.residue() == []
    assert qemu.driver.networks() == []


def pings(address: str) -> bool:
    command = ["ping", "-c", "1", "-W", "1", address]
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


def test_a_chatty_guest_cannot_fill_the_disk(qemu: Subject) -> None:
    cap = 16  # the test guest says little more than BOOT-OK
    qemu.host = replace(qemu.host, console_max_bytes=cap)
    qemu.restart()
    spec, _ = qemu.spawned()
    log = qemu.state_dir / "instances" / spec.server_id / "console.log"
    older = log.with_name("console.log.0")
    eventually(older.exists, BOOT_TIMEOUT_S)
    eventually(lambda: log.stat().st_size <= cap, BOOT_TIMEOUT_S)
    assert older.stat().st_size <= cap
    assert len(console(qemu, spec.server_id)) <= 2 * cap
    qemu.driver.reboot_hard(spec, Progress())  # the writer goes on after a cut
    eventually(lambda: log.stat().st_size > 0, BOOT_TIMEOUT_S)


# --- the daemon -------------------------------------------------------------------------------------


def test_a_guest_and_its_driver_outlive_a_killed_libvirtd(
    qemu: Subject, private_libvirtd: PrivateLibvirtd
) -> None:
    spec, _ = qemu.spawned()
    process = private_libvirtd.qemu_pid(guest_name(spec.server_id))
    told = threading.Event()
    qemu.driver.on_change(told.set)
    daemon = private_libvirtd.libvirtd_pid()
    assert daemon
    os.kill(daemon, signal.SIGKILL)
    # An event from before the kill may ring as well; until the loss is noticed, a call may meet it.
    eventually(lambda: private_libvirtd.libvirtd_pid() not in (None, daemon), 30)
    eventually(lambda: state_or_none(qemu, spec.server_id) == PowerState.RUNNING, 30)
    assert told.wait(30)
    assert private_libvirtd.qemu_pid(guest_name(spec.server_id)) == process
    assert private_libvirtd.libvirtd_pid() != daemon
    assert qemu.driver.pause(spec.server_id) == PowerState.PAUSED
    assert qemu.driver.unpause(spec.server_id) == PowerState.RUNNING


@pytest.fixture
def own_libvirtd() -> Iterator[PrivateLibvirtd]:
    """A daemon this test may mistreat."""
    directory = Path(tempfile.mkdtemp(prefix="duranova-libvirtd-"))
    daemon = PrivateLibvirtd(directory, f"own-{os.getpid()}", own_network=True)
    yield daemon
    daemon.remove()


def test_everything_killed_starts_again_and_finds_its_guests(
    own_libvirtd: PrivateLibvirtd, state_dir: Path
) -> None:
    own_libvirtd.start()
    subject = qemu_subject(state_dir, own_libvirtd)
    subject.open()
    spec, token = subject.spawned()
    process = own_libvirtd.qemu_pid(guest_name(spec.server_id))
    subject.driver.close()
    kill_daemons(own_libvirtd)
    own_libvirtd.start()
    subject.open()
    assert subject.driver.power_state(spec.server_id) == PowerState.RUNNING
    assert own_libvirtd.qemu_pid(guest_name(spec.server_id)) == process
    booted(subject, spec.server_id)  # its console is still written
    subject.driver.destroy(spec.server_id, token)
    assert subject.driver.residue() == []
    subject.clean()


def test_a_guest_killed_with_its_daemon_while_it_started_is_built_by_the_next_try(
    own_libvirtd: PrivateLibvirtd, state_dir: Path
) -> None:
    """The daemon that comes back shows it as active for a moment, though it never ran."""
    own_libvirtd.start()
    subject = qemu_subject(state_dir, own_libvirtd)
    subject.open()
    spec, token = subject.spec(), fence()
    name = guest_name(spec.server_id)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(subject.driver.spawn, spec, token, Progress())
        pid_file = own_libvirtd.qemu_pid_file(name)
        eventually(lambda: pid_file.exists() and pid_file.read_text(), BOOT_TIMEOUT_S)
        qemu = own_libvirtd.qemu_pid(name)
        kill_daemons(own_libvirtd)
        os.kill(qemu, signal.SIGKILL)
        first.exception(BOOT_TIMEOUT_S)  # its connection is gone; how it ended does not matter
    subject.driver.close()
    own_libvirtd.start()
    subject.open()
    assert subject.driver.spawn(spec, token, Progress()) == PowerState.RUNNING
    assert own_libvirtd.qemu_pid(name)
    booted(subject, spec.server_id)
    subject.driver.destroy(spec.server_id, token)
    assert subject.driver.residue() == []
    subject.clean()


def test_a_guest_whose_process_the_killed_daemon_did_not_know_yet_does_not_lock_its_successor(
    own_libvirtd: PrivateLibvirtd, state_dir: Path
) -> None:
    """The moment between QEMU's start and the note of its pid, held still."""
    own_libvirtd.start()
    subject = qemu_subject(state_dir, own_libvirtd)
    subject.open()
    spec, token = subject.spawned()
    pid_file = own_libvirtd.qemu_pid_file(guest_name(spec.server_id))
    qemu = int(pid_file.read_text())
    subject.driver.close()
    kill_daemons(own_libvirtd)
    status = pid_file.with_suffix(".xml")
    note = ElementTree.parse(status)
    note.getroot().attrib.update(state="paused", reason="starting up", pid="0")
    note.write(status)
    own_libvirtd.start()
    subject.open()
    assert subject.driver.spawn(spec, token, Progress()) == PowerState.RUNNING
    assert int(pid_file.read_text()) != qemu
    assert not Path(f"/proc/{qemu}/fd/0").exists()  # the one nobody knew is gone, or a zombie
    booted(subject, spec.server_id)
    subject.driver.destroy(spec.server_id, token)
    subject.clean()


def test_a_guest_whose_definition_was_lost_is_reported_and_can_be_booted_again(
    qemu: Subject, private_libvirtd: PrivateLibvirtd
) -> None:
    spec, token = qemu.spawned()
    virsh = ["virsh", "-c", private_libvirtd.uri()]
    for verb in ("destroy", "undefine"):
        subprocess.run([*virsh, verb, guest_name(spec.server_id)], check=True, capture_output=True)
    lost = GuestReport(spec.server_id, PowerState.NOSTATE, token.epoch)
    assert lost in qemu.driver.guests()
    assert qemu.driver.reboot_hard(spec, Progress()) == PowerState.RUNNING
    booted(qemu, spec.server_id)


def state_or_none(subject: Subject, server_id: str) -> PowerState | None:
    """The state; None for a call that met the loss of its connection."""
    with suppress(GuestFailure):
        return subject.driver.power_state(server_id)
    return None


def kill_daemons(daemon: PrivateLibvirtd) -> None:
    anchor, libvirtd = daemon.pid(), daemon.libvirtd_pid()
    assert anchor
    assert libvirtd
    os.kill(anchor, signal.SIGKILL)
    eventually(lambda: daemon.pid() is None, 10)


def test_starting_twice_is_one_daemon_and_stopping_ends_it(own_libvirtd: PrivateLibvirtd) -> None:
    own_libvirtd.start()
    anchor, libvirtd = own_libvirtd.pid(), own_libvirtd.libvirtd_pid()
    own_libvirtd.start()
    assert (own_libvirtd.pid(), own_libvirtd.libvirtd_pid()) == (anchor, libvirtd)
    own_libvirtd.stop()
    own_libvirtd.stop()
    assert own_libvirtd.pid() is None
    eventually(lambda: own_libvirtd.libvirtd_pid() is None, 10)


def test_a_directory_too_deep_for_a_socket_is_said_to_be_so() -> None:
    deep = PrivateLibvirtd(Path("/tmp") / ("x" * 100), "deep", own_network=False)
    with pytest.raises(NotStarted, match="too long"):
        deep.start()

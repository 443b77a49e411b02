"""Records and kernel stay in step: repetition, restarts, sudden death, and leaving nothing behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from domain.errors import GuestFailure
from domain.guest import NicSpec
from domain.ids import tap_name
from tests.virt.nics.conftest import Guest, Lab, run
from virt.net import kernel, taps
from virt.nics import HostNetwork

pytestmark = pytest.mark.libvirt

MakeNic = Callable[..., NicSpec]
METADATA = "http://169.254.169.254/"


def _dnsmasq(lab: Lab) -> list[int]:
    """The dnsmasq processes of this host's networks."""
    pids = []
    for netns in lab.state()["namespaces"]:
        pids += [int(pid) for pid in run("ip", "netns", "pids", netns).stdout.split()]
    return pids


def _works(guest: Guest) -> bool:
    answered = guest.fetch(METADATA).stdout == guest.server_id
    return answered and guest.dhcp().get("ip") == guest.nic.ip and guest.pings("10.7.0.1")


def test_last_unplug_leaves_the_host_as_it_was(
    lab: Lab, network: HostNetwork, make_nic: MakeNic
) -> None:
    before = lab.state()
    a, b = lab.guest(make_nic(10)), lab.guest(make_nic(11))
    for guest in (a, b):
        network.plug(guest.server_id, [guest.nic])
    assert network.networks() == [a.nic.network_id]
    processes = _dnsmasq(lab)
    assert len(processes) == 1
    network.unplug(a.server_id)
    assert network.residue(a.server_id) == []
    assert network.networks() == [a.nic.network_id]
    b.configure()
    assert _works(b)
    network.unplug(b.server_id)
    assert network.residue() == []
    assert network.networks() == []
    assert lab.state() == before
    assert not any(_alive(pid) for pid in _dnsmasq(lab))


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_residue_names_what_a_server_has(lab: Lab, network: HostNetwork, make_nic: MakeNic) -> None:
    nic = make_nic(10)
    network.plug("server-1", [nic])
    network.plug("server-2", [make_nic(11)])
    tap = tap_name(nic.port_id)
    assert network.residue("server-1") == [f"dhcp:{nic.port_id}", f"rules:{tap}", f"tap:{tap}"]
    assert len(network.residue()) == 6
    assert network.owners() == {"server-1", "server-2"}
    assert network.residue("server-3") == []


def test_everything_twice_is_once(lab: Lab, network: HostNetwork, make_nic: MakeNic) -> None:
    guest = lab.guest(make_nic(10))
    network.plug(guest.server_id, [guest.nic])
    once, processes = lab.state(), _dnsmasq(lab)
    network.plug(guest.server_id, [guest.nic])
    network.apply(guest.server_id, [guest.nic])
    network.open()
    assert lab.state() == once
    assert _dnsmasq(lab) == processes
    guest.configure()
    assert _works(guest)
    network.unplug(guest.server_id)
    gone = lab.state()
    network.unplug(guest.server_id)
    network.unplug("never seen")
    assert lab.state() == gone


def test_tap_is_persistent_filtered_and_not_the_guests_mac(
    lab: Lab, network: HostNetwork, make_nic: MakeNic
) -> None:
    nic = make_nic(10, mtu=1420)
    network.plug("server", [nic])
    tap = kernel.links()[tap_name(nic.port_id)]
    assert tap["linkinfo"]["info_data"]["persist"]
    assert "UP" in tap["flags"]
    assert tap["mtu"] == 1420
    assert tap["address"] == "fe" + nic.mac[2:]


def test_new_process_goes_on_where_the_old_one_stopped(
    lab: Lab, network: HostNetwork, make_nic: MakeNic
) -> None:
    guest = lab.plugged(network, make_nic(10))
    processes, before = _dnsmasq(lab), lab.state()
    network.close()
    assert guest.dhcp()["ip"] == "10.7.0.10", "networks and DHCP go on"
    again = lab.network()
    assert lab.state() == before
    assert _dnsmasq(lab) == processes
    assert _works(guest)
    late = lab.plugged(again, make_nic(11))
    assert late.pings(guest.nic.ip)


def test_everything_lost_is_restored_from_the_records(
    lab: Lab, network: HostNetwork, make_nic: MakeNic
) -> None:
    a = lab.plugged(network, make_nic(10))
    b = lab.plugged(network, make_nic(10, network_id=str(uuid.uuid4())))
    healthy = lab.state()
    network.close()
    for pid in _dnsmasq(lab):
        os.kill(pid, signal.SIGKILL)
    for netns in lab.state()["namespaces"]:
        run("ip", "netns", "delete", netns)
    for name, link in kernel.links().items():
        if link.get("linkinfo", {}).get("info_kind") == "bridge":
            run("ip", "link", "delete", name)
    run("nft", "flush", "ruleset")
    assert not a.pings("10.7.0.1")
    lab.network()
    assert _works(a)
    assert _works(b)
    assert lab.state() == healthy


def test_dnsmasq_that_died_is_started_again(
    lab: Lab, network: HostNetwork, make_nic: MakeNic
) -> None:
    guest = lab.plugged(network, make_nic(10))
    for pid in _dnsmasq(lab):
        os.kill(pid, signal.SIGKILL)
    network.plug(guest.server_id, [guest.nic])
    assert _works(guest)


@pytest.mark.parametrize("step", ["_ensure_network", "_load_ports", "_ensure_routes"])
def test_plug_that_fails_halfway_can_be_repeated_or_undone(
    lab: Lab, network: HostNetwork, make_nic: MakeNic, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    before = lab.state()
    guest = lab.guest(make_nic(10))

    def fail(*_given: object) -> None:
        raise GuestFailure("out of luck")

    for repair in (network.plug, lambda server_id, _nics: network.unplug(server_id)):
        with monkeypatch.context() as patch:
            patch.setattr(network, step, fail)
            with pytest.raises(GuestFailure):
                network.plug(guest.server_id, [guest.nic])
        repair(guest.server_id, [guest.nic])
        if repair == network.plug:
            guest.configure()
            assert _works(guest)
            network.unplug(guest.server_id)
    assert network.residue() == []
    assert lab.state() == before


def test_unplug_that_fails_halfway_can_be_repeated_by_another_process(
    lab: Lab, network: HostNetwork, make_nic: MakeNic, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = lab.state()
    network.plug("server", [make_nic(10)])

    def fail(*_given: object) -> None:
        raise GuestFailure("out of luck")

    with monkeypatch.context() as patch:
        patch.setattr(network, "_remove_network", fail)
        with pytest.raises(GuestFailure):
            network.unplug("server")
    network.close()
    again = lab.network()
    again.unplug("server")
    assert again.residue() == []
    assert lab.state() == before


def test_killed_worker_leaves_nothing_that_its_successor_cannot_remove(
    lab: Lab, make_nic: MakeNic
) -> None:
    before_open = lab.network()
    before = lab.state()
    before_open.close()
    # The child plugs and unplugs for ever; it is killed in the middle of something, several times.
    for _round in range(4):
        child = subprocess.Popen(
            [sys.executable, "-c", _RESTLESS, str(lab.scratch / "state"), lab.host],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert child.stdout is not None
        with child.stdout:
            for _line in range(3):
                assert child.stdout.readline()
            child.kill()
            child.wait()
    again = lab.network()
    for server_id in ("s1", "s2"):
        again.unplug(server_id)
    assert again.residue() == []
    assert lab.state() == before


_RESTLESS = """
import sys, uuid
from pathlib import Path
from domain.guest import NicSpec, SubnetSpec
from virt.nics import HostNetwork
network = HostNetwork(Path(sys.argv[1]), sys.argv[2], lambda *a: (200, {}, b""))
network.open()
subnet = SubnetSpec("33333333-0000-0000-0000-000000000000", "10.7.0.0/24", "10.7.0.1")
def nic(n):
    return NicSpec(f"1111111{n}-0000-0000-0000-000000000000", "22222222-0000-0000-0000-000000000000",
        7, f"fa:16:3e:00:00:0{n}", f"10.7.0.1{n}", subnet)
while True:
    for n in (1, 2):
        network.plug(f"s{n}", [nic(n)])
        print("plugged", flush=True)
    for n in (1, 2):
        network.unplug(f"s{n}")
        print("unplugged", flush=True)
"""


def test_plug_is_the_whole_truth_about_a_servers_cards(
    lab: Lab, network: HostNetwork, make_nic: MakeNic
) -> None:
    first, second = make_nic(10), make_nic(11)
    network.plug("server", [first, second])
    network.plug("server", [second])
    tap = tap_name(second.port_id)
    assert network.residue("server") == [f"dhcp:{second.port_id}", f"rules:{tap}", f"tap:{tap}"]


def test_apply_knows_only_plugged_ports(lab: Lab, network: HostNetwork, make_nic: MakeNic) -> None:
    before = lab.state()
    network.apply("gone", [make_nic(10)])
    assert lab.state() == before


def test_port_that_changes_its_address_gets_the_new_one_by_dhcp(
    lab: Lab, network: HostNetwork, make_nic: MakeNic
) -> None:
    guest = lab.guest(make_nic(10))
    network.plug(guest.server_id, [guest.nic])
    assert guest.dhcp()["ip"] == "10.7.0.10"
    network.apply(guest.server_id, [replace(guest.nic, ip="10.7.0.40", hostname="renamed")])
    lease = guest.dhcp()
    assert (lease["ip"], lease["hostname"]) == ("10.7.0.40", "renamed")
    assert guest.fetch(METADATA).stdout == guest.server_id


def test_servers_can_be_wired_at_the_same_time(
    lab: Lab, network: HostNetwork, make_nic: MakeNic
) -> None:
    before = lab.state()
    nics = {f"server-{n}": make_nic(10 + n) for n in range(6)}
    _at_once([lambda s=s, n=n: network.plug(s, [n]) for s, n in nics.items()])  # type: ignore[misc]  # bound now
    assert len(network.residue()) == 18
    numbers = re.findall(r"0xd6\w+", run("nft", "list", "maps", "bridge").stdout)
    assert len(set(numbers)) == 6
    _at_once([lambda s=s: network.unplug(s) for s in nics])  # type: ignore[misc]  # bound now
    assert lab.state() == before


def _at_once(calls: list[Callable[[], None]]) -> None:
    threads = [threading.Thread(target=call) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_tap_waits_for_its_rules(
    lab: Lab, network: HostNetwork, make_nic: MakeNic, monkeypatch: pytest.MonkeyPatch
) -> None:
    nic = make_nic(10)
    seen: list[str] = []
    real = taps.ensure

    def watched(port: object, segment: object) -> None:
        seen.append(run("nft", "list", "ruleset").stdout)
        real(port, segment)  # type: ignore[arg-type]  # passed on as it came

    monkeypatch.setattr(taps, "ensure", watched)
    network.plug("server", [nic])
    assert f"jump from_{tap_name(nic.port_id)}" in seen[0]


def test_two_hosts_in_one_namespace_leave_each_other_alone(
    lab: Lab, network: HostNetwork, make_nic: MakeNic
) -> None:
    mine = lab.plugged(network, make_nic(10))
    other = lab.network(state="elsewhere")
    nic = make_nic(10, network_id=str(uuid.uuid4()))
    theirs = lab.guest(nic)
    other.plug(theirs.server_id, [nic])
    theirs.configure()
    assert _works(mine)
    assert _works(theirs)
    assert f"server-{mine.server_id}" not in other.residue()
    assert len(other.residue()) == len(network.residue()) == 3
    with_both = lab.state()
    network.open()
    other.open()
    assert lab.state() == with_both
    assert not mine.pings("100.127.224.3")
    other.unplug(theirs.server_id)
    assert other.residue() == []
    assert _works(mine)


def test_removed_host_takes_all_of_its_own_and_nothing_of_another(
    lab: Lab, network: HostNetwork, make_nic: MakeNic
) -> None:
    staying = lab.plugged(network, make_nic(10))
    before = lab.state()
    other = lab.network(state="elsewhere")
    nic = make_nic(10, network_id=str(uuid.uuid4()))
    other.plug("gone", [nic])
    assert lab.state() != before
    other.close()
    lab.network(state="elsewhere").remove()  # as another process would
    assert lab.state() == before
    assert _works(staying)

"""What the packet filter lets through, seen from both ends."""

from __future__ import annotations

import subprocess
import uuid
from collections.abc import Callable
from dataclasses import replace

import pytest

from domain.guest import NicSpec, SecurityRule
from tests.virt.nics.conftest import EGRESS, OUTSIDE_IP, Guest, Lab, run, serve
from virt.nics import HostNetwork

pytestmark = pytest.mark.libvirt

MakeNic = Callable[..., NicSpec]
Rules = Callable[..., tuple[SecurityRule, ...]]


def _reaches(client: Guest, server: Guest, port: int) -> bool:
    return client.fetch(f"http://{server.nic.ip}:{port}/hello").stdout == f"from {server.netns}"


def _apply(network: HostNetwork, guest: Guest, rules: tuple[SecurityRule, ...]) -> None:
    network.apply(guest.server_id, [replace(guest.nic, rules=rules)])


def test_ingress_is_closed_until_a_rule_opens_it_and_closed_again_without(
    lab: Lab, network: HostNetwork, make_nic: MakeNic, rules: Rules
) -> None:
    client = lab.plugged(network, make_nic(10))
    server = lab.plugged(network, make_nic(11, rules=()))
    server.serve(80)
    server.serve(81)
    assert not _reaches(client, server, 80)
    assert not client.pings(server.nic.ip)
    _apply(network, server, rules("ingress tcp 80"))
    assert _reaches(client, server, 80)
    assert not _reaches(client, server, 81)
    assert not client.pings(server.nic.ip)
    _apply(network, server, rules("ingress tcp 80-81", "ingress icmp"))
    assert _reaches(client, server, 81)
    assert client.pings(server.nic.ip)
    _apply(network, server, ())
    assert not _reaches(client, server, 80)
    assert not client.pings(server.nic.ip)


def test_egress_is_what_the_rules_say(
    lab: Lab, network: HostNetwork, make_nic: MakeNic, rules: Rules
) -> None:
    guest = lab.plugged(network, make_nic(10, rules=()))
    serve(lab.background, lab.scratch, lab.outside, 8080)
    url = f"http://{OUTSIDE_IP}:8080/hello"
    assert guest.fetch(url).returncode != 0
    assert not guest.pings(OUTSIDE_IP)
    assert guest.dhcp()["ip"] == "10.7.0.10", "DHCP needs no rule"
    assert guest.fetch("http://169.254.169.254/").stdout == guest.server_id, "nor does metadata"
    _apply(network, guest, rules("egress tcp 8080"))
    assert guest.fetch(url).returncode == 0
    assert not guest.pings(OUTSIDE_IP)
    _apply(network, guest, (SecurityRule("egress", None, remote_cidr="203.0.113.0/24"),))
    assert guest.fetch(url).returncode != 0


def test_connection_that_exists_outlives_the_rule_that_let_it_in(
    lab: Lab, network: HostNetwork, make_nic: MakeNic, rules: Rules
) -> None:
    client = lab.plugged(network, make_nic(10))
    server = lab.plugged(network, make_nic(11, rules=rules("ingress tcp 7000")))
    enter = ["nsenter", f"--net=/run/netns/{server.netns}", "--"]
    echo = subprocess.Popen([*enter, "busybox", "nc", "-l", "-p", "7000", "-e", "cat"])
    server.background.append(echo)
    enter = ["nsenter", f"--net=/run/netns/{client.netns}", "--"]
    talk = subprocess.Popen(
        [*enter, "bash", "-c", _CONVERSATION], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    client.background.append(talk)
    assert talk.stdin is not None
    assert talk.stdout is not None
    with talk.stdin, talk.stdout:
        assert talk.stdout.readline() == b"one\n"
        _apply(network, server, ())
        talk.stdin.write(b"two\n")
        talk.stdin.flush()
        assert talk.stdout.readline() == b"two\n"
        server.serve(7001)
        assert not _reaches(client, server, 7001)


_CONVERSATION = """
for try in $(seq 50); do exec 3<>/dev/tcp/10.7.0.11/7000 && break; sleep 0.1; done 2>/dev/null
echo one >&3; read -r line <&3; echo "$line"
read -r next; echo "$next" >&3; read -r -t 10 line <&3; echo "$line"
"""


def test_remote_group_admits_its_members_only(
    lab: Lab, network: HostNetwork, make_nic: MakeNic
) -> None:
    member, stranger = lab.plugged(network, make_nic(10)), lab.plugged(network, make_nic(11))

    def members(*ips: str) -> SecurityRule:
        return SecurityRule("ingress", "tcp", 80, 80, remote_ips=ips)

    server = lab.plugged(network, make_nic(12, rules=(members("10.7.0.10", "10.7.0.99"),)))
    server.serve(80)
    assert _reaches(member, server, 80)
    assert not _reaches(stranger, server, 80)
    _apply(network, server, (members(),))
    assert not _reaches(member, server, 80)
    _apply(network, server, (members("10.7.0.11"),))
    assert _reaches(stranger, server, 80)


@pytest.mark.parametrize("protocol", ["udp", "17"])
def test_udp_rules_work_by_name_and_number(
    lab: Lab, network: HostNetwork, make_nic: MakeNic, protocol: str
) -> None:
    client = lab.plugged(network, make_nic(10))
    rule = SecurityRule("ingress", protocol, 5000, 5000, remote_cidr="10.7.0.0/24")
    server = lab.plugged(network, make_nic(11, rules=(rule,)))
    # A closed port answers with ICMP "unreachable", a filtered one not at all.
    ask = "import socket,sys; s=socket.socket(2,2); s.settimeout(1); s.connect(('10.7.0.11',int(sys.argv[1]))); s.send(b'x'); s.recv(9)"
    _apply(network, server, (rule, EGRESS))
    assert "refused" in client.run("python3", "-c", ask, "5000").stderr
    assert "timed out" in client.run("python3", "-c", ask, "5001").stderr


def test_icmp_rule_with_a_type_admits_only_that_type(
    lab: Lab, network: HostNetwork, make_nic: MakeNic
) -> None:
    client = lab.plugged(network, make_nic(10))
    server = lab.plugged(network, make_nic(11, rules=(SecurityRule("ingress", "icmp", 13, 0),)))
    assert not client.pings(server.nic.ip)
    _apply(network, server, (SecurityRule("ingress", "icmp", 8, 0),))
    assert client.pings(server.nic.ip)


def test_forged_addresses_go_nowhere(lab: Lab, network: HostNetwork, make_nic: MakeNic) -> None:
    guest = lab.plugged(network, make_nic(10))
    victim = lab.plugged(network, make_nic(11))
    guest.run("ip", "address", "add", "10.7.0.66/24", "dev", "eth0")
    # First the honest one: it also teaches the guest its neighbour's MAC.
    assert guest.pings(victim.nic.ip, "-I", "10.7.0.10")
    assert not guest.pings(victim.nic.ip, "-I", "10.7.0.66"), "source address"
    unsolicited = ["busybox", "arping", "-U", "-c2", "-w2", "-I", "eth0", "-s"]
    victim.run("ip", "neighbour", "flush", "all")
    victim.run("sysctl", "-qw", "net.ipv4.conf.all.arp_accept=1")
    guest.run(*unsolicited, "10.7.0.66", "10.7.0.66")
    assert "10.7.0.66" not in victim.run("ip", "neighbour").stdout, "ARP"
    guest.run(*unsolicited, "10.7.0.10", "10.7.0.10")
    assert "10.7.0.10" in victim.run("ip", "neighbour").stdout, "its own ARP passes"
    guest.run("ip", "link", "set", "eth0", "address", "fa:16:3e:66:66:66")
    assert not guest.pings(victim.nic.ip), "MAC"


def test_allowed_pairs_and_ports_without_security_may_use_further_addresses(
    lab: Lab, network: HostNetwork, make_nic: MakeNic
) -> None:
    peer = lab.plugged(network, make_nic(10))
    paired = lab.plugged(network, make_nic(11, allowed_pairs=("10.7.0.64/30",)))
    free = lab.plugged(network, make_nic(12, rules=(), port_security=False))
    paired.run("ip", "address", "add", "10.7.0.66/24", "dev", "eth0")
    free.run("ip", "address", "add", "10.7.0.99/24", "dev", "eth0")
    assert paired.pings(peer.nic.ip, "-I", "10.7.0.66")
    assert free.pings(peer.nic.ip, "-I", "10.7.0.99")
    assert peer.pings("10.7.0.99"), "no rules apply to a port without security"
    secured = replace(free.nic, port_security=True, rules=(EGRESS,))
    network.apply(free.server_id, [secured])
    assert free.pings(peer.nic.ip, "-I", "10.7.0.12")
    assert not free.pings(peer.nic.ip, "-I", "10.7.0.99")
    network.apply(free.server_id, [free.nic])
    assert free.pings(peer.nic.ip, "-I", "10.7.0.99")


def test_guest_cannot_serve_addresses_to_others(
    lab: Lab, network: HostNetwork, make_nic: MakeNic
) -> None:
    nic = make_nic(11, rules=(EGRESS, SecurityRule("ingress")))
    without_dhcp = replace(nic.subnet, enable_dhcp=False)
    rogue = lab.plugged(network, replace(nic, subnet=without_dhcp))
    config = lab.scratch / "udhcpd.conf"
    leases = lab.scratch / "udhcpd.leases"
    leases.touch()
    config.write_text(
        f"interface eth0\nstart 10.7.0.200\nend 10.7.0.210\nlease_file {leases}\n"
        f"pidfile {lab.scratch}/udhcpd.pid\noption subnet 255.255.255.0\n"
    )
    enter = ["nsenter", f"--net=/run/netns/{rogue.netns}", "--"]
    rogue.background.append(subprocess.Popen([*enter, "busybox", "udhcpd", "-f", str(config)]))
    client = lab.guest(replace(make_nic(12), subnet=without_dhcp))
    network.plug(client.server_id, [client.nic])
    assert client.dhcp() == {}
    # The same without protection shows that the rogue does serve.
    network.apply(rogue.server_id, [replace(rogue.nic, port_security=False)])
    network.apply(client.server_id, [replace(client.nic, port_security=False)])
    assert client.dhcp()["ip"].startswith("10.7.0.2")


def test_equal_connections_on_two_networks_do_not_share_their_state(
    lab: Lab, network: HostNetwork, make_nic: MakeNic, rules: Rules
) -> None:
    other = str(uuid.uuid4())
    client = lab.plugged(network, make_nic(10))
    server = lab.plugged(network, make_nic(11, rules=rules("ingress udp 9000", "egress")))
    twin_client = lab.plugged(network, make_nic(10, network_id=other))
    twin_server = lab.plugged(network, make_nic(11, network_id=other, rules=rules("egress")))
    talk = "import socket; s=socket.socket(2,2); s.bind(('',9001)); s.settimeout(1); s.connect(('10.7.0.11',9000)); s.send(b'x'); s.recv(9)"
    assert "refused" in client.run("python3", "-c", talk).stderr
    # The very same addresses and ports: it would pass as part of the first conversation.
    assert "timed out" in twin_client.run("python3", "-c", talk).stderr
    assert server.nic.ip == twin_server.nic.ip


def test_ipv6_and_tagged_frames_do_not_pass(
    lab: Lab, network: HostNetwork, make_nic: MakeNic
) -> None:
    a = lab.plugged(network, make_nic(10))
    b = lab.plugged(network, make_nic(11, rules=(EGRESS, SecurityRule("ingress"))))
    for guest, address in ((a, "fd00::a"), (b, "fd00::b")):
        guest.run("ip", "address", "add", f"{address}/64", "dev", "eth0", "nodad")
    assert not a.pings("fd00::b")
    assert a.pings(b.nic.ip)


def test_guest_reaches_only_what_its_gateway_serves(
    lab: Lab, network: HostNetwork, make_nic: MakeNic
) -> None:
    guest = lab.plugged(network, make_nic(10))
    inside = next(iter(lab.state()["namespaces"]))
    serve(lab.background, lab.scratch, inside, 8082)
    assert guest.fetch("http://10.7.0.1:8082/hello").returncode != 0
    assert guest.fetch("http://169.254.169.254:8082/hello").returncode != 0
    assert run("ip", "netns", "exec", inside, "true").returncode == 0


def test_successor_at_an_address_does_not_inherit_connections(
    lab: Lab, network: HostNetwork, make_nic: MakeNic, rules: Rules
) -> None:
    client = lab.plugged(network, make_nic(10))
    first = lab.plugged(network, make_nic(11, rules=rules("ingress udp 9000", "egress")))
    echo = "import socket; s=socket.socket(2,2); s.bind(('',9000)); print('up',flush=True)\nwhile 1: s.sendto(*s.recvfrom(9))"
    talk = "import socket; s=socket.socket(2,2); s.bind(('',9001)); s.settimeout(2); s.connect(('10.7.0.11',9000)); s.send(b'x'); print(s.recv(9))"

    def answering(guest: Guest) -> Guest:
        enter = ["nsenter", f"--net=/run/netns/{guest.netns}", "--"]
        server = subprocess.Popen([*enter, "python3", "-c", echo], stdout=subprocess.PIPE)
        guest.background.append(server)
        assert server.stdout is not None
        with server.stdout:
            assert server.stdout.readline()
        return guest

    answering(first)
    for _ask in range(3):
        assert client.run("python3", "-c", talk).stdout == "b'x'\n"
    network.unplug(first.server_id)
    heir = answering(lab.plugged(network, replace(make_nic(12), ip="10.7.0.11", rules=())))
    client.run("ip", "neighbour", "flush", "all")
    assert "timed out" in client.run("python3", "-c", talk).stderr
    _apply(network, heir, rules("ingress udp 9000"))
    assert client.run("python3", "-c", talk).stdout == "b'x'\n"

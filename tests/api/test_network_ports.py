"""Ports, security groups and their rules over HTTP."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Engine

from db.network import PortRequest, allocate_server_ports, bind_server_ports
from db.servers import Server
from db.session import transaction
from tests.api.test_network import ADMIN, ALT, make, make_subnet, refusal
from tests.conftest import RecordingLauncher

PORTS, GROUPS, RULES = (
    f"/network/v2.0/{name}" for name in ("ports", "security-groups", "security-group-rules")
)


def run_server(
    engine: Engine, network_id: str, host: str, name: str = "vm", groups: Any = ()
) -> str:
    """A server of ``project-demo`` with one card, bound to the host."""
    with transaction(engine) as session:
        server = Server(project_id="project-demo", user_id="u", name=name, hostname=name, host=host)
        session.add(server)
        session.flush()
        allocate_server_ports(
            session,
            server_id=server.id,
            project_id="project-demo",
            az="nova",
            requests=[PortRequest(network_id=network_id)],
            security_groups=groups,
        )
        bind_server_ports(session, server.id, host)
        return server.id


def test_a_port_gets_an_address_a_mac_and_the_default_group(client: TestClient) -> None:
    subnet = make_subnet(client)
    port = make(client, "ports", network_id=subnet["network_id"], name="p")
    (fixed,) = port["fixed_ips"]
    assert fixed["subnet_id"] == subnet["id"]
    assert fixed["ip_address"].startswith("10.0.0.")
    assert port["mac_address"].startswith("fa:16:3e:")
    assert port["status"] == "DOWN"
    groups = client.get(f"{GROUPS}?name=default").json()["security_groups"]
    assert port["security_groups"] == [groups[0]["id"]]
    assert "binding:host_id" not in port
    seen = client.get(f"{PORTS}/{port['id']}", headers=ADMIN).json()["port"]
    assert seen["binding:vif_type"] == "unbound"


def test_a_port_takes_the_address_it_asks_for_and_frees_it(client: TestClient) -> None:
    subnet = make_subnet(client)
    wish = {"network_id": subnet["network_id"], "fixed_ips": [{"ip_address": "10.0.0.42"}]}
    port = make(client, "ports", **wish)
    assert port["fixed_ips"][0]["ip_address"] == "10.0.0.42"
    again = client.post(PORTS, json={"port": wish})
    assert refusal(again) == (409, "IpAddressInUse")
    assert client.delete(f"{PORTS}/{port['id']}").status_code == 204
    make(client, "ports", **wish)


def test_a_full_pool_is_said_to_be_full(client: TestClient) -> None:
    subnet = make_subnet(client, allocation_pools=[{"start": "10.0.0.5", "end": "10.0.0.6"}])
    body = {"network_id": subnet["network_id"]}
    got = {make(client, "ports", **body)["fixed_ips"][0]["ip_address"] for _ in range(2)}
    assert got == {"10.0.0.5", "10.0.0.6"}
    answer = client.post(PORTS, json={"port": body})
    assert refusal(answer) == (409, "IpAddressGenerationFailure")
    assert len(client.get(PORTS).json()["ports"]) == 2


def test_a_port_on_a_network_without_subnet_has_no_address(client: TestClient) -> None:
    network = make(client, "networks")
    assert make(client, "ports", network_id=network["id"])["fixed_ips"] == []


@pytest.mark.parametrize(
    ("attributes", "status", "name"),
    [
        ({"network_id": "nowhere"}, 404, "NetworkNotFound"),
        ({"fixed_ips": [{"ip_address": "10.9.9.9"}]}, 400, "InvalidIpForNetwork"),
        ({"fixed_ips": [{"ip_address": "10.0.0.255"}]}, 400, "InvalidIpForNetwork"),
        ({"fixed_ips": [{"ip_address": "10.0.0.1"}]}, 409, "IpAddressInUse"),
        ({"fixed_ips": [{"ip_address": "fd00::5"}]}, 400, "InvalidInput"),
        ({"fixed_ips": [{"subnet_id": "nowhere"}]}, 400, "InvalidInput"),
        ({"fixed_ips": [{}]}, 400, "InvalidInput"),
        ({"fixed_ips": [{"ip_address": "10.0.0.7"}] * 2}, 400, "InvalidInput"),
        ({"mac_address": "ff:ff:ff:ff:ff:ff"}, 400, "InvalidInput"),
        ({"mac_address": "cows"}, 400, "InvalidInput"),
        ({"security_groups": ["nowhere"]}, 404, "SecurityGroupNotFound"),
        ({"binding:host_id": "h"}, 400, "BadRequest"),
        ({"binding:profile": {}}, 403, "PolicyNotAuthorized"),
        ({"binding:vnic_type": "direct"}, 400, "BadRequest"),
        ({"allowed_address_pairs": [{"ip_address": "x"}]}, 400, "InvalidInput"),
        (
            {"allowed_address_pairs": [{"ip_address": "10.0.0.9"}] * 2},
            400,
            "DuplicateAddressPairInRequest",
        ),
        (
            {
                "port_security_enabled": False,
                "allowed_address_pairs": [{"ip_address": "10.0.0.9"}],
            },
            409,
            "AddressPairAndPortSecurityRequired",
        ),
    ],
)
def test_an_impossible_port_is_refused_and_leaves_nothing(
    client: TestClient, attributes: dict[str, Any], status: int, name: str
) -> None:
    subnet = make_subnet(client)
    body = {"port": {"network_id": subnet["network_id"]} | attributes}
    assert refusal(client.post(PORTS, json=body)) == (status, name)
    assert client.get(PORTS).json() == {"ports": []}


def test_a_mac_is_used_once_per_network(client: TestClient) -> None:
    network = make(client, "networks")["id"]
    mac = make(client, "ports", network_id=network, mac_address="FA-16-3E-00-00-01")["mac_address"]
    assert mac == "fa:16:3e:00:00:01"
    body = {"port": {"network_id": network, "mac_address": mac}}
    assert refusal(client.post(PORTS, json=body)) == (409, "MacAddressInUse")
    make(client, "ports", network_id=make(client, "networks")["id"], mac_address=mac)
    other = make(client, "ports", network_id=network)
    change = {"port": {"mac_address": mac}}
    assert refusal(client.put(f"{PORTS}/{other['id']}", json=change)) == (409, "MacAddressInUse")


def test_update_a_port(client: TestClient) -> None:
    subnet = make_subnet(client)
    port = make(client, "ports", network_id=subnet["network_id"])
    group = make(client, "security-groups", name="web")
    change = {
        "name": "n",
        "fixed_ips": [{"ip_address": "10.0.0.50"}, {"ip_address": "10.0.0.51"}],
        "security_groups": [group["id"]],
        "allowed_address_pairs": [{"ip_address": "10.0.0.0/28"}],
    }
    changed = client.put(f"{PORTS}/{port['id']}", json={"port": change}).json()["port"]
    assert [ip["ip_address"] for ip in changed["fixed_ips"]] == ["10.0.0.50", "10.0.0.51"]
    assert changed["security_groups"] == [group["id"]]
    assert changed["allowed_address_pairs"] == [
        {"ip_address": "10.0.0.0/28", "mac_address": port["mac_address"]}
    ]
    fewer = {"port": {"fixed_ips": [{"ip_address": "10.0.0.51"}]}}
    changed = client.put(f"{PORTS}/{port['id']}", json=fewer).json()["port"]
    assert [ip["ip_address"] for ip in changed["fixed_ips"]] == ["10.0.0.51"]
    open_port = {"port": {"port_security_enabled": False}}
    path = f"{PORTS}/{port['id']}"
    assert client.put(path, json=open_port).status_code == 409
    open_port["port"] |= {"security_groups": [], "allowed_address_pairs": []}
    assert client.put(path, json=open_port).json()["port"]["port_security_enabled"] is False


def test_a_guest_of_a_shared_network_cannot_harm_it(client: TestClient) -> None:
    shared = make(client, "networks", ADMIN, shared=True)["id"]
    make(client, "subnets", ADMIN, network_id=shared, cidr="10.5.0.0/24")
    port = make(client, "ports", network_id=shared)
    for attributes in (
        {"mac_address": "fa:16:3e:00:00:09"},
        {"fixed_ips": [{"ip_address": "10.5.0.9"}]},
        {"port_security_enabled": False},
        {"allowed_address_pairs": [{"ip_address": "10.5.0.9"}]},
        {"device_owner": "network:dhcp"},
    ):
        answer = client.post(PORTS, json={"port": {"network_id": shared} | attributes})
        assert refusal(answer) == (403, "PolicyNotAuthorized")
        changed = client.put(f"{PORTS}/{port['id']}", json={"port": attributes})
        assert refusal(changed) == (403, "PolicyNotAuthorized")
    subnet = {"subnet": {"network_id": shared, "cidr": "10.6.0.0/24"}}
    assert client.post("/network/v2.0/subnets", json=subnet).status_code == 403


def test_ports_and_groups_of_others_are_not_found(client: TestClient) -> None:
    subnet = make_subnet(client)
    port = make(client, "ports", network_id=subnet["network_id"])
    group = make(client, "security-groups", name="g")
    rule = group["security_group_rules"][0]["id"]
    for path, body in (
        (f"{PORTS}/{port['id']}", {"port": {"name": "x"}}),
        (f"{GROUPS}/{group['id']}", {"security_group": {"name": "x"}}),
        (f"/network/v2.0/subnets/{subnet['id']}", {"subnet": {"name": "x"}}),
    ):
        assert client.get(path, headers=ALT).status_code == 404
        assert client.put(path, json=body, headers=ALT).status_code == 404
        assert client.delete(path, headers=ALT).status_code == 404
    assert client.delete(f"{RULES}/{rule}", headers=ALT).status_code == 404
    new = {"security_group_rule": {"security_group_id": group["id"], "direction": "ingress"}}
    assert client.post(RULES, json=new, headers=ALT).status_code == 404
    mine = make(client, "security-groups", ALT, name="mine")
    new["security_group_rule"]["remote_group_id"] = mine["id"]
    assert refusal(client.post(RULES, json=new)) == (404, "SecurityGroupNotFound")
    own = make(client, "networks", ALT)["id"]
    foreign = {"port": {"network_id": own, "security_groups": [group["id"]]}}
    assert client.post(PORTS, json=foreign, headers=ALT).status_code == 404


def test_ports_are_found_by_what_they_have(client: TestClient) -> None:
    subnet = make_subnet(client)
    network = subnet["network_id"]
    a = make(client, "ports", network_id=network, fixed_ips=[{"ip_address": "10.0.0.20"}])
    b = make(
        client, "ports", network_id=network, fixed_ips=[{"ip_address": "10.0.0.21"}], device_id="d"
    )

    def ids(query: str) -> set[str]:
        answer = client.get(f"{PORTS}?{query}")
        assert answer.status_code == 200, answer.text
        return {p["id"] for p in answer.json()["ports"]}

    assert ids("fixed_ips=ip_address=10.0.0.20") == {a["id"]}
    assert ids("fixed_ips=ip_address_substr=0.0.2") == {a["id"], b["id"]}
    assert ids(f"fixed_ips=subnet_id={subnet['id']}&device_id=d") == {b["id"]}
    assert ids(f"network_id={network}&mac_address={a['mac_address']}") == {a["id"]}
    assert ids(f"security_groups={a['security_groups'][0]}&device_id=") == {a["id"]}
    assert client.get(f"{PORTS}?fixed_ips=colour=red").status_code == 400
    assert client.get(f"{PORTS}?binding:host_id=h").status_code == 400
    assert client.get(f"{PORTS}?binding:host_id=h", headers=ADMIN).json() == {"ports": []}


def test_a_servers_port_stays_the_servers(client: TestClient, engine: Engine) -> None:
    subnet = make_subnet(client)
    server = run_server(engine, subnet["network_id"], "host-1")
    (port,) = client.get(f"{PORTS}?device_id={server}").json()["ports"]
    assert (port["status"], port["device_owner"]) == ("ACTIVE", "compute:nova")
    path = f"{PORTS}/{port['id']}"
    assert refusal(client.delete(path)) == (409, "PortInUse")
    for change, name in (
        ({"device_id": ""}, "PortInUse"),
        ({"device_owner": "me"}, "PortInUse"),
        ({"mac_address": "fa:16:3e:00:00:02"}, "PortBound"),
    ):
        assert refusal(client.put(path, json={"port": change})) == (409, name)
    assert client.put(path, json={"port": {"fixed_ips": []}}).status_code == 400
    intruder = {"port": {"network_id": subnet["network_id"], "device_id": server}}
    assert refusal(client.post(PORTS, json=intruder)) == (400, "InvalidInput")
    loose = make(client, "ports", network_id=subnet["network_id"])
    sneak = client.put(f"{PORTS}/{loose['id']}", json={"port": {"device_id": server}})
    assert refusal(sneak) == (400, "InvalidInput")


def test_the_default_group_is_there_from_the_first_look_and_stays(client: TestClient) -> None:
    (group,) = client.get(GROUPS).json()["security_groups"]
    assert group["name"] == "default"
    rules = {
        (r["direction"], r["ethertype"], r["remote_group_id"])
        for r in group["security_group_rules"]
    }
    assert rules == {
        ("egress", "IPv4", None),
        ("egress", "IPv6", None),
        ("ingress", "IPv4", group["id"]),
        ("ingress", "IPv6", group["id"]),
    }
    assert all(r["belongs_to_default_sg"] for r in group["security_group_rules"])
    path = f"{GROUPS}/{group['id']}"
    assert refusal(client.delete(path)) == (409, "SecurityGroupCannotRemoveDefault")
    renamed = client.put(path, json={"security_group": {"name": "x"}})
    assert refusal(renamed) == (409, "SecurityGroupCannotUpdateDefault")
    described = client.put(path, json={"security_group": {"description": "d"}})
    assert described.json()["security_group"]["description"] == "d"
    second = client.post(GROUPS, json={"security_group": {"name": "default"}})
    assert refusal(second) == (409, "SecurityGroupDefaultAlreadyExists")


def test_rules_are_checked_kept_and_removed(client: TestClient) -> None:
    group = make(client, "security-groups", name="web")["id"]
    ssh = {
        "security_group_id": group,
        "direction": "ingress",
        "protocol": "TCP",
        "port_range_min": 22,
        "port_range_max": 22,
        "remote_ip_prefix": "10.1.2.3",
    }
    rule = make(client, "security-group-rules", **ssh)
    assert (rule["protocol"], rule["remote_ip_prefix"]) == ("tcp", "10.1.2.3/32")
    assert refusal(client.post(RULES, json={"security_group_rule": ssh})) == (
        409,
        "SecurityGroupRuleExists",
    )
    listed = client.get(f"{RULES}?security_group_id={group}&direction=ingress").json()
    assert [r["id"] for r in listed["security_group_rules"]] == [rule["id"]]
    assert client.delete(f"{RULES}/{rule['id']}").status_code == 204
    assert refusal(client.get(f"{RULES}/{rule['id']}")) == (404, "SecurityGroupRuleNotFound")


@pytest.mark.parametrize(
    ("attributes", "name"),
    [
        ({"direction": "sideways"}, "BadRequest"),
        ({"ethertype": "IPv5"}, "BadRequest"),
        ({"protocol": "carrier-pigeon"}, "SecurityGroupRuleInvalidProtocol"),
        ({"protocol": 256}, "SecurityGroupRuleInvalidProtocol"),
        ({"protocol": "²"}, "SecurityGroupRuleInvalidProtocol"),
        ({"protocol": "ipv6-icmp"}, "SecurityGroupEthertypeConflictWithProtocol"),
        ({"port_range_min": 1, "port_range_max": 2}, "SecurityGroupProtocolRequiredWithPorts"),
        (
            {"protocol": "tcp", "port_range_min": 9, "port_range_max": 2},
            "SecurityGroupInvalidPortRange",
        ),
        ({"protocol": "tcp", "port_range_min": 9}, "SecurityGroupInvalidPortRange"),
        (
            {"protocol": "udp", "port_range_min": 1, "port_range_max": 70000},
            "SecurityGroupInvalidPortRange",
        ),
        (
            {"protocol": "gre", "port_range_min": 1, "port_range_max": 2},
            "SecurityGroupInvalidProtocolForPort",
        ),
        ({"protocol": "icmp", "port_range_max": 0}, "SecurityGroupMissingIcmpType"),
        ({"protocol": "icmp", "port_range_min": 256}, "SecurityGroupInvalidIcmpValue"),
        ({"remote_ip_prefix": "10.0.0.0/33"}, "InvalidInput"),
        ({"remote_ip_prefix": "::/0"}, "SecurityGroupRuleParameterConflict"),
        (
            {"remote_ip_prefix": "10.0.0.0/8", "remote_group_id": "g"},
            "SecurityGroupMultipleRemoteEntites",
        ),
    ],
)
def test_a_bad_rule_is_a_400(client: TestClient, attributes: dict[str, Any], name: str) -> None:
    group = make(client, "security-groups", name="web")["id"]
    body = {"security_group_id": group, "direction": "ingress"} | attributes
    assert refusal(client.post(RULES, json={"security_group_rule": body})) == (400, name)


def test_a_used_group_stays_and_an_unused_one_goes_with_references(client: TestClient) -> None:
    subnet = make_subnet(client)
    web, db = (make(client, "security-groups", name=name)["id"] for name in ("web", "db"))
    rule = make(
        client,
        "security-group-rules",
        security_group_id=db,
        direction="ingress",
        remote_group_id=web,
    )
    port = make(client, "ports", network_id=subnet["network_id"], security_groups=[web])
    assert refusal(client.delete(f"{GROUPS}/{web}")) == (409, "SecurityGroupInUse")
    client.delete(f"{PORTS}/{port['id']}")
    assert client.delete(f"{GROUPS}/{web}").status_code == 204
    assert client.get(f"{RULES}/{rule['id']}").status_code == 404
    assert client.get(f"{GROUPS}/{db}").status_code == 200


def test_hosts_learn_of_changed_rules_and_members(
    client: TestClient, engine: Engine, launcher: RecordingLauncher
) -> None:
    network = make_subnet(client)["network_id"]
    web, app = (make(client, "security-groups", name=name)["id"] for name in ("web", "app"))
    launcher.refreshed.clear()
    run_server(engine, network, "host-web", "w", ["web"])
    run_server(engine, network, "host-app", "a", ["app"])
    rule = make(client, "security-group-rules", security_group_id=web, direction="ingress")
    assert launcher.refreshed == ["host-web"]
    make(
        client,
        "security-group-rules",
        security_group_id=app,
        direction="ingress",
        remote_group_id=web,
    )
    launcher.refreshed.clear()
    loose = make(client, "ports", network_id=network, security_groups=[web])
    assert launcher.refreshed == ["host-app", "host-web"]  # app's rule admits the new member
    launcher.refreshed.clear()
    client.delete(f"{PORTS}/{loose['id']}")
    assert launcher.refreshed == ["host-app", "host-web"]
    launcher.refreshed.clear()
    client.delete(f"{RULES}/{rule['id']}")
    assert launcher.refreshed == ["host-app", "host-web"]


def test_the_port_quota_holds_for_a_bulk_too(client: TestClient) -> None:
    network = make(client, "networks")["id"]
    client.put("/network/v2.0/quotas/project-demo", json={"quota": {"port": 2}}, headers=ADMIN)
    body = {"ports": [{"network_id": network}] * 3}
    assert refusal(client.post(PORTS, json=body)) == (409, "OverQuota")
    assert client.get(PORTS).json() == {"ports": []}

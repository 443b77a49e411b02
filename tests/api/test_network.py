"""Networks and subnets over HTTP, as Neutron's clients use them."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Engine

from db.network import Network, Port, ensure_demo_network
from db.session import reading, transaction
from tests.conftest import acting_as

ADMIN, ALT, READER = acting_as("admin"), acting_as("alt"), acting_as("reader")


def make(
    client: TestClient, path: str, headers: dict[str, str] | None = None, **attributes: Any
) -> Any:
    key = path.replace("-", "_").removesuffix("s")
    answer = client.post(f"/network/v2.0/{path}", json={key: attributes}, headers=headers)
    assert answer.status_code == 201, answer.text
    return answer.json()[key]


def make_subnet(client: TestClient, cidr: str = "10.0.0.0/24", **attributes: Any) -> Any:
    network = make(client, "networks", name="net")
    return make(client, "subnets", network_id=network["id"], cidr=cidr, ip_version=4, **attributes)


def refusal(answer: Any) -> tuple[int, str]:
    return answer.status_code, answer.json()["NeutronError"]["type"]


def test_a_network_shows_what_neutron_shows(client: TestClient) -> None:
    network = make(client, "networks", name="blue", description="for tests")
    assert network["status"] == "ACTIVE"
    assert network["project_id"] == network["tenant_id"] == "project-demo"
    assert network["subnets"] == []
    assert network["router:external"] is False
    assert network["revision_number"] == 1
    assert "provider:segmentation_id" not in network
    shown = client.get(f"/network/v2.0/networks/{network['id']}", headers=ADMIN).json()["network"]
    assert shown["provider:network_type"] == "vxlan"
    assert shown["provider:segmentation_id"] >= 1000


def test_update_and_delete_a_network(client: TestClient) -> None:
    path = f"/network/v2.0/networks/{make(client, 'networks', name='a')['id']}"
    changed = client.put(path, json={"network": {"name": "b", "mtu": 1400}})
    assert changed.status_code == 200
    assert (changed.json()["network"]["name"], changed.json()["network"]["mtu"]) == ("b", 1400)
    assert changed.json()["network"]["revision_number"] == 2
    assert client.delete(path).status_code == 204
    assert refusal(client.get(path)) == (404, "NetworkNotFound")
    assert refusal(client.delete(path)) == (404, "NetworkNotFound")


def test_another_projects_network_is_not_found(client: TestClient) -> None:
    path = f"/network/v2.0/networks/{make(client, 'networks')['id']}"
    for method, body in (("get", None), ("put", {"network": {"name": "x"}}), ("delete", None)):
        answer = client.request(method, path, json=body, headers=ALT)
        assert refusal(answer) == (404, "NetworkNotFound")
    assert client.get("/network/v2.0/networks", headers=ALT).json() == {"networks": []}


def test_a_shared_network_is_seen_by_all_and_changed_by_its_owner(client: TestClient) -> None:
    shared = make(client, "networks", ADMIN, name="public", shared=True)
    path = f"/network/v2.0/networks/{shared['id']}"
    assert client.get(path).json()["network"]["shared"] is True
    assert refusal(client.put(path, json={"network": {"name": "mine"}})) == (
        403,
        "PolicyNotAuthorized",
    )
    assert client.delete(path).status_code == 403
    answer = client.post("/network/v2.0/networks", json={"network": {"shared": True}})
    assert answer.status_code == 403


def test_sharing_ends_only_without_foreign_ports(client: TestClient) -> None:
    shared = make(client, "networks", ADMIN, shared=True)
    path = f"/network/v2.0/networks/{shared['id']}"
    port = make(client, "ports", network_id=shared["id"])
    unshare = {"network": {"shared": False}}
    assert refusal(client.put(path, json=unshare, headers=ADMIN)) == (409, "InvalidSharedSetting")
    client.delete(f"/network/v2.0/ports/{port['id']}")
    assert client.put(path, json=unshare, headers=ADMIN).status_code == 200


def test_bulk_create_makes_all_or_none(client: TestClient) -> None:
    body = {"networks": [{"name": "a"}, {"name": "b"}]}
    made = client.post("/network/v2.0/networks", json=body)
    assert made.status_code == 201
    assert [n["name"] for n in made.json()["networks"]] == ["a", "b"]
    body = {"networks": [{"name": "c"}, {"name": "d", "shared": True}]}
    assert client.post("/network/v2.0/networks", json=body).status_code == 403
    names = [n["name"] for n in client.get("/network/v2.0/networks").json()["networks"]]
    assert sorted(names) == ["a", "b"]


@pytest.mark.parametrize(
    "body",
    [
        {},
        [],
        {"network": None},
        {"network": []},
        {"networks": []},
        {"network": {}, "networks": []},
        {"network": {"nmae": "typo"}},
        {"network": {"name": "x" * 256}},
        {"network": {"name": "nul\x00"}},
        {"network": {"name": 5}},
        {"network": {"mtu": 67}},
        {"network": {"mtu": 9000}},
        {"network": {"admin_state_up": "maybe"}},
        {"network": {"router:external": True}},
        {"network": {"project_id": "another"}},
    ],
)
def test_a_bad_network_is_a_400_in_neutrons_form(client: TestClient, body: Any) -> None:
    answer = client.post("/network/v2.0/networks", json=body)
    assert answer.status_code == 400
    assert answer.json()["NeutronError"]["message"]


def test_an_admin_makes_networks_for_others_and_chooses_the_tunnel(client: TestClient) -> None:
    made = make(
        client,
        "networks",
        ADMIN,
        tenant_id="project-demo",
        **{"provider:network_type": "vxlan", "provider:segmentation_id": 77},
    )
    assert made["project_id"] == "project-demo"
    assert made["provider:segmentation_id"] == 77
    again = {"network": {"provider:segmentation_id": 77}}
    assert refusal(client.post("/network/v2.0/networks", json=again, headers=ADMIN)) == (
        409,
        "TunnelIdInUse",
    )
    assert client.post("/network/v2.0/networks", json=again).status_code == 403


def test_a_reader_reads_only(client: TestClient) -> None:
    assert client.get("/network/v2.0/networks", headers=READER).status_code == 200
    body = {"network": {"name": "x"}}
    assert client.post("/network/v2.0/networks", json=body, headers=READER).status_code == 403
    answer = client.get("/network/v2.0/networks", headers={"X-Auth-Token": "forged"})
    assert refusal(answer) == (401, "HTTPUnauthorized")


def test_a_subnet_gets_gateway_and_pools_unasked(client: TestClient) -> None:
    subnet = make_subnet(client, name="s", dns_nameservers=["10.0.0.1"])
    assert subnet["gateway_ip"] == "10.0.0.1"
    assert subnet["allocation_pools"] == [{"start": "10.0.0.2", "end": "10.0.0.254"}]
    assert subnet["enable_dhcp"] is True
    assert subnet["ip_version"] == 4
    network = client.get(f"/network/v2.0/networks/{subnet['network_id']}").json()["network"]
    assert network["subnets"] == [subnet["id"]]


def test_a_subnet_without_gateway_uses_every_address(client: TestClient) -> None:
    subnet = make_subnet(client, gateway_ip=None)
    assert subnet["gateway_ip"] is None
    assert subnet["allocation_pools"] == [{"start": "10.0.0.1", "end": "10.0.0.254"}]


@pytest.mark.parametrize(
    ("attributes", "status", "name"),
    [
        ({"cidr": "10.0.0.1/24"}, 400, "InvalidInput"),
        ({"cidr": "10.0.0.0/31"}, 400, "InvalidInput"),
        ({"cidr": "0.0.0.0/0"}, 400, "InvalidInput"),
        ({"cidr": "169.254.0.0/16"}, 400, "InvalidInput"),
        ({"cidr": "224.0.0.0/24"}, 400, "InvalidInput"),
        ({"cidr": "fd00::/64", "ip_version": 6}, 400, "InvalidInput"),
        ({"cidr": "fd00::/64"}, 400, "InvalidInput"),
        ({"cidr": "ten dot zero"}, 400, "InvalidInput"),
        ({"cidr": None}, 400, "InvalidInput"),
        ({"gateway_ip": "10.9.0.1"}, 400, "InvalidInput"),
        ({"gateway_ip": "10.0.0.255"}, 400, "InvalidInput"),
        ({"dns_nameservers": ["nowhere"]}, 400, "InvalidInput"),
        ({"host_routes": [{"destination": "x", "nexthop": "10.0.0.9"}]}, 400, "InvalidInput"),
        (
            {"allocation_pools": [{"start": "10.0.0.9", "end": "10.0.0.3"}]},
            400,
            "InvalidAllocationPool",
        ),
        (
            {"allocation_pools": [{"start": "10.0.0.9", "end": "10.0.1.3"}]},
            400,
            "OutOfBoundsAllocationPool",
        ),
        (
            {"allocation_pools": [{"start": "10.0.0.1", "end": "10.0.0.3"}]},
            409,
            "GatewayConflictWithAllocationPools",
        ),
        (
            {
                "allocation_pools": [
                    {"start": "10.0.0.5", "end": "10.0.0.9"},
                    {"start": "10.0.0.9", "end": "10.0.0.20"},
                ]
            },
            409,
            "OverlappingAllocationPools",
        ),
    ],
)
def test_an_impossible_subnet_is_refused(
    client: TestClient, attributes: dict[str, Any], status: int, name: str
) -> None:
    network = make(client, "networks")
    body = {"subnet": {"network_id": network["id"], "cidr": "10.0.0.0/24"} | attributes}
    assert refusal(client.post("/network/v2.0/subnets", json=body)) == (status, name)


def test_subnets_of_one_network_do_not_overlap(client: TestClient) -> None:
    subnet = make_subnet(client, "10.0.0.0/16")
    body = {"subnet": {"network_id": subnet["network_id"], "cidr": "10.0.5.0/24"}}
    assert refusal(client.post("/network/v2.0/subnets", json=body)) == (400, "InvalidInput")
    make_subnet(client, "10.0.5.0/24")  # another network may


def test_update_a_subnet(client: TestClient) -> None:
    subnet = make_subnet(client, allocation_pools=[{"start": "10.0.0.10", "end": "10.0.0.20"}])
    path = f"/network/v2.0/subnets/{subnet['id']}"
    change = {
        "name": "n",
        "gateway_ip": "10.0.0.254",
        "dns_nameservers": ["10.0.0.53"],
        "host_routes": [{"destination": "192.168.7.0/24", "nexthop": "10.0.0.7"}],
        "allocation_pools": [{"start": "10.0.0.30", "end": "10.0.0.40"}],
    }
    changed = client.put(path, json={"subnet": change}).json()["subnet"]
    assert {name: changed[name] for name in change} == change
    assert client.put(path, json={"subnet": {"cidr": "10.1.0.0/24"}}).status_code == 400
    inside = {"subnet": {"gateway_ip": "10.0.0.35"}}
    assert refusal(client.put(path, json=inside)) == (409, "GatewayConflictWithAllocationPools")


def test_a_gateway_never_moves_onto_a_port(client: TestClient) -> None:
    subnet = make_subnet(client, allocation_pools=[{"start": "10.0.0.10", "end": "10.0.0.20"}])
    make(client, "ports", network_id=subnet["network_id"], fixed_ips=[{"ip_address": "10.0.0.99"}])
    answer = client.put(
        f"/network/v2.0/subnets/{subnet['id']}", json={"subnet": {"gateway_ip": "10.0.0.99"}}
    )
    assert refusal(answer) == (409, "GatewayIpInUse")


def test_networks_and_subnets_in_use_stay(client: TestClient) -> None:
    subnet = make_subnet(client)
    port = make(client, "ports", network_id=subnet["network_id"])
    network_path = f"/network/v2.0/networks/{subnet['network_id']}"
    assert refusal(client.delete(network_path)) == (409, "NetworkInUse")
    assert refusal(client.delete(f"/network/v2.0/subnets/{subnet['id']}")) == (409, "SubnetInUse")
    assert client.delete(f"/network/v2.0/ports/{port['id']}").status_code == 204
    assert client.delete(network_path).status_code == 204
    assert client.get(f"/network/v2.0/subnets/{subnet['id']}").status_code == 404


def test_quota_is_counted_and_shown(client: TestClient) -> None:
    path = "/network/v2.0/quotas/project-demo"
    assert client.put(path, json={"quota": {"network": 1}}).status_code == 403
    changed = client.put(path, json={"quota": {"network": 1}}, headers=ADMIN)
    assert changed.json()["quota"]["network"] == 1
    make(client, "networks")
    again = client.post("/network/v2.0/networks", json={"network": {}})
    assert refusal(again) == (409, "OverQuota")
    details = client.get(f"{path}/details").json()["quota"]["network"]
    assert details == {"limit": 1, "used": 1, "reserved": 0}
    assert client.get(f"{path}/default").json()["quota"]["network"] == 100
    listed = client.get("/network/v2.0/quotas", headers=ADMIN).json()["quotas"]
    assert [q["project_id"] for q in listed] == ["project-demo"]
    assert client.get(path, headers=ALT).status_code == 403
    assert client.delete(path, headers=ADMIN).status_code == 204
    make(client, "networks")


@pytest.mark.parametrize("limit", [-2, 2**31, "many", None, 1.5])
def test_a_quota_is_a_number(client: TestClient, limit: Any) -> None:
    path = "/network/v2.0/quotas/project-demo"
    answer = client.put(path, json={"quota": {"port": limit}}, headers=ADMIN)
    assert answer.status_code == (200 if limit is None else 400)


def test_tags_come_and_go_and_filter(client: TestClient) -> None:
    red, blue = (make(client, "networks", name=name)["id"] for name in ("red", "blue"))
    path = f"/network/v2.0/networks/{red}/tags"
    assert client.put(path, json={"tags": ["b", "a", "a"]}).json() == {"tags": ["a", "b"]}
    assert client.put(f"{path}/c").status_code == 201
    assert client.get(f"{path}/c").status_code == 204
    assert client.delete(f"{path}/b").status_code == 204
    assert refusal(client.get(f"{path}/b")) == (404, "TagNotFound")
    client.put(f"/network/v2.0/networks/{blue}/tags", json={"tags": ["a", 'x"c']})

    def ids(query: str) -> set[str]:
        found = client.get(f"/network/v2.0/networks?{query}").json()["networks"]
        return {n["id"] for n in found}

    assert ids("tags=a") == {red, blue}
    assert ids("tags=a,c") == {red}
    assert ids("tags-any=c,zz") == {red}
    assert ids("not-tags=a,c") == {blue}
    assert ids("not-tags-any=c") == {blue}
    assert client.get(path, headers=ALT).status_code == 404
    assert client.delete(path).status_code == 204
    assert client.get(path).json() == {"tags": []}


def test_list_filters_sorts_and_selects(client: TestClient) -> None:
    for name, mtu in (("a", 1400), ("b", 1300), ("c", 1400)):
        make(client, "networks", name=name, mtu=mtu)

    def names(query: str) -> list[str]:
        answer = client.get(f"/network/v2.0/networks?{query}")
        assert answer.status_code == 200, answer.text
        return [n["name"] for n in answer.json()["networks"]]

    assert names("sort_key=name&sort_dir=desc") == ["c", "b", "a"]
    assert names("sort_key=mtu&sort_key=name&sort_dir=asc&sort_dir=desc") == ["b", "c", "a"]
    assert sorted(names("name=a&name=c")) == ["a", "c"]
    assert names("mtu=1300") == ["b"]
    assert names("shared=True") == []
    assert len(names("router:external=False&status=ACTIVE&admin_state_up=true")) == 3
    assert names("status=DOWN") == []
    only = client.get("/network/v2.0/networks?fields=name&name=a").json()
    assert only == {"networks": [{"name": "a"}]}


@pytest.mark.parametrize(
    "query",
    [
        "colour=blue",
        "mtu=wide",
        "mtu=99999999999999999999",
        "admin_state_up=maybe",
        "sort_key=colour",
        "sort_key=name&sort_dir=up",
        "sort_key=name&sort_dir=asc&sort_dir=asc",
        "limit=x",
        "limit=-1",
        "limit=²",
        "changed_since=yesterday",
        "name=%00",
        "provider:segmentation_id=5",
    ],
)
def test_a_bad_query_is_a_400(client: TestClient, query: str) -> None:
    assert client.get(f"/network/v2.0/networks?{query}").status_code == 400


def test_pages_follow_their_links_both_ways(client: TestClient) -> None:
    names = [f"n{i}" for i in range(5)]
    for name in names:
        make(client, "networks", name=name, description="")
    seen: list[str] = []
    url = "/network/v2.0/networks?limit=2&sort_key=name&sort_dir=asc"
    pages = []
    while url:
        answer = client.get(url).json()
        pages.append([n["name"] for n in answer["networks"]])
        seen += pages[-1]
        links = {link["rel"]: link["href"] for link in answer.get("networks_links", [])}
        url, back = links.get("next", ""), links.get("previous")
    assert seen == names
    assert back is not None
    before = client.get(back).json()["networks"]
    assert [n["name"] for n in before] == pages[-2]
    assert client.get("/network/v2.0/networks?marker=nowhere").status_code == 404


def test_discovery_needs_no_token_and_names_v2(client: TestClient) -> None:
    versions = client.get("/network/", headers={"X-Auth-Token": ""}).json()["versions"]
    assert versions == [
        {
            "id": "v2.0",
            "status": "CURRENT",
            "links": [{"rel": "self", "href": "http://testserver/network/v2.0/"}],
        }
    ]
    resources = client.get("/network/v2.0/", headers={"X-Auth-Token": ""}).json()["resources"]
    assert "security-groups" in {r["collection"] for r in resources}


def test_extensions_are_listed_and_shown(client: TestClient) -> None:
    listed = client.get("/network/v2.0/extensions").json()["extensions"]
    aliases = {e["alias"] for e in listed}
    assert {"security-group", "port-security", "quotas", "provider", "net-mtu"} <= aliases
    assert aliases.isdisjoint({"router", "external-net", "trunk", "qos", "dns-integration"})
    assert client.get("/network/v2.0/extensions/quotas").json()["extension"]["alias"] == "quotas"
    assert client.get("/network/v2.0/extensions/trunk").status_code == 404


def test_what_is_missing_is_said_cleanly(client: TestClient) -> None:
    assert client.get("/network/v2.0/routers").json() == {"routers": []}
    assert client.get("/network/v2.0/floatingips").json() == {"floatingips": []}
    assert refusal(client.post("/network/v2.0/routers", json={"router": {}})) == (
        501,
        "HTTPNotImplemented",
    )
    assert client.post("/network/v2.0/floatingips", json={}).status_code == 501
    assert client.get("/network/v2.0/trunks").status_code == 404
    assert client.get("/network/v2.0/agents").status_code == 403
    assert client.get("/network/v2.0/agents", headers=ADMIN).json() == {"agents": []}
    zones = client.get("/network/v2.0/availability_zones").json()["availability_zones"]
    assert zones == [{"name": "nova", "resource": "network", "state": "available"}]


def test_the_demo_network_is_made_once(client: TestClient, engine: Engine) -> None:
    for _ in range(2):
        with transaction(engine) as session:
            made = ensure_demo_network(session, "project-admin")
    listed = client.get("/network/v2.0/networks").json()["networks"]
    assert [(n["id"], n["name"], n["shared"]) for n in listed] == [(made.id, "demo-net", True)]
    subnet = client.get("/network/v2.0/subnets").json()["subnets"][0]
    assert subnet["name"] == "demo-subnet"
    assert subnet["dns_nameservers"] == [subnet["gateway_ip"]]
    port = make(client, "ports", network_id=made.id)
    with reading(engine) as session:
        assert session.get(Port, port["id"]) is not None
        assert session.get(Network, made.id) is not None

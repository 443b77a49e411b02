"""How many statements each route of the compute API sends to the database: a regression shows without a clock.

A number that falls is good news; one that rises needs a reason. Not in them: the one statement that checks
the token, which is counted where tokens are tested.
"""

from __future__ import annotations

from typing import Any

import pytest

from api.microversion import ALWAYS
from db.flavors import Flavor, FlavorAccess
from db.groups import Aggregate, AggregateHost, ServerGroup
from db.hosts import Host
from db.keypairs import Keypair
from db.network import FixedIp, Network, Port, SecurityGroup, Subnet
from db.network.tables import PortSecurityGroup
from db.operations import Operation
from db.quotas import set_limit
from db.servers import Server, ServerFault, ServerTag
from db.session import now, transaction
from tests.api.conftest import IMAGE, ServerWorld, at, counting
from tests.record import claim
from tests.routes import Walked, walk

CROWD = 100
NETWORK = "11111111-0000-4000-8000-000000000009"
MINE: dict[str, Any] = {"project_id": "project-admin", "user_id": "user-admin"}
READS = {
    "/servers": 1,
    "/servers/detail": 6,
    "/servers/{server_id}": 5,
    "/servers/{server_id}/ips": 2,
    "/servers/{server_id}/ips/{label}": 2,
    "/servers/{server_id}/os-security-groups": 3,
    "/servers/{server_id}/os-interface": 3,
    "/servers/{server_id}/os-interface/{port_id}": 3,
    "/servers/{server_id}/os-server-password": 1,
    "/servers/{server_id}/diagnostics": 1,
    "/servers/{server_id}/topology": 1,
    "/servers/{server_id}/os-volume_attachments": 1,
    "/servers/{server_id}/migrations": 1,
    "/servers/{server_id}/metadata": 1,
    "/servers/{server_id}/metadata/{key}": 1,
    "/servers/{server_id}/tags": 2,
    "/servers/{server_id}/tags/{tag}": 2,
    "/servers/{server_id}/os-instance-actions": 2,
    "/servers/{server_id}/os-instance-actions/{request_id}": 3,
    "/flavors": 1,
    "/flavors/detail": 1,
    "/flavors/{flavor_id}": 1,
    "/flavors/{flavor_id}/os-flavor-access": 2,
    "/flavors/{flavor_id}/os-extra_specs": 1,
    "/flavors/{flavor_id}/os-extra_specs/{key}": 1,
    "/os-keypairs": 1,
    "/os-keypairs/{name}": 1,
    "/os-server-groups": 2,
    "/os-server-groups/{group_id}": 2,
    "/os-aggregates": 2,
    "/os-aggregates/{aggregate_id}": 2,
    "/os-availability-zone": 3,
    "/os-availability-zone/detail": 6,
    "/os-services": 3,
    "/os-hypervisors": 1,
    "/os-hypervisors/detail": 2,
    "/os-hypervisors/{hypervisor_id}": 2,
    "/os-quota-sets/{project_id}": 1,
    "/os-quota-sets/{project_id}/defaults": 1,
    "/os-quota-sets/{project_id}/detail": 3,
    "/os-quota-class-sets/{name}": 1,
    "/limits": 3,
    "/os-hypervisors/statistics": 2,
    "/os-hypervisors/{hypervisor_id}/uptime": 1,
    "/os-hypervisors/{pattern}/search": 1,
    "/os-hypervisors/{pattern}/servers": 2,
}
"""Path under /v2.1 → statements, in the newest version that has the route; a route that is not here asks
nothing."""
PAGED = (
    "/servers", "/servers/detail", "/servers/{server_id}/os-instance-actions", "/flavors", "/flavors/detail",
    "/os-keypairs", "/os-server-groups", "/os-hypervisors", "/os-hypervisors/detail",
)  # fmt: skip
PUBLIC_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJlWNOBcIGbxTT4ySxLCDsO8mKkNVIZ7fqgU2nGWBGdj a"
NEW_SERVER = {
    "server": {
        "name": "n",
        "flavorRef": "small",
        "imageRef": IMAGE,
        "networks": [{"uuid": NETWORK}],
    }
}
WRITES: list[tuple[str, str, Any, int]] = [
    ("POST", "/servers", NEW_SERVER, 15),
    ("POST", "/servers/{server_id}/action", {"os-stop": None}, 3),
    ("POST", "/servers/{server_id}/action", {"lock": None}, 2),
    ("PUT", "/servers/{server_id}", {"server": {"name": "other"}}, 6),
    ("POST", "/servers/{server_id}/metadata", {"metadata": {"c": "d"}}, 3),
    ("PUT", "/servers/{server_id}/tags", {"tags": ["x", "y"]}, 4),
    ("DELETE", "/servers/{server_id}", None, 3),
    ("POST", "/flavors", {"flavor": {"name": "n", "vcpus": 1, "ram": 64, "disk": 1}}, 2),
    ("DELETE", "/os-keypairs/{name}", None, 2),
    ("POST", "/os-keypairs", {"keypair": {"name": "n", "public_key": PUBLIC_KEY, "type": "ssh"}}, 3),
    ("POST", "/os-server-groups", {"server_group": {"name": "n", "policy": "affinity"}}, 2),
    ("POST", "/os-aggregates", {"aggregate": {"name": "n", "availability_zone": "z"}}, 1),
]  # fmt: skip
"""Method, path, body, statements. Operations are only written down here: what starting one costs is not in them."""
REFUSED = ("/diagnostics", "/statistics", "/uptime")
"""What answers with an error, but reads the record for it."""


def server(n: int) -> Server:
    """Two of three run, the rest have failed; four share a host."""
    return Server(
        id=f"server-{n}", name=f"web-{n}", hostname="web", flavor={"id": "small"}, metadata_={"a": "b"},
        image_id=IMAGE, group_id=f"group-{n}", user_data="eA==",
        host=f"crowd-{n // 4}", vm_state="active" if n % 3 else "error", **MINE,
    )  # fmt: skip


def around(n: int) -> list[Any]:
    """What belongs to one server, and one more of everything else that is listed."""
    return [
        ServerTag(server_id=f"server-{n}", tag="front"),
        ServerFault(server_id=f"server-{n}", message="boom"),
        Operation(
            server_id=f"server-{n if n > 2 else 1}", request_id=f"req-{n}", action="stop",
            lifecycle="stop", state="succeeded", **MINE,
        ),
        ServerGroup(id=f"group-{n}", name=f"g{n}", policy="affinity", **MINE),
        Keypair(user_id="user-admin", name=f"key-{n}", public_key="ssh-rsa A", fingerprint="f"),
        Flavor(id=f"flavor-{n}", flavor_id=f"f{n}", name=f"f{n}", vcpus=1, ram_mb=64, disk_gb=1,
               is_public=n > 0, extra_specs={"hw:cpu_policy": "shared"}),
        Port(id=f"port-{n}", network_id=NETWORK, project_id="project-admin", mac=f"m{n}",
             device_id=f"server-{n}"),
    ]  # fmt: skip


def about(n: int) -> list[Any]:
    """What refers to those."""
    return [
        FixedIp(port_id=f"port-{n}", subnet_id="subnet", ip=f"10.9.0.{n}"),
        PortSecurityGroup(port_id=f"port-{n}", security_group_id="group"),
        claim(f"server-{n}", f"crowd-{n // 4}"),
    ]


@pytest.fixture
def crowd(world: ServerWorld) -> ServerWorld:
    with transaction(world.engine) as session:
        session.add(Network(id=NETWORK, project_id="project-admin", name="own", segment=1009))
        session.flush()
        session.add(
            Subnet(
                id="subnet",
                network_id=NETWORK,
                project_id="p",
                cidr="10.9.0.0/16",
                allocation_pools=[{"start": "10.9.1.0", "end": "10.9.9.0"}],
            )
        )
        session.add(SecurityGroup(id="group", name="default", project_id="project-admin"))
        for n in range(CROWD // 4):
            session.add(
                Host(name=f"crowd-{n}", uuid=f"{n:0>8}-0000-4000-8000-000000000000", service_id=f"s{n}", reported_at=now(),
                     hypervisor_hostname=f"crowd-{n}.cloud")
            )  # fmt: skip
            session.add(Aggregate(id=n + 1, name=f"a{n}", metadata_={"availability_zone": f"z{n}"}))
        session.add_all(server(n) for n in range(CROWD))
        session.flush()
        session.add_all(row for n in range(CROWD) for row in around(n))
        session.flush()
        session.add_all(row for n in range(CROWD) for row in about(n))
        session.add_all(AggregateHost(aggregate_id=n + 1, host=f"crowd-{n}") for n in range(25))
        set_limit(session, "project-admin", "server_groups", -1)
        session.add(FlavorAccess(flavor_row_id="flavor-0", project_id="project-admin"))
    return world


def filled(path: str) -> str:
    """The path with the names of things that exist."""
    names = {
        "aggregate_id": "1", "alias": "os-keypairs", "flavor_id": "f0", "group_id": "group-1",
        "hypervisor_id": "00000000-0000-4000-8000-000000000000", "key": "hw:cpu_policy" if "flavors" in path else "a", "label": "own",
        "name": "key-1" if "keypairs" in path else "default", "pattern": "crowd", "port_id": "port-1",
        "project_id": "project-admin", "request_id": "req-1", "server_id": "server-1", "tag": "front",
    }  # fmt: skip
    return path.format(**names)


def cost(world: ServerWorld, method: str, path: str, version: str, body: Any = None) -> int:
    with counting(world.engine) as seen:
        answer = world.client.request(method, path, json=body, headers=at(version, "admin"))
    assert answer.status_code < 400 or path.endswith(REFUSED), (method, path, answer.text)
    return len(seen)


def last_version(route: Walked) -> str:
    return str(getattr(route.endpoint, "span", ALWAYS).until)


def reads() -> list[Walked]:
    return [r for r in walk() if r.method == "GET" and r.service == "compute"]


def test_every_read_costs_what_the_table_says(crowd: ServerWorld) -> None:
    seen: dict[str, int] = {}
    for route in reads():
        version = "2.52" if "{pattern}" in route.path else last_version(route)
        path = route.path.removeprefix("/compute/v2.1")
        seen[path] = cost(crowd, "GET", filled(route.path), version) or seen.get(path, 0)
    assert {path: number for path, number in seen.items() if number} == READS


@pytest.mark.parametrize("path", PAGED)
def test_a_page_costs_the_same_for_any_number_of_items(crowd: ServerWorld, path: str) -> None:
    url = filled(f"/compute/v2.1{path}?limit=")
    sizes = [1, 10, CROWD]
    assert {n: cost(crowd, "GET", f"{url}{n}", "2.96") for n in sizes} == dict.fromkeys(
        sizes, READS[path]
    )


def test_every_write_costs_what_the_table_says(crowd: ServerWorld) -> None:
    seen = [
        f"{cost(crowd, method, filled(f'/compute/v2.1{path}'), '2.90', body)} for {method} {path}"
        for method, path, body, _ in WRITES
    ]
    assert seen == [f"{number} for {method} {path}" for method, path, _, number in WRITES]
